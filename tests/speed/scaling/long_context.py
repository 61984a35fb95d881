"""Memory of a training step by the length of its one sequence, with and without checkpointing, beside the forecast.

    PYTHONPATH=. python tests/speed/scaling/long_context.py                       # 4k to 64k tokens
    PYTHONPATH=. python tests/speed/scaling/long_context.py --lengths 4096 8192

A small draft, so that 64k tokens take minutes on one core; every line is a process of `train_step.py` of its own. What
is shown is what the sequence adds to the process: the same step over 64 tokens is taken off.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from eagle3cli.backends.capture.memory import TargetShape
from eagle3cli.models.config import DraftConfig
from eagle3cli.training.forecast.memory import forecast
from eagle3cli.training.forecast.sizes import Workload

ROOT = Path(__file__).resolve().parents[3]
HIDDEN, HEADS, GROUPS, INTERMEDIATE, VOCAB, DRAFT_VOCAB, DEPTHS = 32, 1, 1, 88, 4096, 2048, 3
MASK = 0.7
"""Share of the sequence that carries loss: its end."""
LEAST = 64


def measured(length: int, recompute: bool) -> dict[str, Any]:
    """The line that ``train_step.py`` prints."""
    sizes = {
        "hidden": HIDDEN,
        "heads": HEADS,
        "kv-heads": GROUPS,
        "inter": INTERMEDIATE,
        "vocab": VOCAB,
        "draft-vocab": DRAFT_VOCAB,
        "ttt": DEPTHS,
        "seq": length,
        "mask-fraction": MASK,
        "steps": 1,
        "warmup": 0,
    }
    words = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    script = str(ROOT / "tests/speed/step/train_step.py")
    command = [sys.executable, script, *words, *(["--activation-checkpointing"] if recompute else [])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def foretold(length: int, recompute: bool) -> int:
    """Bytes of the step by its forecast, with the states that the script itself keeps."""
    draft = DraftConfig(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        head_dim=HIDDEN // HEADS,
        vocab_size=VOCAB,
        draft_vocab_size=DRAFT_VOCAB,
        target_hidden_size=HIDDEN,
        aux_layers=(1, 2, 3),
    )
    work = Workload(
        draft=draft,
        target=TargetShape(0, 8, HIDDEN, INTERMEDIATE, HIDDEN, VOCAB, tied=True),
        online=False,
        tokens=length,
        sequences=1,
        longest_sequence=length,
        positions=round(length * MASK),
        ttt_steps=DEPTHS,
        recompute=recompute,
    )
    return forecast(work).peak_bytes + 4 * length * 4 * HIDDEN


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16_384, 32_768, 65_536])
    lengths = parser.parse_args().lengths
    columns = ("tokens", "checkpointing", "measured MB", "forecast MB", "ratio", "bytes a token", "CPU s")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for recompute in (False, True):
        least = measured(LEAST, recompute)["peak_rss_mb"]
        for length in lengths:
            found = measured(length, recompute)
            added = (found["peak_rss_mb"] - least) * 2**20 / 1e6
            expected = (foretold(length, recompute) - foretold(LEAST, recompute)) / 1e6
            told = "yes" if recompute else "no"
            numbers = f"{added:,.0f} | {expected:,.0f} | {expected / added:.2f} | {added * 1e6 / length:,.0f}"
            print(f"| {length:,} | {told} | {numbers} | {found['cpu_seconds_per_step']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
