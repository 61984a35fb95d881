"""Bodies as the real servers gave them, read; and bodies as they want them, made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.models.sampling import Sampling
from eagle3cli.serving.client.errors import Busy, Lost, Refused, RequestFailed, TooLong
from eagle3cli.serving.client.metrics import acceptance_in_metrics
from eagle3cli.serving.client.protocol import (
    Acceptance,
    Answer,
    Request,
    error_message,
    path_and_body,
    read_answer,
    read_failure,
)

HELLO = ({"role": "user", "content": "Hello."},)


def sample(shared: Path, name: str) -> tuple[str, int, Any]:
    """Path, status and body of a recorded exchange."""
    fixture = json.loads((shared / "fixtures" / f"{name}.json").read_text())
    return fixture["request"]["path"], fixture["response"]["status"], fixture["response"].get("body")


def read(shared: Path, name: str) -> Answer:
    path, status, body = sample(shared, name)
    assert status == 200
    return read_answer(path, body)


def refusal(shared: Path, name: str) -> RequestFailed:
    _, status, body = sample(shared, name)
    return read_failure(status, json.dumps(body).encode())


def test_sglang_chat(shared: Path) -> None:
    answer = read(shared, "sglang_http/chain_chat_length")
    assert answer.text.split() == [str(i) for i in range(18, 42)]
    assert (answer.finish, answer.tokens, answer.prompt_tokens) == ("length", 24, 6)
    assert (answer.acceptance, answer.reasoning, answer.token_ids) == (None, None, None)


def test_sglang_tells_what_speculation_did(shared: Path) -> None:
    for name in ("chain_chat_return_meta_info", "chain_generate"):
        answer = read(shared, f"sglang_http/{name}")
        assert answer.acceptance == Acceptance(6, 18, 18, (6, 6, 6))
        assert answer.acceptance.length == 4.0
    assert read(shared, "sglang_http/chain_generate").token_ids == tuple(range(60, 84))


def test_acceptance_adds_up_and_is_taken_apart() -> None:
    one, two = Acceptance(4, 6, 12, (4, 2)), Acceptance(2, 5, 6, (2, 2, 1))
    assert one + two == Acceptance(6, 11, 18, (6, 4, 1))
    assert (one + two) - two == Acceptance(4, 6, 12, (4, 2, 0))
    assert (one.rates, one.length) == ((1.0, 0.5), 2.5)
    assert (Acceptance(0, 0, 0).length, Acceptance(0, 0, 0).rates) == (1.0, ())


def test_vllm_counts_in_its_metrics(shared: Path) -> None:
    text = json.loads((shared / "fixtures" / "vllm_http" / "eagle3_metrics.json").read_text())["response"]["raw"]
    acceptance = acceptance_in_metrics(text)
    assert acceptance is not None
    assert sum(acceptance.positions) == acceptance.accepted
    assert len(acceptance.positions) == 3
    assert acceptance.passes >= acceptance.positions[0] >= acceptance.positions[2] > 0
    assert acceptance_in_metrics("sglang:spec_accept_length 2.5\n") is None


def test_reasoning_is_apart_where_the_server_parses_it(shared: Path) -> None:
    answer = read(shared, "sglang_http/tree_think_chat_think")
    assert answer.reasoning == " <think> 31 32 33 "
    assert answer.text.startswith(" 34")


@pytest.mark.parametrize("name", ["chain_chat_aborted", "chain_generate_aborted"])
def test_an_aborted_answer_is_lost(shared: Path, name: str) -> None:
    with pytest.raises(Lost, match="broke off"):
        read(shared, f"sglang_http/{name}")


def test_stops_of_every_kind(shared: Path) -> None:
    for name in ("chat_stop_string", "chat_stop_token_ids", "generate_stop_string", "generate_stop_token"):
        assert read(shared, f"sglang_http/tree_think_{name}").finish == "stop"


def test_vllm_chat(shared: Path) -> None:
    answer = read(shared, "vllm_http/eagle3_chat_return_token_ids")
    assert (answer.token_ids, answer.tokens, answer.finish) == (tuple(range(60, 66)), 6, "length")
    assert read(shared, "vllm_http/eagle3_completions").finish in ("stop", "length")


def test_every_recorded_answer_is_read(shared: Path) -> None:
    seen = 0
    for path in sorted((shared / "fixtures").glob("*_http/*.json")):
        fixture = json.loads(path.read_text())
        where = fixture["request"]["path"]
        status = fixture["response"]["status"]
        body = fixture["response"].get("body")
        if where in ("/generate", "/v1/chat/completions", "/v1/completions") and "abort" not in path.name:
            seen += 1
            if status != 200:
                assert isinstance(read_failure(status, json.dumps(body).encode()), Refused), path.name
            elif isinstance(body, dict):
                assert read_answer(where, body).tokens > 0, path.name
    assert seen > 30


@pytest.mark.parametrize(
    ("name", "context", "prompt"),
    [
        ("sglang_http/tree_think_error_prompt_too_long", 512, 615),
        ("sglang_http/tree_think_error_generate_too_long", 512, 612),
        ("sglang_http/tree_think_error_prompt_plus_max_tokens_too_long", 512, 315),
        ("sglang_http/tree_think_error_generate_plus_max_new_too_long", 512, 312),
        ("vllm_http/eagle3_error_prompt_too_long", 512, 513),
    ],
)
def test_too_long_tells_the_lengths(shared: Path, name: str, context: int, prompt: int) -> None:
    failure = refusal(shared, name)
    assert isinstance(failure, TooLong)
    assert (failure.context, failure.prompt, failure.room) == (context, prompt, context - prompt)


def test_other_refusals_are_no_matter_of_length(shared: Path) -> None:
    for name in ("sglang_http/tree_think_error_temperature", "vllm_http/eagle3_error_unknown_model"):
        failure = refusal(shared, name)
        assert isinstance(failure, Refused)
        assert not isinstance(failure, TooLong)
        assert failure.detail


def test_which_failures_pass() -> None:
    assert isinstance(read_failure(500, b"oops"), Lost)
    assert not isinstance(read_failure(502, b""), Busy)
    busy = read_failure(429, b'{"message": "slow down"}', "2.5")
    assert isinstance(busy, Busy)
    assert (busy.retry_after, busy.detail) == (2.5, "slow down")
    dated = read_failure(503, b"", "Wed, 21 Oct 2026 07:28:00 GMT")
    assert isinstance(dated, Busy)
    assert dated.retry_after is None
    assert isinstance(read_failure(401, b""), Refused)


def test_chat_bodies_carry_only_what_the_server_knows() -> None:
    request = Request(7, HELLO, sampling=Sampling(0.7, 0.9, 20, 3), reasoning_effort="high", tools=({"type": "f"},))
    path, body = path_and_body(request, "sglang", "m")
    assert path == "/v1/chat/completions"
    assert (body["max_tokens"], body["temperature"], body["top_p"], body["top_k"], body["seed"]) == (7, 0.7, 0.9, 20, 3)
    assert body["return_token_ids"]
    assert body["return_meta_info"]
    assert body["reasoning_effort"] == "high"
    assert path_and_body(request, "vllm", "m")[1].keys() >= {"return_token_ids", "repetition_penalty", "tools"}
    standard = {"model", "messages", "max_tokens", "temperature", "top_p", "seed", "tools", "reasoning_effort"}
    assert path_and_body(request, "openai", "m")[1].keys() == standard


def test_a_stream_asks_for_the_counts() -> None:
    _, body = path_and_body(Request(7, HELLO), "sglang", "m", stream=True)
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert "return_meta_info" not in body  # a real server refuses the request with it


def test_token_ids_go_where_they_are_taken() -> None:
    request = Request(7, input_ids=(1, 2), sampling=Sampling(top_k=0), stop_token_ids=(2,))
    path, body = path_and_body(request, "sglang", "m")
    assert (path, body["input_ids"]) == ("/generate", [1, 2])
    assert body["sampling_params"]["top_k"] == -1
    assert body["sampling_params"]["stop_token_ids"] == [2]
    path, body = path_and_body(request, "vllm", "m")
    assert (path, body["prompt"]) == ("/v1/completions", [1, 2])


def test_tool_calls_are_sent_as_the_interface_wants_them() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": "ü"}}}
    messages = (*HELLO, {"role": "assistant", "content": "", "tool_calls": [call, {**call, "id": "x"}]})
    sent = path_and_body(Request(1, messages), "sglang", "m")[1]["messages"][1]["tool_calls"]
    assert [one["id"] for one in sent] == ["call_1_0", "x"]
    assert sent[0]["function"]["arguments"] == '{"a": "ü"}'
    assert isinstance(call["function"]["arguments"], dict)  # ours stays as it was


def test_tool_calls_are_read() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    choice = {"message": {"role": "assistant", "content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}
    answer = read_answer("/v1/chat/completions", {"choices": [choice], "usage": {"completion_tokens": 5}})
    assert (answer.text, answer.finish) == ("", "tool_calls")
    assert answer.tool_calls[0]["function"]["arguments"] == {"a": 1}


def test_error_bodies_of_every_make() -> None:
    assert error_message(b'{"error": {"message": "a"}}') == "a"
    assert error_message(b'{"object": "error", "message": "b"}') == "b"
    assert error_message(b'{"detail": "c"}') == "c"
    assert error_message(b"<html>d</html>") == "<html>d</html>"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "message",
                    "content",
                    "meta_info",
                    "usage",
                    "finish_reason",
                    "text",
                    "output_ids",
                    "error",
                    "detail",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(JSON, st.sampled_from(["/generate", "/v1/chat/completions"]))
def test_any_json_is_an_answer_or_lost(body: Any, path: str) -> None:
    try:
        answer = read_answer(path, body)
    except Lost:
        return
    assert isinstance(answer.text, str)
    assert answer.finish in ("stop", "length", "tool_calls")


@given(st.integers(400, 599), JSON)
def test_any_error_body_is_read(status: int, body: Any) -> None:
    assert isinstance(read_failure(status, json.dumps(body).encode()), Refused | Lost)
