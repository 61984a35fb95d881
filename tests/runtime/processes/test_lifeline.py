"""A rank that goes without a word is noticed by the one before it; one that says so is not missed."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import torch.distributed as dist

from eagle3cli.runtime.processes.lifeline import Lifeline, own_address

RANKS = 3


def ring(lost: list[tuple[int, int]], noticed: threading.Event) -> list[Lifeline]:
    """Ranks in threads; ``lost`` gets (who noticed, who has gone)."""
    master = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def hold(rank: int) -> Lifeline:
        def tell(other: int) -> None:
            lost.append((rank, other))
            noticed.set()

        store = dist.TCPStore("127.0.0.1", master.port, is_master=False)
        return Lifeline(store, rank, RANKS, tell)

    with ThreadPoolExecutor(RANKS) as pool:
        return list(pool.map(hold, range(RANKS)))


def test_who_has_gone_without_a_word_is_missed() -> None:
    lost: list[tuple[int, int]] = []
    noticed = threading.Event()
    ranks = ring(lost, noticed)
    ranks[2].from_previous.shutdown(socket.SHUT_RDWR)  # as the system does for a process that was killed
    assert noticed.wait(60)
    assert lost == [(1, 2)]


def test_who_lets_go_is_not() -> None:
    lost: list[tuple[int, int]] = []
    ranks = ring(lost, threading.Event())
    with ThreadPoolExecutor(RANKS) as pool:
        list(pool.map(Lifeline.let_go, ranks))
    assert lost == []


def test_ranks_of_one_machine_meet_on_its_loopback() -> None:
    assert own_address() == "127.0.0.1"
