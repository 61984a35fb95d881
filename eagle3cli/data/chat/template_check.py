"""Is a named template the tokenizer's own? Both render a set of probing conversations, and the texts are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eagle3cli.data.chat.named import NAMED
from eagle3cli.data.chat.template import Chat
from eagle3cli.errors import DataError, ModelError

Message = Mapping[str, Any]
AROUND = 40
"""Characters shown before and after the first difference."""


@dataclass(frozen=True)
class SampleConversation:
    """A conversation whose rendering tells templates apart."""

    name: str
    messages: tuple[Message, ...]
    tools: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Difference:
    """The first place where two renderings part."""

    at: int
    own: str
    named: str


@dataclass(frozen=True)
class Comparison:
    """What became of one sample: equal renderings, equal refusals, or the first difference."""

    sample: str
    equal: bool
    detail: str
    difference: Difference | None = None


def _turns(*texts: str) -> list[Message]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


SYSTEM: Message = {"role": "system", "content": "Answer briefly."}
TOOL: Message = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the city."},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                "days": {"type": "array", "items": {"type": "integer"}},
            },
            "required": ["city"],
        },
    },
}
CALL: Message = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": [1, 2]}},
}
CALLS: list[Message] = [
    {"role": "user", "content": "Will it rain?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"rain": true}', "tool_call_id": "call00001", "name": "get_weather"},
    {"role": "assistant", "content": "Yes, it will."},
]
TWO_CALLS: list[Message] = [
    CALLS[0],
    {**CALLS[1], "tool_calls": [CALL, {**CALL, "id": "call00002"}]},
    CALLS[2],
    {**CALLS[2], "tool_call_id": "call00002"},
    CALLS[3],
]
THOUGHT: list[Message] = [
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4", "reasoning_content": "Two and two."},
    {"role": "user", "content": "And 3 + 3?"},
    {"role": "assistant", "content": "6", "reasoning_content": "\nThree and three.\n"},
]
INLINE = _turns("2 + 2?", "<think>\nTwo and two.\n</think>\n\n4", "And 3 + 3?", "<think>\nThree.\n</think>\n\n6")

SAMPLES: tuple[SampleConversation, ...] = (
    SampleConversation("plain", tuple(_turns("Hello?", "Hello!"))),
    SampleConversation("system", (SYSTEM, *_turns("Hello?", "Hello!"))),
    SampleConversation("turns", tuple(_turns("One?", "1", "Two?", "2", "Three?", "3"))),
    SampleConversation("system, turns", (SYSTEM, *_turns("One?", "1", "Two?", "2"))),
    SampleConversation("white space", tuple(_turns("  One?\n", "\n\n1 ", " Two? ", " 2\n"))),
    SampleConversation("empty reply", tuple(_turns("One?", "", "Two?", ""))),
    SampleConversation("reasoning", tuple(THOUGHT)),
    SampleConversation("reasoning in the content", tuple(INLINE)),
    SampleConversation("tools", (SYSTEM, *_turns("Hello?", "Hello!")), (TOOL,)),
    SampleConversation("tool call", tuple(CALLS), (TOOL,)),
    SampleConversation("tool call, turns", (SYSTEM, *_turns("One?", "1"), *CALLS, *_turns("Two?", "2")), (TOOL, TOOL)),
    SampleConversation("two tool calls", tuple(TWO_CALLS), (TOOL,)),
)


def check_template(tokenizer: Any, name: str) -> list[Comparison]:
    """One comparison a sample for the template ``name``; raises as :class:`Chat` for an unknown name or tokenizer."""
    own = Chat(tokenizer)
    named = Chat(tokenizer, name)
    return [_compare(sample, own, named) for sample in SAMPLES]


def fitting_templates(tokenizer: Any) -> list[tuple[str, list[Comparison]]]:
    """The answers for every named template whose tokens the tokenizer knows, the most alike first."""
    checked = []
    for name in NAMED:
        try:
            checked.append((name, check_template(tokenizer, name)))
        except ModelError:
            continue
    return sorted(checked, key=lambda item: -sum(comparison.equal for comparison in item[1]))


def _compare(sample: SampleConversation, own: Chat, named: Chat) -> Comparison:
    texts = (_rendered(own, sample), _rendered(named, sample))
    for ours, theirs in zip(*texts, strict=False):
        if isinstance(ours, DataError) or isinstance(theirs, DataError):
            if type(ours) is type(theirs):
                return Comparison(sample.name, True, "both refuse it")
            who, error = ("the tokenizer's own", ours) if isinstance(ours, DataError) else ("the named one", theirs)
            return Comparison(sample.name, False, f"only {who} refuses it: {error}")
        if ours != theirs:
            difference = first_difference(ours, theirs)
            return Comparison(sample.name, False, f"differs at character {difference.at}", difference)
    return Comparison(sample.name, True, "equal")


def _rendered(chat: Chat, sample: SampleConversation) -> Sequence[str | DataError]:
    """The whole conversation, and the prompt before its last reply."""
    try:
        messages = chat.adapt_tool_calls(sample.messages, sample.tools)
        return chat.render(messages, tools=sample.tools), chat.render(messages[:-1], True, sample.tools)
    except (DataError, ModelError) as error:
        return [DataError(error.code, error.message)]


def first_difference(own: str, named: str) -> Difference:
    """Where two texts part, with a little of both."""
    at = next((i for i, (a, b) in enumerate(zip(own, named, strict=False)) if a != b), min(len(own), len(named)))
    start = max(0, at - AROUND)
    return Difference(at, own[start : at + AROUND], named[start : at + AROUND])
