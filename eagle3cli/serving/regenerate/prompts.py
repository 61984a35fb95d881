"""Prompts rendered and tokenised here, as a server would."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from eagle3cli.data.chat.format import OPEN_BLOCK
from eagle3cli.data.chat.template import Chat, template_options
from eagle3cli.data.chat.tokenizer import eos_ids, load_tokenizer, tokenize
from eagle3cli.serving.regenerate.pending import Script
from eagle3cli.settings.tables import Settings


@dataclass
class Prompts:
    """A tokenizer with a chat template, at work on scripts."""

    tokenizer: Any
    chat: Chat
    ends: frozenset[int]
    """Tokens at which the target stops."""
    reasoning_effort: str | None = None
    _opened: set[int] = field(default_factory=set)

    def encode(self, script: Script) -> list[int]:
        """Token ids of the script's next prompt; raises ModelError or DataError where the template refuses it."""
        more = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        messages = self.chat.settle(script.prompt(), script.tools)
        text = self.chat.render(messages, True, script.tools, **more)
        (self._opened.add if OPEN_BLOCK.search(text) else self._opened.discard)(script.row)
        return list(tokenize(self.tokenizer, [text])[0].ids)

    def begins_reasoning(self, script: Script) -> bool:
        """Whether the last prompt of the script ended inside a block of reasoning."""
        return script.row in self._opened

    @property
    def is_harmony(self) -> bool:
        """Whether the target speaks in GPT-OSS's channels."""
        return "<|channel|>" in self.tokenizer.get_added_vocab()


def load_prompts(settings: Settings, model_path: str | None = None) -> Prompts:
    """The target's tokenizer with the chat template of the settings."""
    target, path = settings.target, model_path or settings.target.model_path
    tokenizer = load_tokenizer(path, revision=target.revision, trust_remote_code=target.trust_remote_code)
    chat = Chat(tokenizer, settings.data.chat_template, template_options(settings.data.chat_template_kwargs))
    return Prompts(tokenizer, chat, eos_ids(tokenizer, path), settings.regenerate.reasoning_effort)
