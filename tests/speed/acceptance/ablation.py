"""What raises acceptance: the same short training with one thing changed, at the CPU seconds that it takes.

    PYTHONPATH=. python tests/speed/acceptance/ablation.py --store runs/q/hidden_states/train --target TARGET \
        --eval-store runs/q/hidden_states/eval --output runs/ablation [--steps 186] [--seeds 0 1] [--only base lr-2e-3]
    ... --variant "mine train.ttt_length=4 train.batch_size=4"

The quickstart's settings train on a store of the quickstart's rows (``eagle3 run quickstart --to hidden-states --set
train.mode=offline --set train.echo_factor=1``), each row once, on one thread; every variant sees the same rows in the
same order. Acceptance length is measured on the held-out store, CPU seconds are those of the steps, as training logs
them. A line starts with what is changed; ``base`` is the recipe. Runs that are done are not run again. One JSON line a
run, then the table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from eagle3cli.settings.load import load
from eagle3cli.settings.packaged import find_recipe

VARIANTS = {
    "base": [],
    "lr-5e-4": ["train.learning_rate=5e-4"],
    "lr-2e-3": ["train.learning_rate=2e-3"],
    "batch-4": ["train.batch_size=4"],
    "batch-16": ["train.batch_size=16"],
    "adamw": ["train.optimizer=adamw"],
    "depths-1": ["train.ttt_length=1"],
    "depths-2": ["train.ttt_length=2"],
    "depths-5": ["train.ttt_length=5"],
    "half-of-the-rows": ["train.anchor_fraction=0.5"],
    "head-trained": ["train.head_lr_scale=0.3"],
    "warm-up-10%": ["train.warmup_ratio=0.1"],
    "wsd": ["train.lr_schedule=wsd"],
    "no-norm-output": ["draft.norm_output=false"],
    "fc-norm": ["draft.fc_norm=true"],
    "random-start": ["draft.init=random"],
    "loss-decay-1": ["train.loss_decay=1.0"],
    "loss-mix": ["train.loss=mix", "train.kl_decay=3"],
    "loss-lk": ["train.loss=lk"],
    "loss-tv": ["train.loss=tv"],
}
"""Settings by name. Several batches of one size see equally many rows: steps are counted in rows."""


def arguments() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, help="hidden states to train on")
    parser.add_argument("--eval-store", required=True, help="hidden states of other replies")
    parser.add_argument("--target", required=True, help="the target's folder")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=372, help="of a batch of 8; other batches see the same rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--variant", action="append", default=[], help="'NAME KEY=VALUE ...' of your own")
    parser.add_argument("--eval-rows", type=int, default=256)
    return parser.parse_args()


def run(a: argparse.Namespace, name: str, words: list[str], seed: int) -> dict[str, Any]:
    """Train one variant, unless that is done, and read its history."""
    folder = a.output / f"{name}-{seed}"
    steps = a.steps * 8 // load([find_recipe("quickstart")], words).settings.train.batch_size
    settings = ["train.time_budget=1000h", "launch.gpus=1", "train.mode=offline", "train.echo_factor=1"]
    settings += ["train.num_epochs=1"]
    settings += [f"train.total_steps={steps}", f"train.eval_interval={steps}", f"train.eval_rows={a.eval_rows}"]
    assignments = [part for word in (*settings, *words) for part in ("--set", word)]
    stores = ("--train-hidden-states-path", a.store, "--eval-hidden-states-path", a.eval_store)
    line = ["train", "--config", find_recipe("quickstart"), "--target-model-path", a.target, *stores, *assignments]
    line += ["--seed", seed, "--threads", 1, "--output-dir", folder]
    subprocess.run([sys.executable, "-m", "eagle3cli", *map(str, line)], stdout=sys.stderr, check=True)
    events = [json.loads(event) for event in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [event for event in events if event["event"] == "step"]
    measured = next(event for event in reversed(events) if event["event"] == "eval")
    found = {"variant": name, "seed": seed, "acceptance": measured["acceptance_length"][-1]}
    found["accepted_per_position"] = measured["accepted_per_position"]
    found["training_accuracy"] = trained[-1]["accuracy"]
    found["cpu_seconds"] = sum(event["processor_seconds"] for event in trained)
    return found


def table(results: list[dict[str, Any]]) -> str:
    """A line of Markdown for each variant: acceptance by seed, CPU seconds, the gain for each 100 of them."""
    lines = ["| variant | acceptance | CPU s of the steps | gain per 100 CPU s |", "|---|---|---|---|"]
    for name in dict.fromkeys(result["variant"] for result in results):
        runs = [result for result in results if result["variant"] == name]
        lengths = ", ".join(f"{each['acceptance']:.3f}" for each in runs)
        seconds = ", ".join(f"{each['cpu_seconds']:.0f}" for each in runs)
        gain = 100 * sum(each["acceptance"] - 1 for each in runs) / sum(each["cpu_seconds"] for each in runs)
        lines.append(f"| {name} | {lengths} | {seconds} | {gain:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for, one seed of all variants after the other."""
    a = arguments()
    variants = {name: VARIANTS[name] for name in a.only}
    variants |= {name: words for name, *words in map(str.split, a.variant)}
    results = []
    for seed in a.seeds:
        for name, words in variants.items():
            results.append(run(a, name, words, seed))
            print(json.dumps(results[-1]), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
