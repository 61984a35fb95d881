"""What a benchmark asks and what comes back, whatever engine answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from eagle3cli.data.chat.template import Chat, template_options
from eagle3cli.data.chat.tokenizer import encode_rendered, eos_ids, load_tokenizer
from eagle3cli.data.conversations.messages import Message
from eagle3cli.data.conversations.system_prompt import with_system
from eagle3cli.serving.bench.configs import Config
from eagle3cli.serving.bench.questions import Question
from eagle3cli.serving.client.protocol import Acceptance, Answer
from eagle3cli.serving.reasoning import from_harmony, without_reasoning
from eagle3cli.serving.sampling import Sampling
from eagle3cli.settings.tables import Settings


@dataclass(frozen=True)
class Voice:
    """The target's tokenizer and chat template: messages to token ids, token ids to text. The same for all engines."""

    tokenizer: Any
    chat: Chat
    ends: frozenset[int]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids before the reply."""
        text = self.chat.render(list(messages), True)
        return encode_rendered(self.tokenizer, text)

    def text(self, token_ids: Sequence[int]) -> str:
        """A reply as text."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))

    def spoken(self, token_ids: Sequence[int]) -> str:
        """What of a reply the next turn repeats: the content without its reasoning."""
        if "<|channel|>" in self.tokenizer.get_added_vocab():
            said = from_harmony(str(self.tokenizer.decode(token_ids)))
            if said is not None:
                return said.content
        return without_reasoning(self.text(token_ids))


def load_voice(settings: Settings, model_path: str) -> Voice:
    """The target's tokenizer with the chat template of the settings."""
    target = settings.target
    tokenizer = load_tokenizer(model_path, revision=target.revision, trust_remote_code=target.trust_remote_code)
    chat = Chat(tokenizer, settings.data.chat_template, template_options(settings.data.chat_template_kwargs))
    return Voice(tokenizer, chat, eos_ids(tokenizer, model_path))


@dataclass
class Talk:
    """One question on its way through its turns."""

    number: int
    question: Question
    messages: list[Message]
    turns: int
    turn: int = 0

    @property
    def is_over(self) -> bool:
        """Whether every turn was answered."""
        return self.turn >= self.turns

    def ask(self, voice: Voice) -> list[int]:
        """The prompt of the next turn."""
        return voice.prompt([*self.messages, {"role": "user", "content": self.question.turns[self.turn]}])

    def hear(self, content: str) -> None:
        """Take the reply in and go on to the next turn."""
        self.messages.append({"role": "user", "content": self.question.turns[self.turn]})
        self.messages.append({"role": "assistant", "content": content})
        self.turn += 1


def opening(question: Question, system: str | None) -> list[Message]:
    """The messages before the first turn."""
    own: list[Message] = [{"role": "system", "content": question.system}] if question.system else []
    return own if system is None else with_system(own, system)


def talks_of(questions: Sequence[Question], system: str | None, *, multi_turn: bool) -> list[Talk]:
    """A talk for every question, of its first turn or of all."""
    return [
        Talk(number, question, opening(question, system), len(question.turns) if multi_turn else 1)
        for number, question in enumerate(questions)
    ]


@dataclass(frozen=True)
class Wanted:
    """How one measurement is made."""

    config: Config
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    repeat: int = 0

    def sampling(self, talk: Talk) -> Sampling:
        """How the next reply of a talk is drawn: each has a random stream of its own."""
        name = f"{self.seed}:{self.repeat}:{talk.number}:{talk.turn}"
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") >> 1
        return Sampling(self.temperature, seed=seed)


@dataclass(frozen=True)
class Heard:
    """One answer: to which question and turn, and everything that was told about it."""

    number: int
    turn: int
    prompt: tuple[int, ...]
    answer: Answer


@dataclass
class Measured:
    """One pass over all talks."""

    heard: list[Heard] = field(default_factory=list)
    seconds: float = 0.0
    acceptance: Acceptance | None = None
    """Over all answers, from a server that does not tell it for each."""


class Speaker(Protocol):
    """An engine at work with one speculation: what :class:`Measured` comes from."""

    voice: Voice
    context: int
    """Longest prompt and reply together, in tokens."""
    notes: tuple[str, ...]
    """What a reader of its numbers has to know."""

    @property
    def tie(self) -> float:
        """Log-probabilities that are closer than this may change places between two exact ways of computing them."""

    def warm_up(self, prompt: Sequence[int], wanted: Wanted, times: int) -> None:
        """Answers that nobody times."""

    def measure(
        self, talks: Sequence[Talk], wanted: Wanted, advance: Callable[[], None], check: Callable[[], None]
    ) -> Measured:
        """Ask every turn of every talk with ``wanted.config.batch`` under way at once; ``check`` may raise between."""

    def margin(self, prompt: Sequence[int], one: int, other: int) -> float | None:
        """How much the target prefers one of two tokens after ``prompt``, in log-probability; None: unknown."""
