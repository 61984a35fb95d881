"""Our training step beside SpecForge's own on this machine: CPU seconds, memory, and the ratio of each pair.

    python tests/speed/step/compare_specforge.py --python SPECFORGE_VENV/bin/python --bench bench_specforge.py

``--bench`` is a script that times SpecForge's step with the flags of ``train_step.py`` and prints one JSON line with
the same keys. The two run in turn, one after the other, never together. ``--case`` picks what is measured (repeatable):

    SEQ:MASK          one sequence, e.g. 1024:0.5
    lengths:FILE      one batch of real lengths, one a line; SpecForge gets the batch padded to its longest, in micro
                      batches of --pad-batch sequences whose times are added
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CASES = ("1024:0.5", "1024:1.0", "2048:0.5", "2048:1.0")
HEADER = ("case", "eagle3 s", "SpecForge s", "ratio", "eagle3 MB", "SpecForge MB", "memory")


def arguments() -> argparse.Namespace:
    """Flags; everything after ``--`` goes to both scripts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="Python of the environment that holds SpecForge")
    parser.add_argument("--bench", required=True, help="the script that times SpecForge's step")
    parser.add_argument("--case", action="append", help=f"default: {' '.join(CASES)}")
    parser.add_argument("--mask-fraction", type=float, default=1.0, help="of lengths: cases")
    parser.add_argument("--pad-batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1, help="times each pair; the least CPU time of each counts")
    parser.add_argument("rest", nargs="*", help="flags for both, after --")
    return parser.parse_args()


def measure(words: list[str]) -> dict[str, Any]:
    """The JSON line that a script prints last."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def pair(a: argparse.Namespace, case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both measurements of a case; times are CPU seconds of a whole batch."""
    ours, theirs = [sys.executable, str(HERE / "train_step.py")], [a.python, a.bench]
    kind, _, value = case.partition(":")
    if kind != "lengths":
        flags = ["--seq", kind, "--mask-fraction", value, *a.rest]
        return measure(ours + flags), measure(theirs + flags)
    lengths = [int(word) for word in Path(value).read_text().split()]
    mask = ["--mask-fraction", str(a.mask_fraction), *a.rest]
    padded = measure([*theirs, "--batch", str(a.pad_batch), "--seq", str(max(lengths)), *mask])
    padded["cpu_seconds_per_step"] *= len(lengths) / a.pad_batch
    return measure([*ours, "--lengths", value, *mask]), padded


def best(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The round with the least CPU time."""
    return min(rounds, key=lambda found: float(found["cpu_seconds_per_step"]))


def main() -> None:
    """Measure all cases; a JSON line each, then a table."""
    a = arguments()
    table = [HEADER]
    for case in a.case or CASES:
        pairs = [pair(a, case) for _ in range(a.rounds)]
        ours, theirs = best([x for x, _ in pairs]), best([x for _, x in pairs])
        seconds, megabytes = (
            [float(found[key]) for found in (ours, theirs)] for key in ("cpu_seconds_per_step", "peak_rss_mb")
        )
        line = {"case": case, "ratio": round(seconds[1] / seconds[0], 2), "eagle3": ours, "specforge": theirs}
        print(json.dumps(line), flush=True)
        table.append(
            (
                case,
                f"{seconds[0]:.2f}",
                f"{seconds[1]:.2f}",
                f"{seconds[1] / seconds[0]:.2f}x",
                f"{megabytes[0]:.0f}",
                f"{megabytes[1]:.0f}",
                f"{megabytes[0] / megabytes[1]:.2f}",
            )
        )
    for row in table:
        print("| " + " | ".join(row) + " |")


main()
