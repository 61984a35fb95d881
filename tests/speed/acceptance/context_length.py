"""Acceptance by the length of the context, of a draft trained on short rows and then on long ones, with a window and
without. Prints a table.

    PYTHONPATH=. python tests/speed/acceptance/context_length.py --run runs/quickstart --output runs/context \
        [--rows 100] [--held-out 4] [--window 512]

Long rows are exchanges of a run of the quickstart one after the other, up to the target's context: the training file's
to train on, a step for each row, and the held-out ones, in another order in each row, to measure on. So the same
replies stand behind short and long contexts; the target wrote them without what stands before, which costs every draft
some acceptance behind all but the first. The run's draft stands beside two that it is trained on. CPU seconds are those
of whole commands.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

LIMIT = 8192
"""Tokens of a long row: SmolLM2's context."""
ROOM = 64
"""Tokens that are left for what the template begins every row with."""
Row = list[dict[str, str]]


def arguments() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run of the quickstart")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100, help="long rows to train on, one a step; 0: train nothing")
    parser.add_argument("--held-out", type=int, default=4, help="long rows to measure on")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    return parser.parse_args()


def exchanges(path: Path) -> list[Row]:
    """Rows of one question and one reply."""
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line)["conversations"] for line in file]
    return [row for row in rows if [message["role"] for message in row] == ["user", "assistant"]]


class Joiner:
    """Exchanges one after the other, each used once."""

    def __init__(self, rows: list[Row], tokenizer: Any) -> None:
        self.rows: Iterator[Row] = iter(rows)
        self.tokenizer = tokenizer
        self.opening = 2 * self._tokens(rows[0]) - self._tokens(2 * rows[0])  # a system message of the template's own

    def length(self, row: Row) -> int:
        """Tokens that an exchange adds to a row."""
        return self._tokens(row) - self.opening

    def _tokens(self, row: Row) -> int:
        return len(self.tokenizer.apply_chat_template(row, tokenize=True, return_dict=False))

    def row(self) -> Row:
        """As many exchanges as there is room for."""
        joined: Row = []
        left = LIMIT - ROOM
        for exchange in self.rows:
            left -= self.length(exchange)
            if left < 0:
                break
            joined += exchange
        return joined


def write(path: Path, rows: list[Row]) -> None:
    """Conversations as a file."""
    lines = (json.dumps({"id": f"{path.stem}-{at}", "conversations": row}) for at, row in enumerate(rows))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def eagle3(*words: object) -> str:
    """A command's standard output; what it costs goes to stderr."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = [sys.executable, "-m", "eagle3cli", *map(str, words)]
    out = subprocess.run(line, stdout=subprocess.PIPE, check=True, encoding="utf-8").stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{words[0]}: {spent:.0f} CPU s", file=sys.stderr, flush=True)
    return out


def shuffled(rows: list[Row], seed: int) -> list[Row]:
    """The rows in another order."""
    return random.Random(seed).sample(rows, len(rows))


def made_rows(a: argparse.Namespace, target: Path) -> None:
    """``train.jsonl`` and ``eval.jsonl`` of long rows."""
    tokenizer = AutoTokenizer.from_pretrained(target)
    held_out = exchanges(a.run / "dataset" / "eval.jsonl")
    rows = [Joiner(shuffled(held_out, seed), tokenizer).row() for seed in range(a.held_out)]
    write(a.output / "eval.jsonl", rows)
    joiner = Joiner(shuffled(exchanges(a.run / "dataset" / "train.jsonl"), 0), tokenizer)
    write(a.output / "train.jsonl", [joiner.row() for _ in range(a.rows)])


def captured(a: argparse.Namespace, target: Path, name: str, *words: object) -> Path:
    """The target's states over ``NAME.jsonl``."""
    folder = a.output / "states" / name
    eagle3(
        *("hidden-states", "--target-model-path", target, "--train-data-path", a.output / f"{name}.jsonl"),
        *("--split", "train", "--output-path", folder, "--cache-dir", a.output / "cache", "--max-length", LIMIT),
        *("--states-dtype", "bfloat16", "--draft-vocab-size", 8192, "--build-dataset-num-proc", 1, "--threads", 1),
        *("--no-check-masks", *words),
    )
    return folder / "train"


def trained(a: argparse.Namespace, target: Path, store: Path, name: str, *words: object) -> Path:
    """The run's draft trained on the long rows."""
    folder = a.output / name
    settings = ["dtype=fastest", "optimizer=muon", "head_lr_scale=0", "min_lr_ratio=0.02", "ttt_length=3"]
    settings += ["mode=offline", "num_epochs=1", "batch_size=1", f"total_steps={a.rows}"]
    settings += [f"learning_rate={a.learning_rate}"]
    assignments = [part for word in settings for part in ("--set", f"train.{word}")]
    start = ("--draft-init", "draft", "--draft-model-path", a.run / "draft", "--train-hidden-states-path", store)
    eagle3("train", "--target-model-path", target, *assignments, *start, *words, "--threads", 1, "--output-dir", folder)
    return folder / "best" if (folder / "best").is_dir() else sorted((folder / "checkpoints").glob("epoch_*"))[-1]


def measured(name: str, draft: Path, target: Path, store: Path, *words: object) -> str:
    """A line of the table: acceptance length by context."""
    data = ("--eval-hidden-states-path", store, "--draft-model-path", draft, "--depths", 5, "--threads", 1)
    result = json.loads(eagle3("eval", "--target-model-path", target, *data, *words, "--json"))
    lengths = result["by_context_length"]
    print(json.dumps({"draft": name, "steps": result["context_steps"], **lengths}), flush=True)
    return f"| {name} | " + " | ".join(f"{length:.3f} at {context}" for context, length in lengths.items()) + " |"


def main() -> None:
    """Make what is missing, then measure each draft as it was trained, and the run's with the window too."""
    a = arguments()
    a.output.mkdir(parents=True, exist_ok=True)
    target = next((a.run / "target").iterdir())
    if not (a.output / "train.jsonl").is_file():
        made_rows(a, target)
    store = captured(a, target, "eval")
    window = ("--draft-window", a.window)
    lines = [
        measured("the run's", a.run / "draft", target, store),
        measured(f"the same, a window of {a.window}", a.run / "draft", target, store, *window),
    ]
    if a.rows:
        long = captured(a, target, "train", "--encoding", "int8")
        name = f"{a.rows} long rows"
        lines += [
            measured(name, trained(a, target, long, "long"), target, store),
            measured(f"{name}, window of {a.window}", trained(a, target, long, "windowed", *window), target, store),
        ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
