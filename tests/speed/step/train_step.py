"""Time one training step: rows, unroll, loss, backward and optimiser, on random states. Prints one JSON line.

    python tests/speed/step/train_step.py --seq 2048 --mask-fraction 0.5

The step is the product's own (``Trainer.train_step``) with the trainer's default settings; only the target's
states are random, as they would come from a hidden-state store. ``compare_specforge.py`` runs it beside SpecForge's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any


def arguments() -> argparse.Namespace:
    """Flags, with the names that the SpecForge benchmark has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--inter", type=int, default=1536)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--draft-vocab", type=int, default=16000)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--ttt", type=int, default=7)
    parser.add_argument("--mask-fraction", type=float, default=1.0, help="share of rows in the loss: the last ones")
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after --warmup ones")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--attention-backend", default="auto")
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--loss", default="kl")
    parser.add_argument("--micro-batch", type=int, help="sequences per forward pass (default: the whole batch)")
    parser.add_argument(
        "--lengths",
        help="instead of --batch and --seq: 700,90,1500, or a file with one length (in tokens) a line, or "
        "lognormal:MEDIAN:SIGMA for --batch random ones of at most --seq",
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def read_lengths(a: argparse.Namespace) -> list[int]:
    """Tokens of every sequence of the batch."""
    if a.lengths is None:
        return [a.seq] * a.batch
    if a.lengths.startswith("lognormal:"):
        median, sigma = map(float, a.lengths.split(":")[1:])
        drawn = random.Random(a.seed)
        return [min(a.seq, max(8, round(drawn.lognormvariate(math.log(median), sigma)))) for _ in range(a.batch)]
    text = Path(a.lengths).read_text() if Path(a.lengths).is_file() else a.lengths
    return [int(word) for word in text.replace(",", " ").split()]


def make_draft(a: argparse.Namespace, lengths: list[int]) -> Any:
    """A draft with random weights and a random draft vocabulary."""
    import torch

    from eagle3cli.models.config import DraftConfig
    from eagle3cli.models.draft import Draft

    torch.manual_seed(a.seed)
    config = DraftConfig(
        hidden_size=a.hidden,
        intermediate_size=a.inter,
        num_attention_heads=a.heads,
        num_key_value_heads=a.kv_heads,
        head_dim=a.hidden // a.heads,
        vocab_size=a.vocab,
        draft_vocab_size=a.draft_vocab,
        target_hidden_size=a.hidden,
        aux_layers=(1, 2, 3),
        max_position_embeddings=max(2048, *lengths),
    )
    draft = Draft(config)
    ids = torch.randperm(a.vocab)[: a.draft_vocab].sort().values
    t2d = torch.zeros(a.vocab, dtype=torch.bool)
    t2d[ids] = True
    draft.set_vocab(ids - torch.arange(a.draft_vocab), t2d)
    return draft.to(a.device).cast(torch.float32 if a.dtype == "fp32" else torch.bfloat16)


@dataclass
class RandomSource:
    """States as they come from a store: in the draft's type, the target's answers known."""

    lengths: Sequence[int]
    rows: list[dict[str, Any]]
    device: str

    def batch(self, rows: Sequence[int]) -> Any:
        """The rows side by side."""
        import torch

        from eagle3cli.backends.batches.batch import TargetBatch

        parts = [self.rows[i] for i in rows]
        joined = {key: torch.cat([part[key] for part in parts]).to(self.device) for key in parts[0]}
        bounds = (0, *accumulate(self.lengths[i] for i in rows))
        return TargetBatch(cu_seqlens=bounds, rows=tuple(rows), **joined)


def make_source(a: argparse.Namespace, lengths: list[int], head: Any, dtype: Any) -> RandomSource:
    """Random states; the last rows of each sequence carry loss."""
    import torch

    def row(n: int) -> dict[str, Any]:
        last = torch.randn(n, a.hidden)
        return {
            "token_ids_N": torch.randint(a.vocab, (n,)),
            "loss_mask_N": torch.arange(n) >= n - round(n * a.mask_fraction),
            "aux_NC": torch.randn(n, 3 * a.hidden).to(dtype),
            "last_NH": last.to(dtype),
            "top_N": torch.cat([(part @ head.T).argmax(-1) for part in last.split(256)]),
        }

    return RandomSource(lengths, [row(n) for n in lengths], a.device)


def make_trainer(a: argparse.Namespace, lengths: list[int]) -> Any:
    """The product's trainer over random states of these lengths."""
    import torch

    from eagle3cli.backends.target.logits import Head
    from eagle3cli.runtime.distributed import SINGLE_PROCESS
    from eagle3cli.runtime.report import Silent
    from eagle3cli.settings.training import TrainSettings
    from eagle3cli.training.batches import Batches, Sampler
    from eagle3cli.training.build import choose_attention
    from eagle3cli.training.checkpoint.save import Saver
    from eagle3cli.training.checkpoint.state import TrainState
    from eagle3cli.training.optim.optimizer import Optimizer
    from eagle3cli.training.optim.schedule import Schedule
    from eagle3cli.training.parallel import Parallel
    from eagle3cli.training.trainer import Trainer
    from eagle3cli.training.ttt.model import TargetWeights, TTTModel

    draft = make_draft(a, lengths)
    dtype, ids = draft.fc.weight.dtype, draft.draft_ids.cpu()
    head = torch.randn(a.vocab, a.hidden) * 0.02
    head[ids] *= 3.0  # draft tokens win nearly every teacher argmax, as with a mapping made from real data
    settings = TrainSettings(
        ttt_length=a.ttt,
        batch_size=len(lengths),
        micro_batch_size=a.micro_batch,
        attention_backend=a.attention_backend,
        activation_checkpointing=a.activation_checkpointing,
        loss=a.loss,
    )
    attend = choose_attention(a.attention_backend, torch.device(a.device), Silent())
    source = make_source(a, lengths, head, dtype)
    embedding_VH = (torch.randn(a.vocab, a.hidden) * 0.02).to(a.device, dtype)
    whole_head = Head(head.to(a.device, dtype)) if a.loss != "kl" else None
    target = TargetWeights(embedding_VH, Head(head[ids].to(a.device, dtype)), whole_head)
    return Trainer(
        settings=settings,
        output_dir=Path(),
        batches=Batches(source, Sampler(len(lengths), len(lengths), a.seed), a.micro_batch),
        eval_source=None,
        model=TTTModel(draft, target, attend, recompute=a.activation_checkpointing),
        parallel=Parallel(),
        optimizer=Optimizer(list(draft.named_parameters()), max_grad_norm=settings.max_grad_norm),
        schedule=Schedule(settings, a.steps),
        state=TrainState(),
        saver=Saver(Path(), 1, SINGLE_PROCESS, Silent()),
        report=Silent(),
    )


def main() -> None:
    """Measure and print."""
    a = arguments()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from eagle3cli.runtime.devices import set_threads

    set_threads(a.threads)
    lengths = read_lengths(a)
    trainer = make_trainer(a, lengths)

    def step() -> None:
        trainer.train_step()
        if a.device != "cpu":
            torch.cuda.synchronize()

    for _ in range(a.warmup):
        step()
    first = trainer.metrics
    first_loss = round(float(first.losses[0]) / first.divisor * a.warmup, 4) if a.warmup else None
    wall, cpu = [], []
    for _ in range(a.steps):
        at, cpu_at = time.perf_counter(), time.process_time()
        step()
        cpu.append(time.process_time() - cpu_at)
        wall.append(time.perf_counter() - at)
    tokens, median = sum(lengths), statistics.median(wall)
    line = {
        "name": "eagle3",
        "hidden": a.hidden,
        "vocab": a.vocab,
        "draft_vocab": a.draft_vocab,
        "batch": len(lengths),
        "seq": max(lengths),
        "tokens": tokens,
        "ttt": a.ttt,
        "mask_fraction": a.mask_fraction,
        "seconds_per_step": round(median, 3),
        "cpu_seconds_per_step": round(statistics.median(cpu), 3),
        "tokens_per_s": round(tokens / median, 2),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "heads": a.heads,
        "kv_heads": a.kv_heads,
        "inter": a.inter,
        "dtype": a.dtype,
        "threads": a.threads,
        "steps": a.steps,
        "warmup": a.warmup,
        "loss": a.loss,
        "min_seconds": round(min(wall), 3),
        "max_seconds": round(max(wall), 3),
        "min_cpu_seconds": round(min(cpu), 3),
        "first_loss": first_loss,
        "torch": torch.__version__,
    }
    print(json.dumps(line), flush=True)


main()
