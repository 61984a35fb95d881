"""Run by torchrun: two ranks of which one does not come to a sum (``late``), or that wait for each other (``stuck``).

torchrun --nproc-per-node 2 waiting_ranks.py late|stuck SECONDS
"""

from __future__ import annotations

import sys
import time

import torch
import torch.distributed as dist

from eagle3cli.runtime.distributed import init_distributed


def main(how: str, timeout: float) -> None:
    with init_distributed(timeout) as ranks:
        ranks.all_reduce_sum([1.0])
        ranks.at("step 3")
        if how == "late" and ranks.rank == 1:
            time.sleep(60)  # its heartbeat goes on
        if how == "late":
            ranks.all_reduce([torch.ones(3)])
        with ranks.waiting():
            dist.recv(torch.ones(1), src=1 - ranks.rank)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
