"""Time one training step: rows, unroll, loss, backward and optimiser, on random states. Prints one JSON line.

    python tests/speed/train_step.py --seq 2048 --mask-fraction 0.5

The step is the product's own (``training.trainer.optimise``) with the trainer's default settings; only the target's
states are random, as they would come from a hidden-state store. ``compare_specforge.py`` runs it beside SpecForge's.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Sequence
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
        "--lengths", help="instead of --batch and --seq: 700,90,1500 or a file with one length (in tokens) a line"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def read_lengths(a: argparse.Namespace) -> list[int]:
    """Tokens of every sequence of the batch."""
    if a.lengths is None:
        return [a.seq] * a.batch
    text = Path(a.lengths).read_text() if Path(a.lengths).is_file() else a.lengths
    return [int(word) for word in text.replace(",", " ").split()]


def make_trainer(a: argparse.Namespace, lengths: list[int]) -> Any:
    """The product's trainer over random states of these lengths."""
    import torch

    from eagle3cli.backends.batch import TargetBatch
    from eagle3cli.models.config import DraftConfig
    from eagle3cli.models.draft import Draft
    from eagle3cli.runtime.report import Silent
    from eagle3cli.settings.tables import Train
    from eagle3cli.training.build import choose_attention
    from eagle3cli.training.checkpoints import Progress
    from eagle3cli.training.optimizer import Optimizer
    from eagle3cli.training.order import Order
    from eagle3cli.training.trainer import Trainer

    generator = torch.Generator().manual_seed(a.seed)
    torch.manual_seed(a.seed)
    dtype = torch.float32 if a.dtype == "fp32" else torch.bfloat16
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
    draft = Draft(config).to(a.device).cast(dtype)
    ids = torch.randperm(a.vocab, generator=generator)[: a.draft_vocab].sort().values
    t2d = torch.zeros(a.vocab, dtype=torch.bool)
    t2d[ids] = True
    draft.set_vocab(ids - torch.arange(a.draft_vocab), t2d)
    head = torch.randn(a.vocab, a.hidden, generator=generator) * 0.02
    head[ids] *= 3.0  # draft tokens win nearly every teacher argmax, as with a mapping made from real data
    embedding = (torch.randn(a.vocab, a.hidden, generator=generator) * 0.02).to(a.device, dtype)

    class RandomSource:
        """States as they come from a store: bf16 or fp32, answers known."""

        def __init__(self) -> None:
            self.lengths: Sequence[int] = lengths
            self._rows = [self._row(n) for n in lengths]

        def _row(self, n: int) -> dict[str, torch.Tensor]:
            mask = torch.zeros(n, dtype=torch.bool)
            mask[n - round(n * a.mask_fraction) :] = True
            last = torch.randn(n, a.hidden, generator=generator)
            top = torch.cat([(part @ head.T).argmax(-1) for part in last.split(256)])
            return {
                "token_ids_N": torch.randint(a.vocab, (n,), generator=generator),
                "loss_mask_N": mask,
                "aux_NC": torch.randn(n, 3 * a.hidden, generator=generator).to(dtype),
                "last_NH": last.to(dtype),
                "top_N": top,
            }

        def batch(self, rows: Sequence[int]) -> TargetBatch:
            parts = [self._rows[i] for i in rows]
            joined = {key: torch.cat([part[key] for part in parts]).to(a.device) for key in parts[0]}
            bounds = [0]
            for i in rows:
                bounds.append(bounds[-1] + lengths[i])
            return TargetBatch(bounds=tuple(bounds), rows=tuple(rows), **joined)

    settings = Train(
        ttt_length=a.ttt,
        batch_size=len(lengths),
        micro_batch_size=a.micro_batch,
        attention_backend=a.attention_backend,
        activation_checkpointing=a.activation_checkpointing,
        loss=a.loss,
    )
    return Trainer(
        settings=settings,
        output_dir=Path(),
        source=RandomSource(),
        eval_source=None,
        order=Order(len(lengths), len(lengths), a.seed),
        total_steps=a.steps,
        budget_seconds=None,
        draft=draft,
        embedding_VH=embedding,
        teacher_head_VdH=head[ids].to(a.device, dtype),
        whole_head_VH=head.to(a.device, dtype) if a.loss != "kl" else None,
        attend=choose_attention(a.attention_backend, torch.device(a.device), Silent()),
        optimizer=Optimizer(list(draft.named_parameters()), max_grad_norm=settings.max_grad_norm),
        progress=Progress(),
        report=Silent(),
    )


def main() -> None:
    """Measure and print."""
    a = arguments()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from eagle3cli.runtime.devices import set_threads
    from eagle3cli.training.trainer import optimise

    set_threads(a.threads)
    lengths = read_lengths(a)
    trainer = make_trainer(a, lengths)
    rows = list(range(len(lengths)))

    def step() -> None:
        optimise(trainer, rows, 1e-4)
        if a.device != "cpu":
            torch.cuda.synchronize()

    for _ in range(a.warmup):
        step()
    first = trainer.window
    first_loss = round(float(first.loss[0]) / first.divided_by * a.warmup, 4) if a.warmup else None
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
