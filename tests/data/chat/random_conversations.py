"""Conversations of all shapes, the same for the same source of chance.

From ``random.Random(seed)`` they are the same on every machine, whatever else is loaded; from hypothesis' ``randoms``
they shrink to what matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from tests.data.chat.formats import Message
from tests.data.chat.grammars import TOOLS
from tests.data.chat.public_formats import PublicFormat
from tests.data.chat.templates import NASTY

WORDS = ("a", "yes", "Hello there.", "What is 2 + 2?", "1) one", "def f(x):", "Non, ça va.", "it's", "12345", "{", "}}")
SPACE = (" ", "\n", "\n\n", "  ", "\t", " \n", "\r\n", "\u00a0", "\u3000")
MARKS = (
    *("<think>", "</think>", "<think>\n\n</think>\n\n", "[THINK]", "[/THINK]", "<|START_THINKING|>", "</s>", "<s>"),
    *("<|im_end|>", "<|end|>", "<|eot_id|>", "<|channel|>", "<end_of_turn>", "[/INST]", "<tool_call>", "</tool_call>"),
)
CHARACTERS = (
    (0x20, 0x7E),
    (0x00, 0x1F),
    (0xA0, 0x17F),
    (0x300, 0x36F),
    (0x2000, 0x206F),
    (0x4E00, 0x4E80),
    (0xE000, 0xE002),
)
ASTRAL = (0x1F300, 0x1F64F)
THOUGHTS = ("let me see", "first\nthen", "😀", " \nspace around\n ", "<|im_end|><|end|></s>")


Conversed = tuple[list[Message], list[Message]]
"""Messages, and the tools that they may call."""


def random_conversation(chance: Random, form: PublicFormat, marks: Sequence[str] = ()) -> Conversed:
    """Messages that end with a reply, and tools: system prompts, chains of calls, reasoning, empty replies, two in a
    row, and inside contents the markers of all formats and ``marks``."""
    drawn = _Drawn(chance, form, (*MARKS, *marks))
    has_tools = bool(form.tool) and chance.random() < 0.5
    messages: list[Message] = []
    if form.system and chance.random() < 0.5:
        messages.append({"role": "system", "content": drawn.said()})
    for _ in range(chance.randint(1, 3)):
        messages.append({"role": "user", "content": drawn.said()})
        for number in range(chance.randint(0, 2) if has_tools else 0):
            result = {"role": "tool", "content": drawn.reply_text(), "tool_call_id": "call00000"}
            messages += [drawn.call(number), result]
        messages += [drawn.reply() for _ in range(chance.choice((1, 1, 1, 2)))]
    if has_tools and chance.random() < 0.5:
        messages += [{"role": "user", "content": drawn.said()}, drawn.call(0)]
    return messages, TOOLS if has_tools else []


class _Drawn:
    """What one conversation is made of."""

    def __init__(self, chance: Random, form: PublicFormat, marks: Sequence[str]) -> None:
        self.chance = chance
        self.form = form
        self.marks = marks

    def text(self) -> str:
        """Any text: one that is known to be difficult, or pieces of all kinds in a row."""
        if self.chance.random() < 0.5:
            return self.chance.choice(NASTY)
        return "".join(self._piece() for _ in range(self.chance.randint(0, 4)))

    def _piece(self) -> str:
        kind = self.chance.randint(0, 4)
        if kind < 3:
            return self.chance.choice((WORDS, SPACE, self.marks)[kind])
        ranges = CHARACTERS if kind == 3 else (ASTRAL,)
        return "".join(chr(self.chance.randint(*self.chance.choice(ranges))) for _ in range(self.chance.randint(1, 5)))

    def said(self) -> str:
        """A text that is not blank."""
        text = self.text()
        return text if text.strip() else f"{text}yes"

    def reply_text(self) -> str:
        """A reply or a tool's result; where the format has reasoning, none in the text."""
        text = self.text()
        return text.replace("think>", "thin>") if self.form.thinking else text

    def reply(self) -> Message:
        """A plain reply."""
        return self._thinking({"role": "assistant", "content": self.reply_text()})

    def call(self, number: int) -> Message:
        """A reply that calls the tool."""
        function = {"name": "look", "arguments": {"what": self.text(), "n": number}}
        calls = [{"id": "call00000", "type": "function", "function": function}]
        said = self.chance.choice(("", "I look."))
        return self._thinking({"role": "assistant", "content": said, "tool_calls": calls})

    def _thinking(self, reply: Message) -> Message:
        if self.form.thinking == "open" or self.chance.random() < 0.5:
            return {**reply, "reasoning_content": self.chance.choice(THOUGHTS)}
        return reply
