from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.data.conversations.conversation import cut_turns, join_runs, to_conversation
from eagle3cli.data.conversations.layouts import parse_mapping
from eagle3cli.data.sources.files import read_file
from eagle3cli.errors import DataError
from tests.failing import fails

USER, REPLY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [USER, REPLY]},
        {"messages": [USER, REPLY], "prompt": "q"},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"conversations": [{"from": "user", "value": "q"}, {"from": "bard", "value": "a"}]},
        {"conversations": [{"from": "Human", "value": "q"}, {"from": "chatgpt", "value": "a"}]},
        {"prompt": "q", "completion": "a"},
        {"question": "q", "answer": "a"},
        {"instruction": "q", "input": "", "output": "a"},
        {"prompt": [USER, REPLY]},
        {"prompt": [USER], "completion": [REPLY]},
        {"input": [USER], "output": "a"},
        {"problem": "q", "solution": "a"},
        {"turns": ["q"], "reference": ["a"]},
        {"data": ["q", "a"]},
        {"conversations": json.dumps([USER, REPLY])},
        {"conversations": {"role": ["user", "assistant"], "content": ["q", "a"]}},
        {"messages": None, "conversation": [USER, REPLY]},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": [REPLY], "rejected": [REPLY]},
        {"prompt": [USER], "chosen": REPLY, "rejected": REPLY},
        {"prompt": "q", "chosen": [USER, REPLY], "rejected": [USER, REPLY]},
        {"chosen": [USER, REPLY], "rejected": [USER, REPLY]},
        {"chosen": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"conversations": [USER], "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
        {"messages": [USER, REPLY], "chosen": [USER, {**REPLY, "content": "b"}]},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "a", "rejected": "b"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, {**REPLY, "tool_calls": None}]},
    ],
)
def test_layouts(row: dict[str, Any]) -> None:
    assert to_conversation(row).messages == (USER, REPLY)


def test_turns_alone_are_user_messages_that_stay_apart() -> None:
    conversation = to_conversation({"id": 1, "turns": ["q", "and?"], "reference": []})
    assert [message["content"] for message in join_runs(conversation).messages] == ["q", "and?"]
    assert conversation.user_turns == 2
    assert to_conversation({"turns": ["q", "and?"], "reference": ["a", "b"]}).messages[3]["content"] == "b"


def test_alpaca_history_and_system_come_first() -> None:
    row = {"instruction": "q2", "history": [["q1", "a1"]], "system": "s", "output": "a2"}
    contents = [message["content"] for message in to_conversation(row).messages]
    assert contents == ["s", "q1", "a1", "q2", "a2"]


@pytest.mark.parametrize("history", [1, True, "text", {"a": 1}, [1, ["only one"]]])
def test_a_history_without_pairs_is_none(history: object) -> None:
    assert to_conversation({"instruction": "q", "history": history}).messages == ({"role": "user", "content": "q"},)


def test_prompts_alone_and_instructions_with_input() -> None:
    assert to_conversation({"prompt": "q"}).messages == (USER,)
    both = to_conversation({"instruction": "do", "input": "this", "output": "done"})
    assert both.prompt == "do\n\nthis"


