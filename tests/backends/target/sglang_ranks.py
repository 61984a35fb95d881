"""Run by torchrun with the stand-in for SGLang on the path: a command, as ``auto`` chooses where there is a GPU.

torchrun --nproc-per-node N sglang_ranks.py train ...
"""

from __future__ import annotations

import sys

import torch

from eagle3cli.backends.target import auto
from eagle3cli.cli.main import main

if __name__ == "__main__":
    auto.pick_device = lambda name: torch.device("cuda")  # for the choice alone: everything else sees the CPU
    sys.exit(main(sys.argv[1:]))
