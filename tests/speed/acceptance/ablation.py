"""What raises acceptance: the same short training with one thing changed, beside the base at equal CPU seconds.

    PYTHONPATH=. python tests/speed/acceptance/ablation.py --store runs/q/hidden_states/train --target TARGET \
        --eval-store runs/q/hidden_states/eval --output runs/ablation [--steps 124] [--seeds 0 1] [--only base lr-2e-3]
    ... --variant "mine train.ttt_length=4 train.batch_size=4"

The quickstart's settings train on a store of the quickstart's rows (``eagle3 run quickstart --to hidden-states --set
train.mode=offline --set train.echo_factor=1``), each row once, on one thread; every variant sees the same rows in the
same order. Acceptance length is measured on the held-out store, CPU seconds are those of the steps. What no option of
training does is in ``variants.py``. ``base`` is the recipe with the cosine that it had at first; with other
numbers of steps it gives a curve, and the gain of a variant is over that curve at the variant's own CPU seconds. A live
target costs CPU seconds besides, the same for all variants: the last column adds ``--row-seconds`` for every row of a
step. Runs that are done are not run again. One JSON line a run, then the table.

Some variants need more, which is made with the quickstart's settings:
``five-layers``     ``--more five=FOLDER`` of ``eagle3 hidden-states --aux-layers 1 7 14 20 26``
``half-sampled``    ``--more sampled=FOLDER`` of ``eagle3 regenerate --temperature 0.7 --top-p 0.8 --top-k 20``
``half-code``       ``--more code=FOLDER``: half as many rows as are trained on, code with the target's own replies
                    (``refresh.py`` makes some: ``replies/`` in its output)
``vocabulary-16k``  ``--vocabulary 16k=CACHE/vocab_mapping/FILE`` of ``eagle3 cache --draft-vocab-size 16384``
``vocabulary-32k``  ``--vocabulary 32k=...`` of ``--draft-vocab-size 32768``
``--drawn``         a store of held-out replies that were drawn as it says; without it losses are judged greedily; at
                    temperature 0 other held-out replies, such as code (``FOLDER/eval:0:1:0``)
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from eagle3cli.settings.load import load
from eagle3cli.settings.packaged import find_recipe

AVERAGES = "change:averages=ema:0.99,ema:0.95,tail:0.25"
CURVE = {
    "base-2/3": ["length:0.667"],
    "base": [AVERAGES],
    "base-3/2": ["length:1.5"],
    "base-2": ["length:2"],
}
"""The base with so many of its steps."""
VARIANTS = CURVE | {
    "lr-5e-4": ["train.learning_rate=5e-4"],
    "lr-2e-3": ["train.learning_rate=2e-3"],
    "batch-4": ["train.batch_size=4"],
    "batch-4-lr-7e-4": ["train.batch_size=4", "train.learning_rate=7e-4"],
    "batch-16": ["train.batch_size=16"],
    "adamw": ["train.optimizer=adamw"],
    "depths-1": ["train.ttt_length=1"],
    "depths-2": ["train.ttt_length=2"],
    "depths-2-longer": ["train.ttt_length=2", "length:2.25"],
    "depths-5": ["train.ttt_length=5"],
    "depths-1-to-5": ["train.ttt_length=1", "change:depths=1,2,3,4,5"],
    "half-of-the-rows": ["train.anchor_fraction=0.5"],
    "half-of-the-rows-batch-4": ["train.anchor_fraction=0.5", "train.batch_size=4"],
    "head-trained": ["train.head_lr_scale=0.3"],
    "warm-up-10%": ["train.warmup_ratio=0.1"],
    "wsd": ["train.lr_schedule=wsd"],
    "wsd-3/2": ["train.lr_schedule=wsd", "length:1.5"],
    "constant": ["train.lr_schedule=constant", AVERAGES],
    "ema": ["train.lr_schedule=constant", "train.ema_decay=0.999"],
    "constant-3/2": ["train.lr_schedule=constant", "length:1.5", "change:averages=ema:0.95"],
    "no-norm-output": ["draft.norm_output=false"],
    "fc-norm": ["draft.fc_norm=true"],
    "random-start": ["draft.init=random"],
    "loss-decay-1": ["train.loss_decay=1.0"],
    "loss-mix": ["train.loss=mix", "train.kl_decay=3"],
    "loss-lk": ["train.loss=lk"],
    "loss-tv": ["train.loss=tv"],
    "sequence-mean": ["change:sequence-mean"],
    "five-layers": ["store:five", "draft.aux_layers=[1,7,14,20,26]"],
    "vocabulary-16k": ["change:vocabulary={16k}"],
    "vocabulary-32k": ["change:vocabulary={32k}"],
    "second-layer": ["draft.config={output}/two-layers.json"],
    "half-sampled": ["besides:sampled", "change:halves"],
    "half-code": ["besides:code", "change:mixed"],
    "without-loops": ["change:without-loops=0.3"],
}
"""Settings by name; ``change:`` is one of ``variants.py``, ``store:`` and ``besides:`` one of ``--more`` in the store's
place or beside it, ``length:`` so many of the steps. Batches of another size see equally many rows: steps are counted
in rows."""

SAME_STEPS = (
    "base, ",
    "lr-",
    "sequence-mean",
    "constant",
    "ema",
    "warm-up",
    "wsd",
    "loss-decay",
    "without-loops",
    "half-sampled",
    "half-code",
)
"""Variants, by how their names begin, whose steps are the base's computation and take as long."""
SAMPLED = (*CURVE, "ema", "wsd", "wsd-3/2", "loss-mix", "loss-lk", "loss-tv", "half-sampled", "half-code")
"""Measured on the stores of ``--drawn``, too."""


