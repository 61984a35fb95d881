"""Placeholders around replies only, for templates that look into replies: in which contents they stand, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eagle3cli.data.chat.placeholders import BEGIN, CALL, CONTENT, END, REPLY, Pieces, Placeholders
from eagle3cli.data.chat.template import Messages
from eagle3cli.errors import ModelError


@dataclass(frozen=True)
class Substitution:
    """How placeholders stand for contents: in place of the text, or ``around`` it where the template looks into it."""

    placeholders: Placeholders
    bare_roles: frozenset[str] = frozenset()
    """Roles whose empty contents stay empty, as templates may leave such a message out."""
    around: bool = False

    def apply(self, messages: Messages, *, bare_replies: bool = False) -> list[Mapping[str, Any]]:
        """The messages with every content substituted but the replies'.

        ``bare_replies``: replies are nothing but placeholders, too, their tool calls without arguments.
        """
        return [
            self._context(index, message)
            if message["role"] != "assistant"
            else self._bare_reply(index, message)
            if bare_replies
            else message
            for index, message in enumerate(messages)
        ]

    def _context(self, index: int, message: Mapping[str, Any]) -> Mapping[str, Any]:
        content = message["content"]
        name = self.placeholders.name
        if not content and message["role"] in self.bare_roles:
            return message
        around = f"{name(index, BEGIN)}{content}{name(index, END)}"
        return {**message, "content": around if self.around else name(index, CONTENT)}

    def _bare_reply(self, index: int, message: Mapping[str, Any]) -> dict[str, Any]:
        bare = {key: value for key, value in message.items() if key != "reasoning_content"}
        if not message.get("tool_calls"):
            return {**bare, "content": self.placeholders.name(index, REPLY)}
        if message["content"]:
            bare["content"] = self.placeholders.name(index, REPLY)
        bare["tool_calls"] = [
            {**call, "function": self._bare_function(index, number, call["function"])}
            for number, call in enumerate(message["tool_calls"])
        ]
        return bare

    def _bare_function(self, index: int, number: int, function: Mapping[str, Any]) -> dict[str, Any]:
        arguments: Any = "{}" if isinstance(function["arguments"], str) else {}
        return {**function, "name": self.call_placeholder(index, number), "arguments": arguments}

    def called(self, messages: Messages) -> dict[str, str]:
        """The names of all called functions by their placeholders."""
        return {
            self.call_placeholder(index, number): call["function"]["name"]
            for index, message in enumerate(messages)
            for number, call in enumerate(message.get("tool_calls") or ())
        }

    def call_placeholder(self, index: int, number: int) -> str:
        """The placeholder of a called function's name."""
        return self.placeholders.name(index * 1000 + number, CALL)

    def split(self, text: str) -> tuple[Pieces, list[str]]:
        """A rendering split at the other contents, and the texts that stand inside placeholders around them.

        Raises ModelError where placeholders around a content come apart.
        """
        if not self.around:
            return self.placeholders.split(text, CONTENT), []
        whole = self.placeholders.split(text, BEGIN + END)
        begins = whole.names[0::2]
        ends = whole.names[1::2]
        if [(i, BEGIN) for i, _ in ends] != list(begins) or any(kind != END for _, kind in ends):
            raise ModelError("unsupported-template", "the chat template takes a content apart")
        names = tuple((index, CONTENT) for index, _ in begins)
        return Pieces(whole.texts[0::2], names), list(whole.texts[1::2])
