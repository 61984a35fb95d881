"""Run by a Python that has SGLang: how far its states of a target are from those of transformers, as one JSON line.

python sglang_states.py FOLDER DTYPE
"""

from __future__ import annotations

import json
import sys

import torch

from eagle3cli.backends.target.hf import load_target
from eagle3cli.backends.target.sglang import load_sglang
from eagle3cli.data.hidden_states.quantize import relative_error
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.models import TargetSettings


def main(folder: str, dtype: str) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(5, 290, (length,), generator=generator).tolist() for length in (30, 21, 5, 60)]
    spec = TargetSettings.model_validate({"model_path": folder, "device": "cpu", "dtype": dtype})
    wanted = load_target(spec, Silent()).capture(rows)
    target = load_sglang(spec, Silent())
    twice = [target.capture(rows), target.capture(rows[::-1])[::-1]]
    found = {
        name: max(
            relative_error(a[part].float(), b[part].float()) for got in twice for a, b in zip(wanted, got, strict=True)
        )
        for part, name in enumerate(("aux", "last"))
    }
    print(json.dumps({**found, "dtype": str(twice[0][0][0].dtype)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
