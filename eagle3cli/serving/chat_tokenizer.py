"""Prompts rendered and tokenized here, as a server would; replies as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eagle3cli.data.chat.format import OPEN_BLOCK
from eagle3cli.data.chat.template import Chat, template_options
from eagle3cli.data.chat.tokenizer import encode_rendered, eos_ids, load_tokenizer
from eagle3cli.data.conversations.images import images_of, refuse_images
from eagle3cli.data.images.processor import ImageProcessor
from eagle3cli.data.images.tokens import ImageTokens
from eagle3cli.serving.conversation import OpenConversation
from eagle3cli.serving.reasoning import ParsedReply, from_harmony, without_reasoning
from eagle3cli.settings.tables import Settings

NO_IMAGES = "a prompt that is tokenized here (for servers with --chat-template, and for llama.cpp)"


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
    image_processor: ImageProcessor | None = None
    """What images become; None where the engine is shown none."""

    def encode(self, conversation: OpenConversation) -> Sequence[int]:
        """Token ids of the conversation's next prompt, with its images as :class:`ImageTokens`; raises ModelError or
        DataError where the template or the target's processor refuses it."""
        options = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        images = images_of(conversation.prompt())
        if self.image_processor is None:
            refuse_images(conversation.prompt(), NO_IMAGES)
        messages = self.chat.adapt_tool_calls(conversation.prompt(), conversation.tools)
        text = self.chat.render(messages, True, conversation.tools, **options)
        conversation.prompt_opens_reasoning = OPEN_BLOCK.search(text) is not None
        if self.image_processor is None or not images:
            return encode_rendered(self.tokenizer, text)
        expanded = self.image_processor.expand(text, images).text
        return ImageTokens.of(encode_rendered(self.tokenizer, expanded), images)

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
    settings: Settings, model_path: str | None = None, reasoning_effort: str | None = None, *, images: bool = False
) -> ChatTokenizer:
    """The target's tokenizer, or that of ``model_path``, with the chat template of the settings; ``images`` where the
    engine can be shown them."""
    target = settings.target
    path = model_path or target.model_path
    tokenizer = load_tokenizer(path, revision=target.revision, trust_remote_code=target.trust_remote_code)
    chat = Chat(tokenizer, settings.data.chat_template, template_options(settings.data.chat_template_kwargs))
    processor = ImageProcessor(path, target.revision, target.trust_remote_code) if images else None
    return ChatTokenizer(tokenizer, chat, eos_ids(tokenizer, path), reasoning_effort, processor)
