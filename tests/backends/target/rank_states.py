"""Run by torchrun: captures rows with targets that are spread over the ranks; the first rank writes what came out.

torchrun --nproc-per-node 2 rank_states.py OUT FOLDER...
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from eagle3cli.backends.target.hf import load_target
from eagle3cli.runtime.distributed import init_distributed
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.models import TargetSettings

ROWS = ([5, 9, 30, 7, 12, 44, 90, 3, 17, 201], [7, 8, 9, 10], [40, 41, 250, 33, 12, 9])


def main(out: Path, folders: list[Path]) -> None:
    found = {}
    with init_distributed() as ranks:
        for folder in folders:
            spec = TargetSettings(model_path=str(folder), device="cpu", tp_size=ranks.world_size)
            for row, (aux, last) in enumerate(load_target(spec, Silent()).capture(ROWS)):
                found |= {f"{folder.name}.{row}.aux": aux.clone(), f"{folder.name}.{row}.last": last.clone()}
        if ranks.is_main:
            save_file(found, out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
