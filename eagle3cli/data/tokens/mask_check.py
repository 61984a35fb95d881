"""The judge at work before anything is built on masks: on built-in conversations, and on a sample of the real rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from eagle3cli.data.chat.oracle import truth_of
from eagle3cli.data.chat.stand_ins import Stops, Unknown
from eagle3cli.data.chat.template import Chat, Messages, Tools
from eagle3cli.data.chat.template_check import SAMPLES
from eagle3cli.data.chat.tokenizer import configured_eos_ids
from eagle3cli.data.conversations.conversation import Conversation, to_conversation
from eagle3cli.data.conversations.messages import image_parts
from eagle3cli.data.conversations.system_prompt import with_system
from eagle3cli.data.sources.lines import SourceRow, parse_line
from eagle3cli.data.tokens.blocks import EncoderConfig, Item, blocks_of
from eagle3cli.data.tokens.encode import Encoder
from eagle3cli.data.tokens.judge import Disagreement, compare, shown
from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.errors import DataError

SAMPLE_ROWS = 24
SEARCHED_BLOCKS = 2
"""Blocks at the start of a file in which rows of every shape are looked for."""
MOST_MESSAGES = 14
"""Of a longer conversation its beginning is judged."""
FIX = (
    "name the template that the target is served with (--chat-template), or check its stop tokens "
    "(generation_config.json); if the row is right, go on with --no-check-masks and report it"
)


@dataclass(frozen=True)
class Judgement:
    """What the judge says of one conversation: right, wrong, refused (no exact mask), or unknown to the oracle."""

    verdict: str
    detail: str = ""
    shown: str = ""
    """The row as text, what is trained between « and »; "" where there is none."""


class Judge:
    """An encoder's rows against the oracle."""

    def __init__(self, encoder: Encoder, stop_ids: frozenset[int]) -> None:
        """``stop_ids`` are the tokens at which the target stops by its configuration."""
        tokenizer = encoder.tokenizer
        self.encoder = encoder
        self.chat = Chat(tokenizer, encoder.chat_template, encoder.chat_options)
        texts = [tokenizer.convert_ids_to_tokens(number) or "" for number in sorted(stop_ids)]
        special = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        eos = tokenizer.eos_token or next(iter(texts), "")
        self.configured = tuple(dict.fromkeys([*texts, eos]))
        """Texts of the tokens at which the target stops by its configuration."""
        self.written = encoder.format.closing
        """What the template writes behind a conversation's last reply, up to the target's stop; "" for nothing."""
        self.stops = Stops(self.configured, special, eos)

    def judge(self, conversation: Conversation) -> Judgement:
        """Encode the conversation, ask the oracle, and compare."""
        row = self.encoder.encode([conversation])[0]
        messages = conversation.messages
        if self.encoder.system_prompt is not None:
            messages = tuple(with_system(messages, self.encoder.system_prompt))
        replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        ended = zip(replies, conversation.finish, strict=False)
        cut = frozenset(index for index, reason in ended if reason == "length")
        if isinstance(row, DataError):
            return Judgement("refused", row.message)
        try:
            truth = truth_of(self.chat, messages, self.stops, tools=conversation.tools, cut=cut)
        except Unknown as error:
            return Judgement("unknown", str(error), self._shown(row))
        wrong = compare(self.encoder.tokenizer, row, truth, last_only=self.encoder.last_turn_only)
        if wrong is None:
            return Judgement("right", "", self._shown(row))
        return Judgement("wrong", f"token {wrong.token + 1}: {wrong.what}", self._shown(row, wrong))

    def _shown(self, row: TokenRow, wrong: Disagreement | None = None) -> str:
        return shown(self.encoder.tokenizer, row, wrong.token if wrong else len(row))


def judge_of(config: EncoderConfig, encoder: Encoder | None = None) -> Judge:
    """The judge of a config's rows; loads the tokenizer unless its ``encoder`` is at hand."""
    encoder = encoder or config.encoder()
    return Judge(encoder, configured_eos_ids(encoder.tokenizer, config.model_path))


