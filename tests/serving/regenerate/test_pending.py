"""Which messages stand and where the target speaks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.data.conversations.conversation import Conversation
from eagle3cli.data.conversations.system_prompt import system_prompt_text
from eagle3cli.serving.reasoning import without_reasoning
from eagle3cli.serving.regenerate.pending import open_conversation
from tests.failing import fails


def say(role: str, content: str, **extra: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **extra}


def play(messages: list[Any], turns: Any = "all", system: str | None = None) -> tuple[dict[str, Any], list[int]]:
    """The finished row, and how many messages each prompt had."""
    conversation = open_conversation(0, Conversation("a", tuple(messages)), turns, system)
    prompt_sizes = []
    while not conversation.is_complete:
        prompt_sizes.append(len(conversation.prompt()))
        conversation.append_reply(f"new {len(prompt_sizes)}", "stop")
    return conversation.to_row(), prompt_sizes


TALK = [say("user", "1"), say("assistant", "old"), say("user", "2"), say("assistant", "old")]


def test_every_reply_follows_the_rewritten_ones_before_it() -> None:
    row, prompt_sizes = play(TALK)
    assert [m["content"] for m in row["conversations"]] == ["1", "new 1", "2", "new 2"]
    assert prompt_sizes == [1, 3]
    assert row["finish"] == ["stop", "stop"]


def test_last_leaves_the_earlier_replies() -> None:
    row, prompt_sizes = play(TALK, "last")
    assert [m["content"] for m in row["conversations"]] == ["1", "old", "2", "new 1"]
    assert row["finish"] == ["kept", "stop"]
    assert prompt_sizes == [3]


@pytest.mark.parametrize("turns", ["all", "last"])
def test_a_lone_question_gets_a_reply(turns: str) -> None:
    row, _ = play([say("user", "1")], turns)
    assert [m["role"] for m in row["conversations"]] == ["user", "assistant"]


def test_last_answers_a_question_that_is_still_open() -> None:
    row, _ = play(TALK[:3], "last")
    assert [m["content"] for m in row["conversations"]] == ["1", "old", "2", "new 1"]


@pytest.mark.parametrize("turns", ["all", "last"])
def test_user_turns_alone_are_answered_one_by_one(turns: str) -> None:
    row, prompt_sizes = play([say("user", "1"), say("user", "2")], turns)
    assert [m["content"] for m in row["conversations"]] == ["1", "new 1", "2", "new 2"]
    assert prompt_sizes == [1, 3]


def test_tools_stay_with_the_row() -> None:
    tools = ({"type": "function", "function": {"name": "f"}},)
    conversation = open_conversation(0, Conversation("a", tuple(TALK), tools=tools), "all")
    assert conversation.to_row()["tools"] == list(tools)


def test_tool_calls_stand() -> None:
    calls = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    messages = [say("user", "1"), say("assistant", "", tool_calls=calls), say("tool", "x"), say("assistant", "old")]
    row, prompt_sizes = play(messages)
    assert row["conversations"][1]["tool_calls"] == calls
    assert (row["finish"], prompt_sizes) == (["kept", "stop"], [3])
    with fails("no-reply"):
        play(messages[:2])


def test_the_system_prompt_replaces_the_rows_own() -> None:
    messages = [say("system", "mine"), say("user", "1")]
    assert play(messages, system="yours")[0]["conversations"][0] == say("system", "yours")
    assert play(messages)[0]["conversations"][0] == say("system", "mine")
    assert play(messages, system="")[0]["conversations"][0] == say("user", "1")


def test_a_cut_ends_after_the_last_reply() -> None:
    conversation = open_conversation(0, Conversation("a", tuple(TALK)), "all")
    conversation.prompt()
    conversation.append_reply("new", "length")
    conversation.prompt()
    conversation.cut()
    assert conversation.is_complete
    assert [m["content"] for m in conversation.to_row()["conversations"]] == ["1", "new"]


ROLES = st.lists(st.sampled_from(["user", "assistant", "system"]), min_size=1, max_size=8)


@given(ROLES, st.sampled_from(["all", "last"]))
def test_every_reply_has_a_finish_and_nothing_is_lost(roles: list[str], turns: str) -> None:
    messages = [say(role, f"message {i}") for i, role in enumerate(roles)]
    row, prompt_sizes = play(messages, turns)
    replies = sum(m["role"] == "assistant" for m in row["conversations"])
    assert len(row["finish"]) == replies >= len(prompt_sizes) >= 1
    text = "\n".join(m["content"] for m in row["conversations"])
    assert all(m["content"] in text for m in messages if m["role"] != "assistant")


def test_system_prompt_from_a_file(tmp_path: Any) -> None:
    (tmp_path / "p.txt").write_text("Be brief.\n")
    assert system_prompt_text(f"@{tmp_path}/p.txt") == "Be brief."
    assert system_prompt_text("Be brief.") == "Be brief."
    with fails("unreadable-file", "--system-prompt"):
        system_prompt_text("@absent.txt")


def test_reasoning_is_taken_off() -> None:
    assert without_reasoning("<think>\nhm\n</think>\n\nYes.") == "Yes."
    assert without_reasoning("hm</think>Yes.") == "Yes."
    assert without_reasoning("<think>cut of") == ""
    assert without_reasoning("Yes.") == "Yes."
