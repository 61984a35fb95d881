"""What a benchmark asks of an engine and what comes back, whatever engine replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from eagle3cli.data.conversations.messages import Message, image_parts
from eagle3cli.data.conversations.system_prompt import with_system
from eagle3cli.models.sampling import Sampling
from eagle3cli.serving.bench.configs import Config
from eagle3cli.serving.bench.questions import Question
from eagle3cli.serving.chat_tokenizer import ChatTokenizer
from eagle3cli.serving.client.protocol import Acceptance
from eagle3cli.serving.conversation import OpenConversation, Response
from eagle3cli.serving.sampling import stream_seed

Hook = Callable[[], None]
Advance = Callable[..., None]
"""Counts an answer; takes what a :class:`eagle3cli.runtime.report.ProgressBar` takes."""


def open_conversations(
    questions: Sequence[Question], system: str | None, *, multi_turn: bool
) -> list[OpenConversation]:
    """A conversation for every question, of its first turn or of all; ``system`` takes the place of its own."""
    conversations = []
    for index, question in enumerate(questions):
        opening: list[Message] = [{"role": "system", "content": question.system}] if question.system else []
        pending: list[Message | None] = [*(opening if system is None else with_system(opening, system))]
        for turn in range(len(question.turns) if multi_turn else 1):
            pending += [question.asked(turn), None]
        conversations.append(OpenConversation(index, pending))
    return conversations


def prompt_size(conversation: OpenConversation, engine: Engine) -> int:
    """Tokens of the first prompt; the conversation is used up. Raises ModelError or DataError where the target cannot
    be asked it, or an image of a later turn."""
    size = len(engine.tokenizer.encode(conversation))
    if any(message is not None and image_parts(message) for message in conversation.pending):
        conversation.append_reply("Yes.", "stop")
        while not conversation.is_complete:
            engine.tokenizer.encode(conversation)
            conversation.append_reply("Yes.", "stop")
    return size


@dataclass(frozen=True)
class MeasureOptions:
    """How one measurement is made."""

    config: Config
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    repeat: int = 0

    def sampling(self, conversation: OpenConversation) -> Sampling:
        """How the next reply of a conversation is drawn: each has a random stream of its own."""
        name = f"{self.seed}:{self.repeat}:{conversation.index}:{conversation.replies}"
        return Sampling(self.temperature, self.top_p, self.top_k, stream_seed(name))


@dataclass
class Measurement:
    """One pass over all conversations."""

    responses: list[Response] = field(default_factory=list)
    seconds: float = 0.0
    acceptance: Acceptance | None = None
    """Over all replies, from a server that does not tell it for each."""
    cpu_seconds: float | None = None
    """Of all threads, where the engine computes in this process."""

    def add(self, other: Measurement) -> None:
        """Take in the pass over other conversations."""
        self.responses += other.responses
        self.seconds += other.seconds
        if other.acceptance is not None:
            self.acceptance = other.acceptance if self.acceptance is None else self.acceptance + other.acceptance
        if other.cpu_seconds is not None:
            self.cpu_seconds = (self.cpu_seconds or 0.0) + other.cpu_seconds


def merged(parts: Sequence[Measurement]) -> Measurement:
    """The rounds of a repeat as one pass over all conversations."""
    whole = Measurement()
    for part in parts:
        whole.add(part)
    return whole


class Engine(Protocol):
    """What replies, with one speculation: :class:`Measurement` comes from it."""

    tokenizer: ChatTokenizer
    context: int
    """Longest prompt and reply together, in tokens."""
    notes: tuple[str, ...]
    """Why its answers at a temperature are not samples of the target; empty where they are."""
    drafting: str
    """How draft tokens are chosen at a temperature: ``probabilistic`` or ``greedy``; empty where unknown."""

    @property
    def facts(self) -> dict[str, Any]:
        """What it is, for the results: ``engine``, ``engine_version``, ``dtype``, ``device``; empty where unknown."""

    @property
    def tie_limit(self) -> float:
        """Log-probabilities that are closer than this may change places between two exact ways of computing them."""

    def warm_up(self, prompt: Sequence[int], options: MeasureOptions, times: int, check: Hook) -> None:
        """Replies that nobody times; ``check`` may raise between two steps."""

    def rounds(self, conversations: Sequence[OpenConversation], batch: int) -> list[list[int]]:
        """The conversations, by their place in the list, in parts that configurations may take turns with."""

    def measure(
        self, conversations: Sequence[OpenConversation], options: MeasureOptions, advance: Advance, check: Hook
    ) -> Measurement:
        """Ask every turn with ``options.config.batch`` under way at once; ``check`` may raise between two steps."""

    def logit_margin(self, prompt: Sequence[int], one: int, other: int) -> float | None:
        """How much the target prefers one of two tokens after ``prompt``, in log-probability; None: unknown."""
