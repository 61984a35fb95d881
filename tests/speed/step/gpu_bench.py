"""Everything worth knowing of one GPU in one call of at most ten minutes; needs no network and no model files.

    make bench-gpu                                     # writes runs/bench-gpu/gpu.json
    PYTHONPATH=. python tests/speed/step/gpu_bench.py --out FOLDER --specforge FOLDER_OF_ITS_PACKAGE

Sections (``gpu_sections.py``) run in the order of their worth, each by itself, and what is known is written to gpu.json
after each, so that a call that is cut off still brings something back. ``--small`` runs tiny shapes: the tests do, on a
pretend GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.speed.step.gpu_sections import SECTIONS, Scale

BUDGET = 480.0
"""Seconds after which no section begins any more."""


def run(scale: Scale, out: Path, budget: float) -> dict[str, Any]:
    """Run all sections; what each found, or how it failed, by its name."""
    began = time.monotonic()
    found: dict[str, Any] = {}
    out.mkdir(parents=True, exist_ok=True)
    for name, section in SECTIONS.items():
        at = time.monotonic()
        try:
            found[name] = "left out: no time" if at - began > budget else section(scale)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            found[name] = {"error": text[:500], "at": traceback.format_exc()[-1500:]}
        if scale.real:
            torch.cuda.empty_cache()
        print(f"## {name} ({time.monotonic() - at:.1f} s)\n{json.dumps(found[name], indent=1)}", flush=True)
        (out / "gpu.json").write_text(json.dumps(found, indent=1))
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Returns 1 where a section failed, 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-gpu"))
    parser.add_argument("--specforge", type=Path, help="a folder that holds SpecForge's package")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds after which no section begins any more")
    parser.add_argument("--small", action="store_true")
    a = parser.parse_args(words)
    if not torch.cuda.is_available():
        print("bench-gpu: no CUDA device that torch can use", file=sys.stderr)
        return 2
    found = run(Scale(a.small, a.specforge), a.out, a.budget)
    return int(any(isinstance(value, dict) and "error" in value for value in found.values()))


if __name__ == "__main__":
    sys.exit(main())
