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
class Probe:
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
class Answer:
    """What became of one probe: equal renderings, equal refusals, or the first difference."""

    probe: str
    equal: bool
    detail: str
    difference: Difference | None = None


def _said(*texts: str) -> list[Message]:
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
INLINE = _said("2 + 2?", "<think>\nTwo and two.\n</think>\n\n4", "And 3 + 3?", "<think>\nThree.\n</think>\n\n6")

PROBES: tuple[Probe, ...] = (
    Probe("plain", tuple(_said("Hello?", "Hello!"))),
    Probe("system", (SYSTEM, *_said("Hello?", "Hello!"))),
    Probe("turns", tuple(_said("One?", "1", "Two?", "2", "Three?", "3"))),
    Probe("system, turns", (SYSTEM, *_said("One?", "1", "Two?", "2"))),
    Probe("white space", tuple(_said("  One?\n", "\n\n1 ", " Two? ", " 2\n"))),
    Probe("empty reply", tuple(_said("One?", "", "Two?", ""))),
    Probe("reasoning", tuple(THOUGHT)),
    Probe("reasoning in the content", tuple(INLINE)),
    Probe("tools", (SYSTEM, *_said("Hello?", "Hello!")), (TOOL,)),
    Probe("tool call", tuple(CALLS), (TOOL,)),
    Probe("tool call, turns", (SYSTEM, *_said("One?", "1"), *CALLS, *_said("Two?", "2")), (TOOL, TOOL)),
    Probe("two tool calls", tuple(TWO_CALLS), (TOOL,)),
)


def check_template(tokenizer: Any, name: str) -> list[Answer]:
    """One answer a probe for the template ``name``; raises as :class:`Chat` for an unknown name or tokenizer."""
    own, named = Chat(tokenizer), Chat(tokenizer, name)
    return [_compare(probe, own, named) for probe in PROBES]


def fitting_templates(tokenizer: Any) -> list[tuple[str, list[Answer]]]:
    """The answers for every named template whose tokens the tokenizer knows, the most alike first."""
    checked = []
    for name in NAMED:
        try:
            checked.append((name, check_template(tokenizer, name)))
        except ModelError:
            continue
    return sorted(checked, key=lambda item: -sum(answer.equal for answer in item[1]))


def _compare(probe: Probe, own: Chat, named: Chat) -> Answer:
    texts = (_rendered(own, probe), _rendered(named, probe))
    for ours, theirs in zip(*texts, strict=False):
        if isinstance(ours, DataError) or isinstance(theirs, DataError):
            if type(ours) is type(theirs):
                return Answer(probe.name, True, "both refuse it")
            who, error = ("the tokenizer's own", ours) if isinstance(ours, DataError) else ("the named one", theirs)
            return Answer(probe.name, False, f"only {who} refuses it: {error}")
        if ours != theirs:
            difference = first_difference(ours, theirs)
            return Answer(probe.name, False, f"differs at character {difference.at}", difference)
    return Answer(probe.name, True, "equal")


def _rendered(chat: Chat, probe: Probe) -> Sequence[str | DataError]:
    """The whole conversation, and the prompt before its last reply."""
    try:
        messages = chat.settle(probe.messages, probe.tools)
        return chat.render(messages, False, probe.tools), chat.render(messages[:-1], True, probe.tools)
    except (DataError, ModelError) as error:
        return [DataError(error.what)]


def first_difference(own: str, named: str) -> Difference:
    """Where two texts part, with a little of both."""
    at = next((i for i, (a, b) in enumerate(zip(own, named, strict=False)) if a != b), min(len(own), len(named)))
    start = max(0, at - AROUND)
    return Difference(at, own[start : at + AROUND], named[start : at + AROUND])
