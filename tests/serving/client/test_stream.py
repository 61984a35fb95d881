"""Streams as the real servers gave them, cut at any byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.serving.client.errors import Lost
from eagle3cli.serving.client.protocol import Answer
from eagle3cli.serving.client.stream import Events, StreamedAnswer


def raw(shared: Path, name: str) -> bytes:
    text: str = json.loads((shared / "fixtures" / f"{name}.json").read_text())["response"]["raw"]
    return text.encode()


def play(stream: bytes, size: int = 10**6) -> Answer:
    seconds = iter(range(10**6))
    streamed = StreamedAnswer(lambda: float(next(seconds)))
    for start in range(0, len(stream), size):
        streamed.feed(stream[start : start + size])
    return streamed.answer()


@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_a_chat_stream_is_its_answer(shared: Path, size: int) -> None:
    answer = play(raw(shared, "sglang_http/chain_chat_stream_usage"), size)
    assert answer.text.split()[:2] == ["<think>", "31"]
    assert answer.finish == "length"
    assert answer.frames[-1][1] == answer.tokens == len(answer.text.split())
    times = [time for time, _ in answer.frames]
    assert times == sorted(times)


def test_reasoning_and_stops(shared: Path) -> None:
    answer = play(raw(shared, "sglang_http/tree_think_chat_stream_usage"))
    assert "31" in (answer.reasoning or "")
    assert "31" not in answer.text
    assert play(raw(shared, "sglang_http/tree_think_chat_stream_stop")).finish == "stop"


def test_a_server_that_counts_nothing_is_counted_by_frames(shared: Path) -> None:
    answer = play(raw(shared, "sglang_http/tree_think_chat_stream_no_usage"))
    assert 0 < answer.tokens <= len((answer.text + (answer.reasoning or "")).split())


def test_generate_streams_are_cumulative_and_end_with_the_counters(shared: Path) -> None:
    answer = play(raw(shared, "sglang_http/tree_think_generate_stream"))
    assert answer.token_ids is not None
    assert len(answer.token_ids) == answer.tokens == answer.frames[-1][1]
    assert answer.acceptance is not None
    assert answer.acceptance.passes > 0


def test_vllm_streams(shared: Path) -> None:
    answer = play(raw(shared, "vllm_http/eagle3_chat_stream_usage"))
    assert (answer.tokens, answer.finish) == (12, "length")
    assert answer.text.split() == [str(i) for i in range(18, 30)]


def test_a_cut_stream_is_lost_at_every_byte(shared: Path) -> None:
    whole = raw(shared, "sglang_http/chain_chat_stream_usage").rstrip()
    for length in (0, len(whole) // 3, len(whole) // 2, len(whole) - len("data: [DONE]")):
        with pytest.raises(Lost):
            play(whole[:length])


def test_an_error_inside_a_stream_is_lost() -> None:
    with pytest.raises(Lost, match="out of memory"):
        play(b'data: {"error": {"message": "out of memory"}}\n\n')
    with pytest.raises(Lost, match="malformed"):
        play(b"data: {broken\n\n")


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=8)), st.data())
def test_events_do_not_depend_on_where_chunks_end(texts: list[str], data: st.DataObject) -> None:
    stream = "".join(f": remark\r\nevent: x\r\ndata: {text}\r\n\r\n" for text in texts).encode()
    events = Events()
    result = []
    at = 0
    while at < len(stream):
        size = data.draw(st.integers(1, len(stream) - at))
        result += events.feed(stream[at : at + size])
        at += size
    assert result == [text.encode().strip() for text in texts]
