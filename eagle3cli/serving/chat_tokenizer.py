"""Prompts rendered and tokenized here, as a server would; replies as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eagle3cli.data.chat.format import OPEN_BLOCK
from eagle3cli.data.chat.template import Chat, template_options
from eagle3cli.data.chat.tokenizer import encode_rendered, eos_ids, load_tokenizer
from eagle3cli.data.conversations.images import refuse_images
from eagle3cli.serving.conversation import OpenConversation
from eagle3cli.serving.reasoning import ParsedReply, from_harmony, without_reasoning
from eagle3cli.settings.tables import Settings


@dataclass(frozen=True)
class ChatTokenizer:
    """The target's tokenizer with a chat template. The same for all engines.

    Example::

        conversation = OpenConversation(0, [{"role": "user", "content": "Hello."}, None])
        prompt = tokenizer.encode(conversation)
    """

    tokenizer: Any
    chat: Chat
    eos_ids: frozenset[int]
    """Tokens at which the target stops."""
    reasoning_effort: str | None = None

    def encode(self, conversation: OpenConversation) -> list[int]:
        """Token ids of the conversation's next prompt; raises ModelError or DataError where the template refuses it."""
        options = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        refuse_images(conversation.prompt(), "a prompt that is tokenized here (servers are asked by chat completions)")
        messages = self.chat.adapt_tool_calls(conversation.prompt(), conversation.tools)
        text = self.chat.render(messages, True, conversation.tools, **options)
        conversation.prompt_opens_reasoning = OPEN_BLOCK.search(text) is not None
        return encode_rendered(self.tokenizer, text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """A reply as text."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))

    def parse_reply(
        self, token_ids: Sequence[int], *, keep_reasoning: bool = False, opened: bool = False
    ) -> ParsedReply:
        """A reply as text without its reasoning; ``opened``: the prompt had begun a block of reasoning already.

        With ``keep_reasoning`` it stands apart where GPT-OSS marks it, else in the content as it was written.
        """
        if "<|channel|>" in self.tokenizer.get_added_vocab():
            reply = from_harmony(str(self.tokenizer.decode(token_ids)))
            if reply is not None:
                return reply if keep_reasoning else ParsedReply(reply.content)
        text = self.decode(token_ids)
        return ParsedReply(text if keep_reasoning else without_reasoning(text, opened=opened))


def load_chat_tokenizer(
    settings: Settings, model_path: str | None = None, reasoning_effort: str | None = None
) -> ChatTokenizer:
    """The target's tokenizer, or that of ``model_path``, with the chat template of the settings."""
    target = settings.target
    path = model_path or target.model_path
    tokenizer = load_tokenizer(path, revision=target.revision, trust_remote_code=target.trust_remote_code)
    chat = Chat(tokenizer, settings.data.chat_template, template_options(settings.data.chat_template_kwargs))
    return ChatTokenizer(tokenizer, chat, eos_ids(tokenizer, path), reasoning_effort)
