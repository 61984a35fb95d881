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


def watchdog(store: Store, rank: int, timeout: float, late: list[str], warned: list[str]) -> Watchdog:
    return Watchdog(store, rank, 2, timeout, lambda heartbeat, message: late.append(message), warned.append)


def run_for(seconds: float, *watchdogs: Watchdog) -> None:
    for one in watchdogs:
        one.thread.start()
    time.sleep(seconds)
    for one in watchdogs:
        one.ended.set()
        one.thread.join()


def test_ranks_that_move_are_never_late() -> None:
    store, late, warned = Store(), list[str](), list[str]()
    both = [watchdog(store, rank, 1.0, late, warned) for rank in range(2)]
    for one in both:
        one.thread.start()
    for step in range(20):
        for one in both:
            one.at(f"step {step}")
        with both[0].waiting():
            time.sleep(0.1)
    for one in both:
        one.ended.set()
        one.thread.join()
    assert not late
    assert not warned


def test_one_that_beats_but_does_not_move_is_late_once_another_waits() -> None:
    store, late, warned = Store(), list[str](), list[str]()
    both = [watchdog(store, rank, 0.6, late, warned) for rank in range(2)]
    both[1].at("step 7")
    with both[0].waiting():
        run_for(1.5, *both)
    assert late
    assert "rank 1" in late[0]
    assert "has not moved on from step 7" in late[0]
    assert "the others wait" in warned[0]


def test_long_work_outside_the_loop_is_not_late() -> None:
    store, late, warned = Store(), list[str](), list[str]()
    both = [watchdog(store, rank, 0.5, late, warned) for rank in range(2)]
    with both[0].waiting():
        run_for(1.2, *both)
    assert not late


def test_one_that_is_silent_is_late_wherever_it_is() -> None:
    store, late, warned = Store(), list[str](), list[str]()
    first = watchdog(store, 0, 0.5, late, warned)
    other = watchdog(store, 1, 0.5, late, warned)
    other.thread.start()
    time.sleep(0.3)
    other.ended.set()
    run_for(1.2, first)
    assert "rank 1" in late[0]
    assert "does not answer" in late[0]


@pytest.mark.parametrize("place", ["", "step 3"])
def test_waiting_ranks_are_not_late_themselves(place: str) -> None:
    watcher, now = watchdog(Store(), 0, 0.1, [], []), time.monotonic()
    watcher.latest[1] = (Heartbeat(alive=1, moved=5), now, now - 60)
    assert watcher._find_late({1: Heartbeat(alive=2, moved=5, waiting=True, place=place)}) is None


@pytest.mark.parametrize("inner", [False, True])
def test_a_wait_within_a_wait_is_one(inner: bool) -> None:
    one = watchdog(Store(), 0, 1.0, [], [])
    with one.waiting():
        if inner:
            with one.waiting():
                assert one.own.waiting
        assert one.own.waiting
    assert not one.own.waiting


def test_all_that_wait_for_each_other_are_stuck_and_said_where() -> None:
    store, late, warned = Store(), list[str](), list[str]()
    both = [watchdog(store, rank, 0.6, late, warned) for rank in range(2)]
    both[0].at("step 7")
    both[1].at("evaluation after step 6")
    with both[0].waiting(), both[1].waiting():
        run_for(1.5, *both)
    assert "all 2 ranks have waited for each other for 1 s" in late[0]
    assert "rank 0 in step 7, rank 1 in evaluation after step 6" in late[0]


def test_a_silent_rank_is_named_though_its_last_word_was_that_it_waits() -> None:
    store, late, warned = Store(), list[str](), list[str]()
    first = watchdog(store, 0, 0.8, late, warned)
    other = watchdog(store, 1, 0.8, late, warned)
    with first.waiting(), other.waiting():
        other.thread.start()
        time.sleep(0.3)
        other.ended.set()
        run_for(1.6, first)
    assert [("rank 1" in message, "does not answer" in message) for message in late] == [(True, True)]


def test_ranks_that_wait_and_move_are_not_stuck() -> None:
    store, late, warned = Store(), list[str](), list[str]()
    both = [watchdog(store, rank, 0.6, late, warned) for rank in range(2)]
    for one in both:
        one.thread.start()
    for _ in range(15):
        with both[0].waiting(), both[1].waiting():
            time.sleep(0.1)
    for one in both:
        one.ended.set()
        one.thread.join()
    assert not late
