"""Batched decoding with continuous batching: a sequence that finishes gives its row to the next prompt at once.

Prompts are read one at a time and every sequence has its own random numbers, so that a reply never depends on its
neighbours. Knows nothing about text, conversations or drafts.

The shape legend is in ``models/draft.py``.
"""

from __future__ import annotations

import random
from collections import abc, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eagle3cli.backends.target.positions import PositionCache, cached
from eagle3cli.backends.target.prompt import PromptReader
from eagle3cli.errors import DataError, reason_of
from eagle3cli.models.sampling import Sampling

SLOT_STEP = 128
"""The cache grows by at least this many positions, and by a half."""
COMPACT_BELOW = 0.75
"""Finished rows are dropped from the batch once no more than this share is running and nothing waits."""


@dataclass
class Sequence:
    """A prompt and what the target wrote behind it so far; the end token is included where it wrote one."""

    index: int
    prompt_ids: abc.Sequence[int]
    max_tokens: int
    rng: random.Random = field(compare=False)
    token_ids: list[int] = field(default_factory=list)
    finish: str = ""
    """``stop``, ``length`` or ``error``; empty while it runs."""
    error: str = ""
    """Why the prompt could not be read, with what it is about; only images can be refused that late."""

    def extend(self, tokens: Iterable[int], eos_ids: frozenset[int]) -> int:
        """Add tokens up to the end of the reply; returns how many were added."""
        before = len(self.token_ids)
        for token in tokens:
            self.token_ids.append(token)
            if token in eos_ids:
                self.finish = "stop"
            elif len(self.token_ids) >= self.max_tokens:
                self.finish = "length"
            if self.finish:
                break
        return len(self.token_ids) - before

    def fail(self, error: DataError) -> None:
        """It ends without a reply."""
        self.finish = "error"
        self.error = reason_of(error)


