"""What an engine that makes its own process group needs of the processes that are there."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import pytest
import torch.distributed as dist

from eagle3cli.backends.target import sglang
from eagle3cli.backends.target.group import world_of_neighbours


def test_a_rank_that_torchrun_has_started_makes_a_group_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")  # torch takes the store for torchrun's, and waits for it
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    with world_of_neighbours(1):
        dist.init_process_group("gloo", init_method=where, rank=0, world_size=1, timeout=timedelta(seconds=20))
    try:
        assert dist.get_world_size() == 1
        assert os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True"
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("ranks", "binding"), [(1, None), (2, "4-4|5-5"), (3, "4-4|5-5|4-4")])
def test_ranks_share_the_cores_that_there_are(ranks: int, binding: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sglang, "available_cpus", lambda: [4, 5])
    monkeypatch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "")  # kept, so that it is taken back
    monkeypatch.delenv("SGLANG_CPU_OMP_THREADS_BIND")
    sglang._share_cores(ranks)
    assert os.environ.get("SGLANG_CPU_OMP_THREADS_BIND") == binding
