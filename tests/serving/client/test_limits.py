"""How the limit of a server moves, and when it is left alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.serving.client.limits import Breaker, Limit


def answers(limit: Limit, count: int) -> None:
    for _ in range(count):
        limit.record_answer(limit.places)


def test_a_limit_doubles_in_a_round_until_the_server_objects() -> None:
    limit = Limit(512)
    answers(limit, 16)
    assert limit.places == 32
    answers(limit, 32)
    assert limit.places == 64
    limit.record_overload(sent=0, now=1)
    assert limit.places == 44
    answers(limit, 45)
    assert limit.places == 45


def test_one_round_of_refusals_shrinks_once() -> None:
    limit = Limit(512, now=100)
    for _ in range(30):
        limit.record_overload(sent=0, now=1)
    assert limit.places == 70
    limit.record_overload(sent=1, now=3)  # sent when the limit had just shrunk
    assert limit.places == 49


def test_a_limit_that_holds_nothing_back_stays() -> None:
    limit = Limit(512)
    for _ in range(100):
        limit.record_answer(in_flight=3)
    assert limit.places == 16


def test_a_queue_inside_the_server_shrinks_it_to_what_runs_and_some() -> None:
    limit = Limit(512, now=512)
    limit.record_load(running=64, waiting=448)
    assert limit.places == 82
    assert limit.queued == 448
    answers(limit, 100)
    assert limit.places == 82  # while there is a queue it does not grow
    limit.record_load(running=64, waiting=10)
    assert limit.queued == 0


def test_an_idle_server_is_given_more_before_its_first_answers() -> None:
    limit = Limit(512)
    limit.record_load(running=16, waiting=0)
    assert limit.places == 24
    limit.record_load(running=3, waiting=0)
    assert limit.places == 24


@given(
    st.lists(st.sampled_from(["answered", "objected", "queue", "idle", "restart"]), max_size=60), st.integers(1, 600)
)
def test_a_limit_stays_between_one_and_the_most(steps: list[str], most: int) -> None:
    limit = Limit(most)
    for now, step in enumerate(steps):
        if step == "answered":
            limit.record_answer(limit.places)
        elif step == "objected":
            limit.record_overload(now, now)
        elif step == "restart":
            limit.restart()
        else:
            limit.record_load(4, 100 if step == "queue" else 0)
        assert 1 <= limit.places <= most


def test_a_breaker_opens_after_failures_in_a_row_and_waits_longer_each_time() -> None:
    breaker = Breaker(failures_allowed=3)
    breaker.record_failure("500", 0)
    breaker.record_failure("500", 0)
    breaker.record_success()
    breaker.record_failure("500", 0)
    breaker.record_failure("500", 0)
    assert not breaker.is_open
    breaker.record_failure("500", 10)
    assert (breaker.is_open, breaker.next_check, breaker.reason) == (True, 11, "500")
    breaker.record_failed_check("ill", 11)
    assert breaker.next_check == 13
    for _ in range(10):
        breaker.record_failed_check("ill", 20)
    assert breaker.next_check == 35
    breaker.close()
    assert not breaker.is_open


def test_a_refused_connection_opens_at_once() -> None:
    breaker = Breaker()
    breaker.record_failure("no connection", 0, is_dead=True)
    assert breaker.is_open
