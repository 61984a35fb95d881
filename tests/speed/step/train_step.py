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
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.speed.step.step_case import Case


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


def make_case(a: argparse.Namespace) -> Case:
    """The draft and the batch that the flags describe."""
    from step_case import Case

    from eagle3cli.models.config import DraftConfig

    lengths = tuple(read_lengths(a))
    draft = DraftConfig(
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
    # Draft tokens win every teacher argmax, as with a mapping made from real data.
    return Case(
        draft,
        lengths,
        a.mask_fraction,
        a.loss,
        a.ttt,
        a.activation_checkpointing,
        micro_batch=a.micro_batch,
        expressible=1.0,
        seed=a.seed,
    )


def main() -> None:
    """Measure and print."""
    a = arguments()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch
    from step_case import make_draft, make_trainer, random_tensors

    from eagle3cli.runtime.devices import set_threads

    set_threads(a.threads)
    torch.manual_seed(a.seed)
    device = torch.device(a.device)
    dtype = torch.float32 if a.dtype == "fp32" else torch.bfloat16
    case = make_case(a)
    draft = make_draft(case, device, dtype)
    make = random_tensors(device, dtype)
    trainer = make_trainer(case, draft, make, attention=a.attention_backend, keep_states=True)

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
    median = statistics.median(wall)
    line = {
        "name": "eagle3",
        "hidden": a.hidden,
        "vocab": a.vocab,
        "draft_vocab": a.draft_vocab,
        "batch": len(case.lengths),
        "seq": max(case.lengths),
        "tokens": case.tokens,
        "ttt": a.ttt,
        "mask_fraction": a.mask_fraction,
        "seconds_per_step": round(median, 3),
        "cpu_seconds_per_step": round(statistics.median(cpu), 3),
        "tokens_per_s": round(case.tokens / median, 2),
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
