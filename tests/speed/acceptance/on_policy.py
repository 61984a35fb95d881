"""What it costs an online step to see whether replies are the target's own, in CPU seconds. Prints one JSON line.

    PYTHONPATH=. python tests/speed/acceptance/on_policy.py --target TARGET --rows runs/quickstart/dataset/train.jsonl

The step is the trainer's own, target's pass included, with the quickstart's settings. What is added to it is taken
apart: the head with log-probabilities instead of the best tokens alone, and the sums. Each row is judged once, so that
later epochs cost nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from eagle3cli.backends.batches.online import OnlineSource
from eagle3cli.backends.target.on_policy import OnPolicyMeter
from eagle3cli.data.hidden_states.rows import teacher_positions
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.tables import Settings
from eagle3cli.training.build import build


def arguments() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    return parser.parse_args()


def seconds(work: Callable[[], object], times: int) -> float:
    """CPU seconds of some work, the median of several times after one to warm up."""
    work()
    spent = []
    for _ in range(times):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return statistics.median(spent)


def main() -> None:
    """Measure and print."""
    a = arguments()
    with tempfile.TemporaryDirectory() as folder:
        settings = (
            Settings()
            .updated("target", model_path=a.target, threads=1, dtype=a.dtype)
            .updated("draft", vocab_size=8192, init="random")
            .updated("data", train_path=a.rows, cache_dir=Path(folder) / "cache", max_length=512, check_masks=False)
            .updated("train", output_dir=Path(folder) / "run", batch_size=8, anchor_fraction=0.5, ttt_length=2)
        )
        trainer = build(settings, Silent())
        source = trainer.batches.source
        assert isinstance(source, OnlineSource)
        source.meter = None
        step = seconds(trainer.train_step, a.steps)
        batch = source.batch(trainer.batches.sampler.batch(0))
        bounds = batch.cu_seqlens
        masks = [batch.loss_mask_N[i:j] for i, j in zip(bounds[:-1], bounds[1:], strict=True)]
        where = torch.cat([at + teacher_positions(mask) for at, mask in zip(bounds, masks, strict=False)])
        last = batch.last_NH[where]
        answer = batch.token_ids_N.roll(-1)[where]
        head = source.target.head
        judged = torch.zeros(2, len(batch.last_NH))
        meter = OnPolicyMeter(len(source.rows), "target")

        def add() -> None:
            meter.wants(batch.rows)
            meter.add(batch.rows, batch.token_ids_N, batch.loss_mask_N, bounds, batch.top_N, judged)

        best = seconds(lambda: head.top_tokens(last), a.steps)
        more = seconds(lambda: head.judge(last, answer), a.steps)
        sums = seconds(add, a.steps)
        numbers = {"step": step, "best_tokens": best, "judged": more, "sums": sums}
        share = (more - best + sums) / step
        print(json.dumps({k: round(v, 4) for k, v in numbers.items()} | {"share_of_a_step": round(share, 4)}))


if __name__ == "__main__":
    main()