def arguments() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, help="hidden states to train on")
    parser.add_argument("--eval-store", required=True, help="hidden states of other replies")
    parser.add_argument("--more", action="append", default=[], help="NAME=FOLDER of train/ and eval/ for some variants")
    parser.add_argument("--vocabulary", action="append", default=[], help="SIZE=FILE in vocab_mapping/ of a cache")
    parser.add_argument("--drawn", action="append", default=[], help="STORE:TEMPERATURE:TOP_P:TOP_K, measured besides")
    parser.add_argument("--target", required=True, help="the target's folder")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=124, help="of a batch of 8; other batches see the same rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--variant", action="append", default=[], help="'NAME KEY=VALUE ...' of your own")
    parser.add_argument("--eval-rows", type=int, default=256)
    parser.add_argument(
        "--row-seconds", type=float, default=0.1, help="CPU seconds of a live target for a row of a step"
    )
    return parser.parse_args()


def run(a: argparse.Namespace, name: str, words: list[str], seed: int) -> list[dict[str, Any]]:
    """Train one variant, unless that is done, and read its history; averages of weights count as variants."""
    folder = a.output / f"{name.replace('/', '-')}-{seed}"
    files = dict(word.split("=", 1) for word in a.vocabulary)
    words = [word.format(output=a.output, **files) for word in words]
    settings = [word for word in words if ":" not in word.partition("=")[0]]
    special = dict(word.split(":", 1) for word in words if word not in settings and not word.startswith("change:"))
    rows = 8 * round(a.steps * float(special.get("length", 1)))
    if not (folder / "metrics.jsonl").exists() or not any(e["event"] == "eval" for e in events(folder)):
        train(a, folder, settings, special, rows, seed, [w[7:] for w in words if w.startswith("change:")])
    trained = [event for event in events(folder) if event["event"] == "step"]
    measured = next(event for event in reversed(events(folder)) if event["event"] == "eval")
    found = {"variant": name, "seed": seed, "acceptance": measured["acceptance_length"][-1], "rows": rows}
    found["accepted_per_position"] = measured["accepted_per_position"]
    found["training_accuracy"] = trained[-1]["accuracy"]
    found["lines"] = [[len(e["depth_losses"]), e["tokens"], e["processor_seconds"]] for e in trained]
    found["drawn"] = {} if name not in SAMPLED else {drawn: at_temperature(a, folder, drawn) for drawn in a.drawn}
    path = folder / "averages.jsonl"
    averages = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    results = [found]
    for average in averages:
        own = {"acceptance": average["acceptance"], "drawn": {}}
        results.append(found | {"variant": f"{name}, {average['name']}"} | own)
    return results


def at_temperature(a: argparse.Namespace, folder: Path, drawn: str) -> float:
    """Acceptance on replies that were drawn at ``STORE:TEMPERATURE:TOP_P:TOP_K``; greedy at 0."""
    store, temperature, top_p, top_k = drawn.split(":")
    greedy = float(temperature) == 0
    name = title(drawn).replace(" ", "-") if greedy else f"drawn-{temperature}-{top_p}-{top_k}"
    path = folder / f"{name}.json"
    if not path.exists():
        line = ["eval", "--target-model-path", a.target, "--draft-model-path", folder / "best", "--threads", 1]
        line += ["--eval-hidden-states-path", store, "--depths", 5, "--temperature", temperature]
        line += ["--top-p", top_p, "--top-k", top_k, "--json"]
        ran = subprocess.run([sys.executable, "-m", "eagle3cli", *map(str, line)], stdout=subprocess.PIPE, check=True)
        path.write_bytes(ran.stdout)
    told = json.loads(path.read_text())
    return float((told if greedy else told["sampled"][0])["acceptance_length"]["5"])


def title(drawn: str) -> str:
    """What a measure of ``--drawn`` is called: the folder of its store, or how its replies were drawn."""
    store, how = drawn.split(":", 1)
    return f"at {how}" if float(how.split(":")[0]) else f"on {Path(store).parent.name}"


