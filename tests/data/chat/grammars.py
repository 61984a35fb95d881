"""Small chat templates described by their grammar, and what an encoder makes of conversations in them."""

from __future__ import annotations

from typing import Any

import numpy as np

from eagle3cli.data.chat.oracle import truth_of
from eagle3cli.data.conversations.conversation import Conversation
from eagle3cli.data.tokens.encode import Encoder
from eagle3cli.data.tokens.judge import compare
from eagle3cli.data.tokens.mask_check import Judge
from eagle3cli.data.tokens.rows import TokenRow
from tests.data.chat.formats import Message
from tests.tiny import tiny_tokenizer

QUESTION: list[Message] = [{"role": "user", "content": "q1"}]
ONE: list[Message] = [*QUESTION, {"role": "assistant", "content": "a1"}]
TWO: list[Message] = [*ONE, {"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"}]
THOUGHT: list[Message] = [*QUESTION, {"role": "assistant", "content": "a1", "reasoning_content": "r1"}]
TOOLS: list[Message] = [{"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {}}}]


MARKERS = ("<|turn|>", "<|turn_end|>", "<|bot|>", "<|bot_end|>", "<|sys_end|>", "<|think_on|>", "<|result|>")
USER = "<|turn|>CONTENT<|turn_end|>"
REPLY = "<|bot|>CONTENT<|bot_end|>"


def call(number: int, content: str = "") -> Message:
    """A reply that calls the tool."""
    function = {"name": "look", "arguments": {"what": f"w{number}"}}
    calls = [{"id": f"call0000{number}", "type": "function", "function": function}]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def result(number: int) -> Message:
    """What the tool answers."""
    return {"role": "tool", "content": f"t{number}", "tool_call_id": f"call0000{number}"}


CHAIN: list[Message] = [*QUESTION, call(1), result(1), call(2), result(2), {"role": "assistant", "content": "a3"}]


def by_role(prompt: str, *, before: str = "", tail: str = "", **texts: str) -> str:
    """A template that writes each message as its role's text says (``C`` is the content, ``R`` the reasoning), and
    ``prompt`` where a reply is asked for, else ``tail``."""
    roles = "".join(f"{{% if m.role == '{role}' %}}" + _filled(text) + "{% endif %}" for role, text in texts.items())
    end = "{% if add_generation_prompt %}" + prompt + "{% else %}" + tail + "{% endif %}"
    return before + "{% for m in messages %}" + roles + "{% endfor %}" + end


def _filled(text: str) -> str:
    return text.replace("CONTENT", "{{ m.content }}").replace("REASONING", "{{ m.reasoning_content }}")


def encoder(template: str, *special: str, eos: str = "<|im_end|>", stops: tuple[str, ...] = (), **more: Any) -> Encoder:
    """The encoder of a template whose tokenizer knows these special tokens; ``stops`` are configured, eos besides."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.eos_token = eos
    tokenizer.chat_template = template
    ids = frozenset(tokenizer.convert_tokens_to_ids([eos, *stops]))
    return Encoder(tokenizer, ids, **more)


def encoded(coder: Encoder, messages: list[Message], tools: tuple[Message, ...] = (), **more: Any) -> TokenRow:
    """The row of a conversation, which must not be refused."""
    row = coder.encode([Conversation("row", tuple(messages), tools=tools, **more)])[0]
    assert isinstance(row, TokenRow), row
    return row


def shown(coder: Encoder, messages: list[Message], *tools: Message, **more: Any) -> str:
    """The row as text, what is trained between ``«`` and ``»``."""
    row = encoded(coder, messages, tools, **more)
    mask = row.loss_mask
    edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(mask)]
    text = ""
    for first, last in zip(edges, edges[1:], strict=False):
        part = coder.tokenizer.decode(row.token_ids[first:last].tolist())
        text += f"«{part}»" if mask[first] else part
    return text


def coder_of(template: str, eos: str = "<|bot_end|>") -> Encoder:
    return encoder(template, *MARKERS, eos=eos)


def agreed(coder: Encoder, messages: list[Message], *tools: Message) -> str:
    """The row as text, on which the oracle agrees."""
    judge = Judge(coder, coder.end_ids)
    truth = truth_of(judge.chat, messages, judge.stops, tools=tools)
    assert compare(coder.tokenizer, encoded(coder, messages, tools), truth) is None
    return shown(coder, messages, *tools)