def judge_probes(judge: Judge) -> list[tuple[str, Judgement]]:
    """The built-in conversations by name, and what the judge says of each."""
    return [(name, judge.judge(conversation)) for name, conversation in probes()]


def probes() -> list[tuple[str, Conversation]]:
    """Plain turns, tools, reasoning, chains of calls, empty replies and replies that broke off."""
    named = {sample.name: sample for sample in SAMPLES}
    probes = [_probe(sample.name, sample.messages, sample.tools) for sample in SAMPLES]
    turns = named["turns"].messages
    probes.append(_probe("reply cut at a length limit", turns, finish=("stop",) * (len(turns) // 2 - 1) + ("length",)))
    question, call, result, answer = named["tool call"].messages
    tools = named["tool call"].tools
    thoughtful = {**call, "reasoning_content": "I have to look."}
    probes.append(_probe("chain of tool calls", (question, call, result, call, result, answer), tools))
    probes.append(_probe("reasoning before a call", (question, thoughtful, result, answer), tools))
    probes.append(_probe("call at the end", (question, call), tools))
    return probes


def _probe(name: str, messages: Messages, tools: Tools = (), finish: tuple[str, ...] = ()) -> tuple[str, Conversation]:
    return name, Conversation(name, tuple(map(dict, messages)), finish, tuple(map(dict, tools)))


def check_masks(config: EncoderConfig, paths: Mapping[str, Path], encoder: Encoder | None = None) -> dict[str, int]:
    """Judge a sample of each file's rows; counts by verdict. Nothing is judged of pre-formatted rows.

    Raises DataError with the place, the reason and the row, mask visible, where encoder and oracle disagree.
    """
    if config.is_preformatted:
        return {}
    judge = judge_of(config, encoder)
    counts = {"right": 0, "refused": 0, "unknown": 0}
    for path in paths.values():
        for line, conversation in _sample(path):
            judgement = judge.judge(conversation)
            if judgement.verdict == "wrong":
                what = f"the mask is not what the target would have written ({judgement.detail})"
                raise DataError("mask-wrong", f"{what}:\n{judgement.shown}", where=f"{path}:{line}", fix=FIX)
            counts[judgement.verdict] += 1
    return counts


def _sample(path: Path) -> list[tuple[int, Conversation]]:
    """Some rows from the start of a file, one of every shape before a second one of any."""
    items = [item for block in islice(blocks_of(path), SEARCHED_BLOCKS) for item in block]
    seen: dict[Any, int] = {}
    ranked = []
    for order, (line, conversation) in enumerate(_readable(items, str(path))):
        shape = _shape(conversation)
        seen[shape] = seen.get(shape, 0) + 1
        ranked.append((seen[shape], order, line, conversation))
    return [
        (line, conversation) for _, _, line, conversation in sorted(ranked, key=lambda item: item[:2])[:SAMPLE_ROWS]
    ]


def _readable(items: Sequence[Item], path: str) -> Iterable[tuple[int, Conversation]]:
    for item in items:
        row = item if isinstance(item, SourceRow) else parse_line(*item, path)
        try:
            conversation = to_conversation(row.parsed())
        except (DataError, RecursionError):
            continue
        if any(map(image_parts, conversation.messages)):
            continue  # what stands for an image is the processor's business, which the judge does not know
        yield row.number, _beginning(conversation)


def _beginning(conversation: Conversation) -> Conversation:
    """The conversation up to its last reply within the first messages."""
    messages = conversation.messages[:MOST_MESSAGES]
    while len(messages) < len(conversation.messages) and messages and messages[-1]["role"] != "assistant":
        messages = messages[:-1]
    replies = sum(message["role"] == "assistant" for message in messages)
    return Conversation(conversation.id, messages, conversation.finish[:replies], conversation.tools)


def _shape(conversation: Conversation) -> tuple[Any, ...]:
    kinds = tuple(
        (
            message["role"],
            bool(message["content"]),
            bool(message.get("reasoning_content")),
            "</think>" in message["content"],
        )
        for message in conversation.messages
    )
    calls = tuple(len(message.get("tool_calls") or ()) for message in conversation.messages)
    return frozenset(kinds), max(calls, default=0), bool(conversation.tools), "length" in conversation.finish
