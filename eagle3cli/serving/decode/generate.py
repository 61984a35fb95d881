"""Batched decoding with continuous batching: a row that finishes gives its place to the next prompt at once.

Prompts are read one at a time and every row has its own random stream, so that a reply never depends on its
neighbours. Knows nothing about text, conversations or drafts.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from eagle3cli.backends.target.positions import PositionCache, cached
from eagle3cli.serving.sampling import Sampling

SLOT_STEP = 128
"""The cache grows by at least this many positions, and by a half."""


@dataclass(frozen=True)
class Reply:
    """What the target wrote after prompt ``index``; the end token is included where it wrote one."""

    index: int
    token_ids: list[int]
    finish: Literal["stop", "length"]


@dataclass
class Row:
    """A prompt and what was written behind it so far."""

    index: int
    prompt: Sequence[int]
    limit: int
    stream: random.Random
    token_ids: list[int] = field(default_factory=list)


def settle(rows: list[Row | None], places: Sequence[int], tokens_B: Tensor, eos_ids: frozenset[int]) -> list[Reply]:
    """Write the new tokens of some places down; a row that has ended leaves its place and is returned."""
    finished = []
    for place, token in zip(places, tokens_B.tolist(), strict=True):
        row = rows[place]
        if row is None:
            continue
        row.token_ids.append(token)
        ended = token in eos_ids
        if ended or len(row.token_ids) >= row.limit:
            finished.append(Reply(row.index, row.token_ids, "stop" if ended else "length"))
            rows[place] = None
    return finished


def choose(logits_BV: Tensor, rows: Sequence[Row | None], sampling: Sampling) -> Tensor:
    """The next token of every row, ``[B]``; each row draws from its own random stream."""
    if sampling.temperature == 0:
        best_B: Tensor = logits_BV.argmax(-1)
        return best_B
    draws_B = torch.tensor([row.stream.random() if row else 0.0 for row in rows], device=logits_BV.device)
    return sample(logits_BV, draws_B, sampling)


class Decoder:
    """Prompts wait in a queue; :meth:`step` starts as many as there are free rows and adds one token to each.

    Use it inside ``with grouped(model)``. Example::

        decoder = Decoder(model, batch_size=8, eos_ids=frozenset({2}))
        decoder.add(0, [1, 5, 7], limit=16)
        while not decoder.is_finished:
            for reply in decoder.step():
                print(reply)
    """

    def __init__(
        self, model: PreTrainedModel, batch_size: int, eos_ids: frozenset[int], sampling: Sampling | None = None
    ) -> None:
        self.model, self.eos_ids, self.sampling = model, eos_ids, sampling or Sampling()
        self.cache = PositionCache(batch_size, 0)
        self.waiting: deque[Row] = deque()
        self.rows: list[Row | None] = [None] * batch_size
        self.length_B = torch.zeros(batch_size, dtype=torch.long, device=model.device)
        self.last_B = torch.zeros(batch_size, dtype=torch.long, device=model.device)

    @property
    def is_finished(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self.waiting and not any(self.rows)

    @property
    def wants_more(self) -> bool:
        """Fewer prompts wait than there are free rows."""
        return len(self.waiting) < self.rows.count(None)

    def add(
        self, index: int, prompt: Sequence[int], limit: int, *, stream: str | None = None, soon: bool = False
    ) -> None:
        """Queue a prompt (at least one token) for at most ``limit`` new tokens, in front of the others if ``soon``.

        ``stream`` names its random numbers; the index does unless given.
        """
        name = f"{self.sampling.seed}:{index if stream is None else stream}"
        row = Row(index, prompt, limit, random.Random(name))
        if soon:
            self.waiting.appendleft(row)
        else:
            self.waiting.append(row)

    @torch.inference_mode()
    def step(self) -> list[Reply]:
        """Start waiting prompts in the free rows, then one token for every running row. Returns what finished."""
        finished = []
        for place in range(len(self.rows)):
            while self.rows[place] is None and self.waiting:
                self.rows[place] = self.waiting.popleft()
                finished += self._settle([place], self._read_prompt(place))
        if not any(self.rows):
            return finished
        self._shrink()
        return finished + self._settle(range(len(self.rows)), self._next_tokens())

    def _settle(self, places: Sequence[int], tokens_B: Tensor) -> list[Reply]:
        return settle(self.rows, places, tokens_B, self.eos_ids)

    def _read_prompt(self, place: int) -> Tensor:
        row = self.rows[place]
        assert row is not None
        device = self.model.device
        prompt_1Q = torch.tensor([list(row.prompt)], device=device)
        positions_1Q = torch.arange(prompt_1Q.shape[1], device=device)[None]
        token_1 = self._forward(prompt_1Q, torch.tensor([place], device=device), positions_1Q, [row])
        self.length_B[place], self.last_B[place] = prompt_1Q.shape[1], token_1[0]
        return token_1

    def _next_tokens(self) -> Tensor:
        running_B = torch.tensor([row is not None for row in self.rows], device=self.length_B.device)
        position_B = torch.where(running_B, self.length_B, 0)
        every_B = torch.arange(len(self.rows), device=self.length_B.device)
        self.last_B = self._forward(self.last_B[:, None], every_B, position_B[:, None], self.rows)
        self.length_B += 1
        return self.last_B

    def _forward(self, ids_BQ: Tensor, place_B: Tensor, position_BQ: Tensor, rows: Sequence[Row | None]) -> Tensor:
        extent = int(position_BQ.max()) + 1
        self._grow(extent)
        self.cache.point(place_B, position_BQ, extent)
        logits_B1V = self.model(
            input_ids=ids_BQ,
            position_ids=position_BQ,
            use_cache=True,
            logits_to_keep=1,
            **cached(self.model, self.cache),
        ).logits
        return choose(logits_B1V[:, -1], rows, self.sampling)

    def _grow(self, extent: int) -> None:
        """Make room for ``extent`` positions."""
        cache = self.cache
        if extent <= cache.slots:
            return
        slots = max(extent, cache.slots * 3 // 2) + SLOT_STEP
        more = slots - cache.slots
        cache.keys = [F.pad(keys, (0, 0, 0, 0, 0, more)) for keys in cache.keys]
        cache.values = [F.pad(values, (0, 0, 0, 0, 0, more)) for values in cache.values]
        cache.slots = slots

    def _shrink(self) -> None:
        """Near the end, when rows stay empty, stop computing them."""
        running = [place for place, row in enumerate(self.rows) if row is not None]
        if self.waiting or len(running) > 0.75 * len(self.rows):
            return
        kept = torch.tensor(running, device=self.length_B.device)
        self.cache.keep(kept)
        self.rows = [self.rows[place] for place in running]
        self.length_B, self.last_B = self.length_B[kept], self.last_B[kept]


def sample(logits_BV: Tensor, draws_B: Tensor, sampling: Sampling) -> Tensor:
    """One token per row: the one in whose share of the (tempered, cut) distribution the draw in [0, 1) falls."""
    logits_BV = logits_BV.float() / sampling.temperature
    order_BK = None
    if sampling.top_k or sampling.top_p < 1:
        kept = min(sampling.top_k or logits_BV.shape[1], logits_BV.shape[1])
        logits_BV, order_BK = logits_BV.topk(kept, dim=-1)
    chances_BK = logits_BV.softmax(-1)
    if sampling.top_p < 1:
        before_BK = chances_BK.cumsum(-1) - chances_BK
        chances_BK = chances_BK.masked_fill(before_BK >= sampling.top_p, 0)
    bounds_BK = chances_BK.double().cumsum(-1)
    aims_B1 = (draws_B.double() * bounds_BK[:, -1])[:, None]
    chosen_B1 = torch.searchsorted(bounds_BK, aims_B1, right=True).clamp(max=bounds_BK.shape[1] - 1)
    return (chosen_B1 if order_BK is None else order_BK.gather(1, chosen_B1))[:, 0]
