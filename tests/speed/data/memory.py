"""Peak memory and speed of prepare and merge on inputs larger than any memory limit would allow to hold.

    python tests/speed/data/memory.py [--gb 1.0] [--row-bytes 300] [--kinds jsonl array parquet gz merge] [-- FLAGS]

Writes made-up conversations (a tenth of them repeats, some are broken) to a temporary folder, runs each command in a
process of its own, prints one JSON line each, and exits 1 where a peak is 1.5 GB or more, or a row is not accounted
for. FLAGS go to prepare, e.g. ``-- --near-duplicates 0.9 --split-eval``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
LIMIT_MB = 1500
WORDS = [f"{a}{b}" for a in ("ba", "ko", "mi", "tu", "re", "sal", "dor", "pen") for b in ("na", "ri", "lo", "ge", "st")]


def rows(size: int, row_bytes: int, finish: bool) -> Iterator[dict[str, Any]]:
    """Conversations of about ``row_bytes`` each, ``size`` bytes in all; every tenth says what an earlier one said."""
    rng, made, number = random.Random(0), 0, 0
    earlier: list[Any] = []
    while made < size:
        number += 1
        if number % 10 == 0 and earlier:
            messages = rng.choice(earlier)
        else:
            words = max(4, int(row_bytes * rng.uniform(0.3, 1.7)) // 6)
            text = " ".join(rng.choices(WORDS, k=words))
            cut = len(text) // 3
            messages = [
                {"role": "user", "content": f"{number} {text[:cut]}"},
                {"role": "assistant", "content": text[cut:]},
            ]
            if number % 1000 == 1:
                earlier.append(messages)
        row: dict[str, Any] = {"id": f"row-{number}", "conversations": messages}
        if finish:
            row["finish"] = ["stop"]
        made += len(messages[0]["content"]) + len(messages[1]["content"]) + 110
        yield row


def place_of(folder: Path, kind: str) -> Path:
    """Where the input of a measurement is written."""
    names = {"jsonl": "in.jsonl", "gz": "in.jsonl.gz", "array": "in.json", "parquet": "in.parquet", "merge": "."}
    return folder / names[kind]


def write(folder: Path, kind: str, size: int, row_bytes: int) -> None:
    """The input of one measurement."""
    made = rows(size, row_bytes, finish=kind == "merge")
    path = place_of(folder, kind)
    if kind == "merge":
        for shard in range(0, 10_000_000, 500_000):
            path = folder / f"shard_{shard}-{shard + 500_000}.jsonl"
            with path.open("w") as f:
                for row in islice(made, 500_000):
                    f.write(json.dumps(row) + "\n")
            if not path.stat().st_size:
                path.unlink()
                break
        return
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist([next(made)])
        with pq.ParquetWriter(path, table.schema) as writer:
            while block := list(islice(made, 300_000)):  # row groups of some hundred megabytes
                writer.write_table(pa.Table.from_pylist(block, schema=table.schema), row_group_size=len(block))
        return
    with gzip.open(path, "wt", compresslevel=1) if kind == "gz" else path.open("w") as f:
        between = ",\n" if kind == "array" else "\n"
        f.write("[\n" if kind == "array" else "")
        for number, row in enumerate(made):
            f.write((between if number else "") + json.dumps(row))
            if kind == "jsonl" and number % 1000 == 500:
                f.write('\n{"id": "broken')
        f.write("\n]" if kind == "array" else "\n")


def measure(words: list[str]) -> tuple[dict[str, Any], float, float]:
    """Result, seconds and peak MB of a command in a process of its own."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "eagle3cli", *words, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 3):
        raise SystemExit(f"{' '.join(command)} failed")
    return json.loads(out), time.monotonic() - begun, usage.ru_maxrss / 1024


def main() -> int:
    """Measure all kinds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--row-bytes", type=int, default=1500)
    parser.add_argument("--kinds", nargs="+", default=["jsonl", "array", "parquet", "gz", "merge"])
    parser.add_argument("--folder", help="where the inputs are written (and removed); default: the temporary folder")
    parser.add_argument("flags", nargs="*")
    wanted = parser.parse_args()
    worst = 0.0
    for kind in wanted.kinds:
        with tempfile.TemporaryDirectory(dir=wanted.folder) as name:
            folder = Path(name)
            # A process of its own: what a process has held before it starts another counts as that one's peak.
            writer = multiprocessing.Process(target=write, args=(folder, kind, int(wanted.gb * 1e9), wanted.row_bytes))
            writer.start()
            writer.join()
            size = sum(file.stat().st_size for file in folder.iterdir())
            out = str(folder / "out")
            words = ["prepare", str(place_of(folder, kind)), "--output-path", out, *wanted.flags]
            if kind == "merge":
                words = ["merge", "--input-dir", name, "--output-dir", out, "--eval-size", "10000"]
            result, seconds, peak = measure(words)
            dispositions = ("written", "rejected", "duplicates", "filtered", "left_out")
            accounted = result["read"] == sum(result[name] for name in dispositions)
            told: dict[str, Any] = {"kind": kind, "input_mb": round(size / 1e6), "rows": result["read"]}
            told |= {name: result[name] for name in dispositions}
            told |= {"peak_mb": round(peak), "seconds": round(seconds, 1), "mb_per_s": round(size / 1e6 / seconds, 1)}
            print(json.dumps({**told, "accounted_for": accounted}), flush=True)
            worst = max(worst, peak if accounted else float("inf"))
    return int(worst >= LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main())