def test_ids_of_any_layout() -> None:
    assert to_conversation({"id": 7, "messages": [USER]}).id == "7"
    assert to_conversation({"prompt_id": "p", "messages": [USER]}).id == "p"
    assert to_conversation({"messages": [USER]}).id == ""


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "no conversation"),
        ({"text": "x"}, "columns: text"),
        ({"Messages": [USER, REPLY]}, "--map messages=Messages"),
        ({"Messages": json.dumps([USER, REPLY])}, "--map messages=Messages"),
        ({"rejected": [USER, REPLY]}, "--map messages=rejected"),
        ({"rows": [{"prompt": "q"}]}, "jq -c '.rows[]'"),
        ({"conversations": []}, "no messages"),
        ({"conversations": "x"}, "not a list"),
        ({"conversations": ["x"]}, "message 1 is a string"),
        ({"conversations": [USER, {"content": "a"}]}, "message 2 has no role"),
        ({"conversations": [USER, {"role": "narrator", "content": "a"}]}, "unknown role 'narrator'"),
        ({"conversations": [USER, {"role": 3, "content": "a"}]}, "its role is a number, not a string"),
        ({"conversations": [USER, {"role": "assistant"}]}, "message 2 (assistant) has no content"),
        ({"conversations": [USER, {"role": "assistant", "content": None}]}, "content is null"),
        ({"conversations": [{"role": "user", "content": []}]}, "content is a list"),
        ({"conversations": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a part of type 'image_url'"),
        ({"conversations": [{"role": "user", "content": [3]}]}, "a number as a part"),
        ({"conversations": [{"role": "user", "content": b"raw"}]}, "content is bytes"),
        ({"conversations": [USER, {"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "no function name"),
        ({"conversations": [USER, {"role": "assistant", "tool_calls": {}, "content": ""}]}, "is empty"),
        ({"conversations": [USER, {"from": "function_call", "value": "f(x)"}]}, "not JSON"),
        ({"conversations": [USER], "tools": "{"}, "tools is text that is not JSON"),
        ({"conversations": [USER], "tools": [1]}, "not a list of objects"),
        ({"conversations": {"role": ["user"], "content": []}}, "different lengths"),
        ({"conversations": None}, "conversations is null"),
        ({"conversations": [{"role": "user", "content": "  "}]}, "message 1 (user) is empty"),
        ({"conversations": [USER, {"role": "assistant", "content": ""}]}, "message 2 (assistant) is empty"),
        ({"conversations": [REPLY]}, "no user message"),
        ({"conversations": [USER, REPLY], "finish": ["stop", "stop"]}, "finish has 2 entries for 1"),
    ],
)
def test_what_is_no_conversation_says_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError) as error:
        to_conversation(row)
    assert reason in error.value.message


def test_leading_replies_are_dropped_and_counted() -> None:
    conversation = to_conversation({"messages": [REPLY, USER, REPLY], "finish": ["stop", "length"]})
    assert conversation.messages == (USER, REPLY)
    assert conversation.finish == ("length",)
    assert conversation.repairs == ("1 leading assistant message dropped",)


def test_an_empty_reply_counts_where_the_target_wrote_it() -> None:
    row = {"messages": [USER, {"role": "assistant", "content": ""}], "finish": ["stop"]}
    assert to_conversation(row).to_row()["finish"] == ["stop"]


def test_tool_messages_are_kept() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    tool = {"role": "tool", "tool_call_id": "1", "content": ""}
    kept = to_conversation({"messages": [USER, call, tool, REPLY]}).messages
    assert kept[1]["content"] == ""
    assert kept[1]["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    assert kept[2] == tool


@pytest.mark.parametrize(
    "said",
    [
        {"role": "assistant", "tool_calls": [{"id": "", "function": {"name": "f", "arguments": '{"x": 1}'}}]},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": {"x": 1}}},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
    ],
)
def test_tool_calls_take_the_form_that_templates_render(said: dict[str, Any]) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    conversation = to_conversation({"messages": [USER, said], "tools": json.dumps(tools)})
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert conversation.messages[1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert conversation.to_row()["tools"] == tools
    assert to_conversation(conversation.to_row()) == conversation


def test_reasoning_has_one_name() -> None:
    for key in ("reasoning", "reasoning_content", "thinking"):
        said = {**REPLY, key: "hm"}
        assert to_conversation({"messages": [USER, said]}).messages[1]["reasoning_content"] == "hm"


def test_runs_of_one_role_are_joined() -> None:
    joined = join_runs(to_conversation({"messages": [USER, USER, REPLY]}))
    assert joined.messages == ({"role": "user", "content": "q\n\nq"}, REPLY)
    assert joined.repairs


def test_turns_are_cut() -> None:
    conversation = to_conversation({"messages": [USER, REPLY, USER, REPLY], "finish": ["stop", "length"]})
    cut = cut_turns(conversation, 1)
    assert (cut.messages, cut.finish) == ((USER, REPLY), ("stop",))
    assert cut_turns(conversation, 2) == conversation


def test_mapping() -> None:
    mapping = parse_mapping(("user=q", "assistant=a", "id=key"))
    conversation = to_conversation({"q": "q", "a": "a", "key": 3}, mapping)
    assert (conversation.id, conversation.messages) == ("3", (USER, REPLY))
    with fails("row-messages"):
        to_conversation({"q": "q", "key": 3}, mapping)
    with fails("row-messages"):
        to_conversation({"question": "q"}, {"user": "qestion"})
    with fails("invalid-value", "role=column"):
        parse_mapping(("user",))
    with fails("invalid-value", "role=column"):
        parse_mapping(("narrator=x",))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "tool_calls"]), inner)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["conversations", "messages", "prompt", "turns", "tools", "output", "finish", "id"]), JSON
    )
)
def test_any_json_is_a_conversation_or_a_reason(row: dict[str, Any]) -> None:
    try:
        conversation = to_conversation(row)
    except DataError:
        return
    assert to_conversation(json.loads(json.dumps(conversation.to_row()))) == conversation


HANDLED = {
    "invalid_json": "not valid JSON",
    "missing_role": "has no role",
    "empty_messages": "no messages",
    "non_string_content": "not an image that can be read",
    "null_content": "content is null",
    "unknown_role": "unknown role",
}


def test_every_defect_of_the_broken_rows_is_named_with_its_line(shared: Path) -> None:
    expected = json.loads((shared / "data" / "bad_rows.expected.json").read_text())["rows"]
    lines = list(read_file(shared / "data" / "bad_rows.jsonl"))
    assert [line.number for line in lines] == [row["line"] for row in expected]
    for line, row in zip(lines, expected, strict=True):
        reason = line.problem or ""
        if line.value is not None:
            try:
                to_conversation(line.value).with_images(None)
            except DataError as error:
                reason = error.message
        wanted = HANDLED.get(row["defect"], "")
        assert (wanted in reason) if wanted else not reason, (row, reason)
        assert ("byte order mark removed" in line.repairs) == (row["defect"] == "bom")
        assert ("lone surrogate replaced by U+FFFD" in line.repairs) == (row["defect"] == "lone_surrogate")
