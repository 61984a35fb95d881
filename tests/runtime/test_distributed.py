"""Which time-outs the process groups get, and how a message that does not end is told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from eagle3cli.runtime import distributed
from eagle3cli.runtime.distributed import COLLECTIVE_TIMEOUT, DEVICE_SLACK, Ranks, init_distributed
from eagle3cli.runtime.processes import launch
from tests.backends.target.test_group import torchrun


class Store:
    """A store that nobody else has."""

    def clone(self) -> Store:
        return self


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What the groups of this process, the first of two, are made with."""
    calls: dict[str, dict[str, Any]] = {}

    def record(name: str) -> Any:
        return lambda *words, **options: calls.setdefault(name, {"words": words, **options}) and name

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(distributed, "_rendezvous", lambda size, timeout: (Store(), 0, size))
    monkeypatch.setattr(distributed, "end_with_parent", lambda: None)
    monkeypatch.setattr(distributed, "Watchdog", lambda *_: SimpleNamespace(thread=Thread(), ended=Event()))
    monkeypatch.setattr("torch.distributed.distributed_c10d.PrefixStore", lambda name, store: store)
    for name in ("init_process_group", "new_group", "destroy_process_group"):
        monkeypatch.setattr(dist, name, record(name))
    return calls


class Thread:
    def start(self) -> None:
        """No thread."""


class Event:
    def set(self) -> None:
        """Nobody waits for it."""


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> list[int]:
    devices: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    return devices


def test_nccl_waits_a_little_longer_than_the_watchdog(
    monkeypatch: pytest.MonkeyPatch, made: dict[str, dict[str, Any]]
) -> None:
    devices = with_gpus(monkeypatch, 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with init_distributed(600.0) as ranks:
        assert devices == [1]
        assert made["init_process_group"]["words"] == ("cpu:gloo,cuda:nccl",)
        assert made["init_process_group"]["timeout"] == timedelta(seconds=600 + DEVICE_SLACK)
        assert (made["new_group"]["backend"], made["new_group"]["timeout"]) == ("gloo", COLLECTIVE_TIMEOUT)
        assert (ranks.group, ranks.host_group) == (None, "new_group")


def test_without_a_time_out_devices_wait_as_hosts_do(
    monkeypatch: pytest.MonkeyPatch, made: dict[str, dict[str, Any]]
) -> None:
    with_gpus(monkeypatch, 2)
    with init_distributed():
        assert made["init_process_group"]["timeout"] == COLLECTIVE_TIMEOUT


def test_a_cpu_has_one_group_that_waits_for_as_long_as_it_takes(
    monkeypatch: pytest.MonkeyPatch, made: dict[str, dict[str, Any]]
) -> None:
    with_gpus(monkeypatch, 0)
    with init_distributed(600.0) as ranks:
        assert made["init_process_group"]["words"] == ("gloo",)
        assert made["init_process_group"]["timeout"] == COLLECTIVE_TIMEOUT
        assert "new_group" not in made
        assert (ranks.group, ranks.host_group) == (None, None)


def test_hosts_meet_in_the_hosts_group_and_devices_in_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[str, str, bool]] = []

    class Watching:
        inside = False

        @contextmanager
        def waiting(self) -> Iterator[None]:
            self.inside = True
            yield
            self.inside = False

    watching = Watching()
    for name in ("barrier", "all_reduce", "broadcast"):

        def call(*_: Any, group: str, name: str = name) -> None:
            used.append((name, group, watching.inside))

        monkeypatch.setattr(dist, name, call)
    ranks = Ranks(0, 2, watching, group="devices", host_group="hosts")  # type: ignore[arg-type]
    ranks.barrier()
    ranks.all_reduce_sum([1.0])
    ranks.all_reduce([torch.ones(2)])
    ranks.broadcast([torch.ones(2)])
    assert used == [
        ("barrier", "hosts", True),
        ("all_reduce", "hosts", True),
        ("all_reduce", "devices", True),
        ("barrier", "hosts", True),
        ("broadcast", "devices", True),
    ]
    Ranks(0, 2, group="workers").barrier()
    assert used[-1] == ("barrier", "workers", False)


def test_a_rank_that_nccl_has_ended_is_told_so(tmp_path: Path) -> None:
    failure = SimpleNamespace(exitcode=-6, signal_name=lambda: "SIGABRT")
    error = launch._error(tmp_path, SimpleNamespace(failures={1: failure}), 2, None)
    assert "rank 1 of 2 was ended by SIGABRT" in str(error)
    assert "NCCL does that when a message between GPUs outlasts --dist-timeout" in str(error)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("late", r"rank 1 \(.*, process \d+\) has not moved on from step 3 for \d s"),
        ("stuck", r"all 2 ranks have waited for each other for \d s: rank 0 in step 3, rank 1 in step 3"),
    ],
)
def test_what_keeps_the_ranks_waiting_is_named(tmp_path: Path, how: str, said: str) -> None:
    done = torchrun(tmp_path, str(Path(__file__).with_name("waiting_ranks.py")), how, "4")
    assert done.returncode != 0
    assert re.search(said, done.stderr), done.stderr
