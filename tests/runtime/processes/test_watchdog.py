"""Who is late: judged from what the ranks say."""

from __future__ import annotations

import time

import pytest

from eagle3cli.runtime.processes.watchdog import Heartbeat, Watchdog


class Store:
    """A process group's store, in this process."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def get(self, key: str) -> bytes:
        return self.values[key].encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)


class Ranks:
    """Two ranks whose watchdogs look ten times a second of a clock that is turned by hand."""

    def __init__(self, timeout: float) -> None:
        self.now = 0.0
        self.late: list[str] = []
        self.warned: list[str] = []
        store = Store()
        self.both = [self._watchdog(store, rank, timeout) for rank in range(2)]

    def _watchdog(self, store: Store, rank: int, timeout: float) -> Watchdog:
        def on_late(heartbeat: Heartbeat | None, message: str) -> None:
            self.late.append(message)

        return Watchdog(store, rank, 2, timeout, on_late, self.warned.append, clock=lambda: self.now)

    def pass_time(self, seconds: float, *ranks: int) -> None:
        """Let time pass in which only these ranks live, until one of them ends the run."""
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            going = [self.both[rank].look() for rank in ranks]
            if not all(going):
                return


def test_ranks_that_move_are_never_late() -> None:
    ranks = Ranks(1.0)
    for step in range(20):
        for one in ranks.both:
            one.at(f"step {step}")
        with ranks.both[0].waiting():
            ranks.pass_time(0.2, 0, 1)
    assert not ranks.late
    assert not ranks.warned


def test_one_that_beats_but_does_not_move_is_late_once_another_waits() -> None:
    ranks = Ranks(0.6)
    ranks.both[1].at("step 7")
    with ranks.both[0].waiting():
        ranks.pass_time(1.5, 0, 1)
    assert "rank 1" in ranks.late[0]
    assert "has not moved on from step 7" in ranks.late[0]
    assert "the others wait" in ranks.warned[0]


def test_long_work_outside_the_loop_is_not_late() -> None:
    ranks = Ranks(0.5)
    with ranks.both[0].waiting():
        ranks.pass_time(1.2, 0, 1)
    assert not ranks.late


def test_one_that_is_silent_is_late_wherever_it_is() -> None:
    ranks = Ranks(0.5)
    ranks.pass_time(0.3, 1)
    ranks.pass_time(1.2, 0)
    assert "rank 1" in ranks.late[0]
    assert "does not answer" in ranks.late[0]


@pytest.mark.parametrize("place", ["", "step 3"])
def test_waiting_ranks_are_not_late_themselves(place: str) -> None:
    watcher = Ranks(0.1).both[0]
    watcher.latest[1] = (Heartbeat(alive=1, moved=5), 0.0, -60.0)
    assert watcher._find_late({1: Heartbeat(alive=2, moved=5, waiting=True, place=place)}) is None


@pytest.mark.parametrize("inner", [False, True])
def test_a_wait_within_a_wait_is_one(inner: bool) -> None:
    one = Ranks(1.0).both[0]
    with one.waiting():
        if inner:
            with one.waiting():
                assert one.own.waiting
        assert one.own.waiting
    assert not one.own.waiting


def test_all_that_wait_for_each_other_are_stuck_and_said_where() -> None:
    ranks = Ranks(0.6)
    ranks.both[0].at("step 7")
    ranks.both[1].at("evaluation after step 6")
    with ranks.both[0].waiting(), ranks.both[1].waiting():
        ranks.pass_time(1.5, 0, 1)
    assert "all 2 ranks have waited for each other for 1 s" in ranks.late[0]
    assert "rank 0 in step 7, rank 1 in evaluation after step 6" in ranks.late[0]


def test_a_silent_rank_is_named_though_its_last_word_was_that_it_waits() -> None:
    ranks = Ranks(0.8)
    with ranks.both[0].waiting(), ranks.both[1].waiting():
        ranks.pass_time(0.3, 1)
        ranks.pass_time(1.6, 0)
    assert [("rank 1" in message, "does not answer" in message) for message in ranks.late] == [(True, True)]


def test_ranks_that_wait_and_move_are_not_stuck() -> None:
    ranks = Ranks(0.6)
    for _ in range(15):
        with ranks.both[0].waiting(), ranks.both[1].waiting():
            ranks.pass_time(0.2, 0, 1)
    assert not ranks.late


def test_the_thread_looks_until_it_is_told_to_end() -> None:
    ranks = Ranks(0.1)
    one = ranks.both[0]
    one.thread.start()
    while not one.own.alive:
        time.sleep(0.01)
    one.ended.set()
    one.thread.join()
    assert one.store.check(["beat/0"])