class BaseDecoder:
    """The queue of sequences that wait and those that run, by their row of the batch (None: the row is free)."""

    def __init__(
        self,
        model: PreTrainedModel,
        batch_size: int,
        eos_ids: frozenset[int],
        sampling: Sampling | None = None,
        reader: PromptReader | None = None,
    ) -> None:
        self.model = model
        self.reader = reader or PromptReader(model, model.device, model.dtype)
        self.eos_ids = eos_ids
        self.sampling = sampling or Sampling()
        self.batch_size = batch_size
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence | None] = [None] * batch_size

    @property
    def is_finished(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self.waiting and not any(self.running)

    def add(
        self, index: int, prompt: abc.Sequence[int], limit: int, *, stream: str | None = None, soon: bool = False
    ) -> None:
        """Queue a prompt (at least one token; it may have images) for at most ``limit`` new tokens, in front of the
        others if ``soon``.

        ``stream`` names its random numbers; the index does unless given.
        """
        name = f"{self.sampling.seed}:{index if stream is None else stream}"
        sequence = Sequence(index, prompt, limit, random.Random(name))
        if soon:
            self.waiting.appendleft(sequence)
        else:
            self.waiting.append(sequence)

    def _append(self, rows: Iterable[int], tokens_B: Tensor) -> list[Sequence]:
        """Give the sequences of these rows their new tokens; one that ends leaves its row and is returned."""
        finished = []
        for row, token in zip(rows, tokens_B.tolist(), strict=True):
            sequence = self.running[row]
            if sequence is None:
                continue
            sequence.extend([token], self.eos_ids)
            if sequence.finish:
                finished.append(sequence)
                self.running[row] = None
        return finished

    def _choose(self, logits_BV: Tensor, sequences: Iterable[Sequence | None]) -> Tensor:
        """The next token of every row, ``[B]``; each sequence draws from its own random numbers."""
        if self.sampling.temperature == 0:
            best_B: Tensor = logits_BV.argmax(-1)
            return best_B
        numbers = [sequence.rng.random() if sequence else 0.0 for sequence in sequences]
        return sample(logits_BV, torch.tensor(numbers, device=logits_BV.device), self.sampling)


class Decoder(BaseDecoder):
    """Prompts wait in a queue; :meth:`step` starts as many as there are free rows and adds one token to each.

    Use it inside ``with grouped(model)``. Example::

        decoder = Decoder(model, batch_size=8, eos_ids=frozenset({2}))
        decoder.add(0, [1, 5, 7], limit=16)
        while not decoder.is_finished:
            for sequence in decoder.step():
                print(sequence.index, sequence.token_ids, sequence.finish)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batch_size: int,
        eos_ids: frozenset[int],
        sampling: Sampling | None = None,
        reader: PromptReader | None = None,
    ) -> None:
        super().__init__(model, batch_size, eos_ids, sampling, reader)
        self.cache = PositionCache(batch_size, 0)
        self.length_B = torch.zeros(batch_size, dtype=torch.long, device=model.device)
        self.last_token_B = torch.zeros_like(self.length_B)

    @property
    def wants_more(self) -> bool:
        """Fewer prompts wait than there are free rows."""
        return len(self.waiting) < self.running.count(None)

    @torch.inference_mode()
    def step(self) -> list[Sequence]:
        """Start waiting prompts in the free rows, then one token for every running row. Returns what finished."""
        finished: list[Sequence] = []
        for row in range(len(self.running)):
            while self.running[row] is None and self.waiting:
                sequence = self.running[row] = self.waiting.popleft()
                try:
                    token_1 = self._prefill(row, sequence)
                except DataError as error:  # an image that is gone, or another one, since the prompt was made
                    sequence.fail(error)
                    self.running[row] = None
                    finished.append(sequence)
                    continue
                finished += self._append([row], token_1)
        if any(self.running):
            self._compact()
            finished += self._append(range(len(self.running)), self._decode())
        return finished

    def _prefill(self, row: int, sequence: Sequence) -> Tensor:
        device = self.model.device
        length = len(sequence.prompt_ids)
        inputs = self.reader.read(sequence.prompt_ids)
        positions_1Q = torch.arange(length, device=device)[None]
        arguments = {"position_ids": positions_1Q, **inputs.arguments}
        token_1 = self._forward(arguments, torch.tensor([row], device=device), positions_1Q, [sequence])
        self.cache.set_shift(row, inputs.shift)
        self.length_B[row] = length
        self.last_token_B[row] = token_1[0]
        return token_1

    def _decode(self) -> Tensor:
        device = self.length_B.device
        # A free row is computed, too; at position 0 it does not make the pass look further than the others need.
        is_running_B = torch.tensor([sequence is not None for sequence in self.running], device=device)
        positions_B1 = torch.where(is_running_B, self.length_B, 0)[:, None]
        rows_B = torch.arange(len(self.running), device=device)
        arguments = {
            "input_ids": self.last_token_B[:, None],
            "position_ids": self.cache.turned_by(rows_B, positions_B1),
        }
        self.last_token_B = self._forward(arguments, rows_B, positions_B1, self.running)
        self.length_B += 1
        return self.last_token_B

    def _forward(
        self,
        arguments: dict[str, Tensor],
        rows_B: Tensor,
        positions_BQ: Tensor,
        sequences: Iterable[Sequence | None],
    ) -> Tensor:
        """One pass over slots ``positions`` of these rows; returns the token behind each."""
        extent = int(positions_BQ.max()) + 1
        self._grow(extent)
        self.cache.point(rows_B, positions_BQ, extent)
        logits_B1V = self.model(use_cache=True, logits_to_keep=1, **arguments, **cached(self.model, self.cache)).logits
        return self._choose(logits_B1V[:, -1], sequences)

    def _grow(self, extent: int) -> None:
        """Make room for ``extent`` positions."""
        if extent > self.cache.slots:
            self.cache.grow(max(extent, self.cache.slots * 3 // 2) + SLOT_STEP)

    def _compact(self) -> None:
        """Near the end, when rows stay free, stop computing them."""
        rows = [row for row, sequence in enumerate(self.running) if sequence is not None]
        if self.waiting or len(rows) > COMPACT_BELOW * len(self.running):
            return
        rows_B = torch.tensor(rows, device=self.length_B.device)
        self.cache.keep(rows_B)
        self.running = [self.running[row] for row in rows]
        self.length_B = self.length_B[rows_B]
        self.last_token_B = self.last_token_B[rows_B]


def sample(logits_BV: Tensor, uniform_B: Tensor, sampling: Sampling) -> Tensor:
    """One token per row, ``[B]``: drawn from the distribution at the temperature, cut to ``top_k`` and ``top_p``."""
    logits_BV = logits_BV.float() / sampling.temperature
    ids_BV = None
    if sampling.top_k or sampling.top_p < 1:
        vocab_size = logits_BV.shape[1]
        logits_BV, ids_BV = logits_BV.topk(min(sampling.top_k or vocab_size, vocab_size), dim=-1)
    probs_BV = logits_BV.softmax(-1)
    if sampling.top_p < 1:
        before_BV = probs_BV.cumsum(-1) - probs_BV
        probs_BV = probs_BV.masked_fill(before_BV >= sampling.top_p, 0)
    chosen_B = draw(probs_BV, uniform_B)
    return chosen_B if ids_BV is None else ids_BV.gather(1, chosen_B[:, None])[:, 0]


def draw(probs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """One index per row, ``[B]``: the one in whose share of the row's sum the number in [0, 1) falls.

    The probabilities need not sum to one. An own number for each row, unlike ``torch.multinomial``'s, makes a reply
    independent of the batch that it is drawn in.
    """
    cumulative_BV = probs_BV.double().cumsum(-1)
    thresholds_B1 = (uniform_B * cumulative_BV[:, -1])[:, None].contiguous()
    return torch.searchsorted(cumulative_BV, thresholds_B1, right=True).clamp(max=probs_BV.shape[1] - 1)[:, 0]