def set_cpu_seconds(results: list[dict[str, Any]]) -> None:
    """Of the steps: the tokens of each run by what a token takes, which is one number for all runs of a variant.

    It is the lower quartile over log lines ten steps apart, since other programs make some dearer.
    """

    def key(result: dict[str, Any], depths: int) -> tuple[str, int]:
        same = result["variant"] in CURVE or result["variant"].startswith(SAME_STEPS)
        return "base" if same else result["variant"], depths

    costs = defaultdict[tuple[str, int], list[float]](list)
    for result in results:
        for depths, tokens, seconds in result["lines"]:
            costs[key(result, depths)].append(seconds / tokens)
    for result in results:
        parts = [(sorted(costs[key(result, depths)]), tokens) for depths, tokens, _ in result["lines"]]
        result["cpu_seconds"] = sum(cost[len(cost) // 4] * tokens for cost, tokens in parts)


def events(folder: Path) -> list[dict[str, Any]]:
    """A run's history."""
    return [json.loads(event) for event in (folder / "metrics.jsonl").read_text().splitlines()]


def train(
    a: argparse.Namespace,
    folder: Path,
    words: list[str],
    special: dict[str, str],
    rows: int,
    seed: int,
    changes: list[str],
) -> None:
    """Train once."""
    steps = rows // load([find_recipe("quickstart")], words).settings.train.batch_size
    settings = ["train.time_budget=1000h", "launch.gpus=1", "train.mode=offline", "train.echo_factor=1"]
    settings += ["train.num_epochs=1", "train.save_interval=100000"]
    settings += ["train.lr_schedule=cosine", "train.min_lr_ratio=0.02", "train.ema_decay=none"]
    settings += [f"train.total_steps={steps}", f"train.eval_interval={steps}", f"train.eval_rows={a.eval_rows}"]
    assignments = [part for word in (*settings, *words) for part in ("--set", word)]
    stores = [a.store, a.eval_store]
    more = {name: Path(path) for name, path in (word.split("=", 1) for word in a.more)}
    if "store" in special:
        stores = [more[special["store"]] / "train", more[special["store"]] / "eval"]
    if "besides" in special:
        stores = [f"{a.store},{more[special['besides']] / 'train'}", a.eval_store]
    read = ("--train-hidden-states-path", *str(stores[0]).split(","), "--eval-hidden-states-path", stores[1])
    changes = [*changes, f"starts={a.output / 'starts'}"]
    line = ["train", "--config", find_recipe("quickstart"), "--target-model-path", a.target, *read, *assignments]
    line += ["--seed", seed, "--threads", 1, "--output-dir", folder, "--overwrite"]
    line = [sys.executable, Path(__file__).with_name("variants.py"), *changes, "--", *line]
    subprocess.run(list(map(str, line)), stdout=sys.stderr, check=True)


def gain(result: dict[str, Any], results: list[dict[str, Any]], row_seconds: float) -> float | None:
    """Acceptance over that of the base at the same CPU seconds, on a line through its two nearest lengths."""

    def seconds(run: dict[str, Any]) -> float:
        return math.log(run["cpu_seconds"] + row_seconds * run["rows"])

    own = [each for each in results if each["seed"] == result["seed"] and each["variant"] in CURVE]
    base = sorted((seconds(each), each["acceptance"]) for each in own)
    if len(base) < 2:
        return None
    pairs = list(pairwise(base))
    (begin, low), (end, high) = next((pair for pair in pairs if seconds(result) <= pair[1][0]), pairs[-1])
    return float(result["acceptance"] - low - (high - low) * (seconds(result) - begin) / (end - begin))


def table(results: list[dict[str, Any]], row_seconds: float) -> str:
    """A line of Markdown for each variant, by seed: acceptance, CPU seconds, the gain over the base at these."""
    drawn = list(dict.fromkeys(key for result in results for key in result["drawn"]))
    at = [title(key) for key in drawn]
    heads = ["variant", "acceptance", *at, "CPU s of the steps", "gain at equal CPU s", "with a live target's"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in dict.fromkeys(result["variant"] for result in results):
        runs = [result for result in results if result["variant"] == name]
        cells = [", ".join(f"{each['acceptance']:.3f}" for each in runs)]
        cells += [", ".join(f"{each['drawn'][key]:.3f}" for each in runs if key in each["drawn"]) for key in drawn]
        cells.append(", ".join(f"{each['cpu_seconds']:.0f}" for each in runs))
        for more in (0.0, row_seconds):
            gains = [gain(each, results, more) for each in runs]
            cells.append(", ".join(f"{value:+.3f}" for value in gains if value is not None))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for, one seed of all variants after the other."""
    a = arguments()
    variants = {name: VARIANTS[name] for name in a.only}
    variants |= {name: words for name, *words in map(str.split, a.variant)}
    a.output.mkdir(parents=True, exist_ok=True)
    (a.output / "two-layers.json").write_text('{"num_hidden_layers": 2}\n')
    results = []
    for seed in a.seeds:
        for name, words in variants.items():
            for result in run(a, name, words, seed):
                results.append(result)
                print(json.dumps(result), flush=True)
    set_cpu_seconds(results)
    print(table(results, a.row_seconds))


if __name__ == "__main__":
    main()
