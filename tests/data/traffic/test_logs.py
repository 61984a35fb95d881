"""Logs in the shapes that servers and proxies write: what becomes a row, and that every other line is told."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eagle3cli.data.traffic.exchange import short_name
from eagle3cli.data.traffic.logs import LogEntry, read_logs

ASKED = [{"role": "user", "content": "How?"}]
REQUEST = {"model": "m", "messages": ASKED, "temperature": 0}
MESSAGE = {"role": "assistant", "content": "So."}
CHOICES = [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}]
RESPONSE = {"id": "c1", "model": "m", "choices": CHOICES}
RESPONSES_REQUEST = {"model": "m", "input": "How?", "temperature": 0}
RESPONSES_REPLY: dict[str, Any] = {
    "object": "response",
    "status": "completed",
    "output": [
        {"type": "reasoning", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "So."}]},
    ],
}
THOUGHT = RESPONSES_REPLY["output"][:1]
EMPTY = {"type": "message", "role": "assistant", "content": None}
REFUSAL = {**EMPTY, "content": [{"type": "refusal", "refusal": "No."}]}
CHUNKS: list[dict[str, Any]] = [
    {"id": "c1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"role": "assistant"}}]},
    {"id": "c1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "S"}}]},
    {"id": "c1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "o."}}]},
    {
        "id": "c1",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
    },
    {"id": "c1", "object": "chat.completion.chunk", "choices": [], "usage": {"total_tokens": 9}},
]
EVENTS = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in CHUNKS) + "data: [DONE]\n\n"
SHAPES: dict[str, list[dict[str, Any]]] = {
    "a pair": [{"request": REQUEST, "response": RESPONSE}],
    "bodies": [{"request_body": json.dumps(REQUEST), "response_body": json.dumps(RESPONSE)}],
    "bodies inside": [{"request": {"url": "/v1", "body": REQUEST}, "response": {"status": 200, "body": RESPONSE}}],
    "side by side": [{**REQUEST, "stream": False, **RESPONSE}],
    "a batch": [
        {"custom_id": "c1", "method": "POST", "body": REQUEST},
        {"id": "b1", "custom_id": "c1", "response": {"status_code": 200, "body": RESPONSE}, "error": None},
    ],
    "bodies on two lines": [{"request_id": "c1", "body": REQUEST}, {"request_id": "c1", "body": RESPONSE}],
    "a choice of several": [
        {"request": REQUEST, "response": {**RESPONSE, "choices": [{"index": 1, "message": ASKED[0]}, *CHOICES]}}
    ],
    "messages in, a message out": [{"input": ASKED, "output": MESSAGE, "model": "m", "temperature": 0}],
    "a collector's line": [{"log": json.dumps({"request": REQUEST, "response": RESPONSE}) + "\n", "stream": "stdout"}],
    "the Responses API": [{"request": RESPONSES_REQUEST, "response": RESPONSES_REPLY}],
    "its items": [{"request": {**RESPONSES_REQUEST, "input": ASKED}, "output": RESPONSES_REPLY["output"]}],
    "its two lines": [{"id": "c1", "request": RESPONSES_REQUEST}, {"id": "c1", "response": RESPONSES_REPLY}],
    "its stream": [
        {
            "request": RESPONSES_REQUEST,
            "response": [
                {"type": "response.output_text.delta", "delta": "S"},
                {"type": "response.completed", "response": RESPONSES_REPLY},
            ],
        }
    ],
    "messages and response": [{"model": "m", "messages": ASKED, "temperature": 0, "response": RESPONSE}],
    "parameters apart": [{"model": "m", "messages": ASKED, "model_parameters": {"temperature": 0}, "output": MESSAGE}],
    "messages alone": [{"model": "m", "temperature": 0, "messages": [*ASKED, MESSAGE]}],
    "a stream": [{"request": {**REQUEST, "stream": True}, "response": CHUNKS}],
    "events": [{"request": REQUEST, "response": EVENTS}],
    "events in parts": [{"request": REQUEST, "response": EVENTS.splitlines()}],
    "two lines": [{"id": "c1", "request": REQUEST}, {"id": "c1", "response": RESPONSE}],
    "the other way round": [RESPONSE, {"id": "c1", "request": REQUEST}],
    "chunks on lines": [{"id": "c1", **REQUEST}, *CHUNKS],
    "chunks within lines": [{"request_id": "r", **REQUEST}, *({"request_id": "r", "chunk": c} for c in CHUNKS)],
}


def entries_of(folder: Path, rows: list[Any]) -> list[LogEntry]:
    path = folder / "server.log"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return list(read_logs([path]))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_one_exchange_says_the_same(tmp_path: Path, shape: str) -> None:
    (entry,) = entries_of(tmp_path, SHAPES[shape])
    assert not entry.problem
    assert entry.place == f"{tmp_path / 'server.log'}:{2 if shape == 'the other way round' else 1}"
    exchange = entry.exchange
    assert exchange is not None
    assert [message["content"] for message in exchange.conversation.messages] == ["How?", "So."]
    assert exchange.origin(frozenset({"m"})) == "greedy"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("not JSON at all", "not valid JSON"),
        ("[1, 2]", "a JSON list, not an object"),
        ({"level": "info", "msg": "started"}, "neither a request with messages nor a response (keys: level, msg)"),
        ({"request": REQUEST, "response": {"error": {"code": 500}}}, "the server answered with an error"),
        ({"request": REQUEST, "response": {"status_code": 503, "body": "busy"}}, "the server answered with an error"),
        ({"status": 400, "request": REQUEST}, "the server answered with an error"),
        ({"request": REQUEST}, "a request without its response"),
        ({"request": {**RESPONSES_REQUEST, "previous_response_id": "r0"}, "response": "So."}, "the request goes on"),
        ({**RESPONSES_REQUEST, "input": ASKED, "conversation": "k", **RESPONSES_REPLY}, "the request goes on"),
        ({"request": {**RESPONSES_REQUEST, "prompt": {"id": "p"}}, "response": "So."}, "the request names a prompt"),
        ({"request": RESPONSES_REQUEST, "response": [{"type": "response.created"}]}, "the stream breaks off"),
        ({"request": RESPONSES_REQUEST, "response": [*THOUGHT, REFUSAL]}, "an item of the assistant holds something"),
        ({"request": RESPONSES_REQUEST, "response": [*THOUGHT, EMPTY]}, "an item of the assistant holds something"),
        ({"request": {**RESPONSES_REQUEST, "tools": True}, "response": RESPONSES_REPLY}, "tools is true or false"),
        ('[{"role": "user"}], "model": "m"}', "not valid JSON"),
        ("{", "not valid JSON"),
        ({"id": "x", "choices": RESPONSE["choices"]}, "a response without its request"),
        ({"request": REQUEST, "response": CHUNKS[:3]}, "the stream breaks off before its end"),
        ({"request": REQUEST, "response": "data: {broken\n"}, "the stream holds an event that is not JSON"),
        ({"request": REQUEST, "response": {"choices": []}}, "the response has no message"),
        (
            {"request": {"prompt": "How?"}, "response": {"choices": [{"text": "So."}]}},
            "a text completion: its prompt is",
        ),
        (
            {"request": {**REQUEST, "messages": [*ASKED, MESSAGE]}, "response": RESPONSE},
            "the request begins the reply itself",
        ),
        (
            {"request": REQUEST, "response": {"choices": [{"message": MESSAGE, "finish_reason": "abort"}]}},
            "the reply was not finished: abort",
        ),
        (
            {"request": {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "response": RESPONSE},
            "message 1 (user): content is a list with a part of type 'image_url', which is no text",
        ),
    ],
)
def test_what_is_no_exchange_is_told_with_its_line(tmp_path: Path, row: Any, reason: str) -> None:
    entries = entries_of(tmp_path, [row, {"request": REQUEST, "response": RESPONSE}])
    problems = [(entry.place.rpartition(":")[2], entry.problem) for entry in entries if entry.problem]
    assert len(entries) == 2
    assert [place for place, _ in problems] == ["1"]
    assert problems[0][1].startswith(reason)


@pytest.mark.parametrize(
    ("changed", "origin"),
    [
        ({"temperature": 0.7}, "sampled"),
        ({"temperature": None}, "unknown"),
        ({"model": "other"}, "other model"),
        ({"model": "openai/M"}, "greedy"),
        ({"stop": ["\n"]}, "steered"),
        ({"response_format": {"type": "json_object"}}, "steered"),
        ({"response_format": {"type": "text"}, "presence_penalty": 0.0}, "greedy"),
        ({"repetition_penalty": 1.1}, "steered"),
        ({"tool_choice": "required"}, "steered"),
    ],
)
def test_the_request_says_whose_the_reply_is(tmp_path: Path, changed: dict[str, Any], origin: str) -> None:
    (entry,) = entries_of(tmp_path, [{"request": {**REQUEST, **changed}, "response": RESPONSE}])
    assert entry.exchange is not None
    assert entry.exchange.origin(frozenset({short_name("/models/m")})) == origin


def test_a_reply_that_somebody_edited_says_so(tmp_path: Path) -> None:
    (entry,) = entries_of(tmp_path, [{"request": REQUEST, "response": RESPONSE, "edited": True}])
    assert entry.exchange is not None
    assert entry.exchange.origin(frozenset({"m"})) == "edited"


def test_a_streamed_tool_call_is_put_together(tmp_path: Path) -> None:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    parts = [
        chunk({"tool_calls": [{"index": 0, "id": "t", "function": {"name": "sum", "arguments": ""}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"a": '}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}, "tool_calls"),
    ]
    (entry,) = entries_of(tmp_path, [{"request": REQUEST, "response": parts}])
    assert entry.exchange is not None
    call = entry.exchange.conversation.messages[-1]["tool_calls"][0]
    assert call["function"] == {"name": "sum", "arguments": {"a": 1}}


def test_calls_of_the_responses_api_are_those_of_chat(tmp_path: Path) -> None:
    call = {"type": "function_call", "call_id": "t", "name": "sum", "arguments": '{"a": 1}'}
    result = {"type": "function_call_output", "call_id": "t", "output": "2"}
    asked = {"instructions": "Add.", "input": [*ASKED, call, result], "tools": [{"type": "function", "name": "sum"}]}
    (entry,) = entries_of(tmp_path, [{"request": {**RESPONSES_REQUEST, **asked}, "response": RESPONSES_REPLY}])
    assert entry.exchange is not None
    conversation = entry.exchange.conversation
    roles = [message["role"] for message in conversation.messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]
    assert conversation.messages[2]["tool_calls"][0]["function"] == {"name": "sum", "arguments": {"a": 1}}
    assert conversation.tools[0]["function"]["name"] == "sum"
    assert conversation.finish == ("kept", "stop")


@pytest.mark.parametrize("said", [{"model": "m"}, {"model": "m", "instructions": "Add."}, {"instructions": "Add."}, {}])
def test_options_beside_a_list_of_messages_are_its_requests(tmp_path: Path, said: dict[str, str]) -> None:
    tools = [{"type": "function", "function": {"name": "sum"}}]
    row = {**said, "input": ASKED, "tools": tools, "tool_choice": "required", "output": "So."}
    (entry,) = entries_of(tmp_path, [row])
    assert entry.exchange is not None
    assert len(entry.exchange.conversation.tools) == 1
    assert entry.exchange.steered_by == ("tool_choice",)
    roles = [message["role"] for message in entry.exchange.conversation.messages]
    assert roles == [*(["system"] if "instructions" in said else []), "user", "assistant"]


def test_an_array_of_exchanges_is_read_as_its_lines_would_be(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps([{"request": REQUEST, "response": RESPONSE}] * 3))
    assert [entry.problem for entry in read_logs([path])] == [""] * 3


def test_clients_differ_without_their_names(tmp_path: Path) -> None:
    rows = [{"request": {**REQUEST, "user": name}, "response": RESPONSE} for name in ("ann", "bob", "ann")]
    clients = [entry.exchange.client for entry in entries_of(tmp_path, rows) if entry.exchange]
    assert clients[0] == clients[2] != clients[1]
    assert "ann" not in "".join(clients)


def test_packed_logs_are_read_and_one_that_breaks_off_is_told(tmp_path: Path) -> None:
    line = json.dumps({"request": REQUEST, "response": RESPONSE}) + "\n"
    whole = gzip.compress((line * 40).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole)
    (tmp_path / "b.jsonl.gz").write_bytes(whole[:-30])
    assert Counter(entry.problem for entry in read_logs([tmp_path / "a.jsonl.gz"])) == {"": 40}
    broken = [entry for entry in read_logs([tmp_path / "b.jsonl.gz"]) if entry.problem]
    assert len(broken) == 1
    assert broken[0].problem.startswith("the compressed file breaks off")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 600) | st.text(max_size=4) | st.sampled_from(["data: {}", "{", "[1]"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *(
                        "request",
                        "response",
                        "messages",
                        "choices",
                        "message",
                        "delta",
                        "role",
                        "content",
                        "id",
                        "body",
                    ),
                    *("model", "temperature", "finish_reason", "index", "tool_calls", "function", "status", "metadata"),
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@pytest.mark.slow
@given(rows=st.lists(VALUES, max_size=6))
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
def test_no_line_is_lost_and_none_ends_the_reading(tmp_path: Path, rows: list[Any]) -> None:
    lines = ["{}", *(json.dumps(row) for row in rows)]  # a file that begins with a list is an array
    entries = entries_of(tmp_path, lines)
    assert all((entry.exchange is None) == bool(entry.problem) for entry in entries)
    assert sum(entry.lines for entry in entries) == len(lines)
