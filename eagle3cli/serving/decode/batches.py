"""Decoding in batches of prompts of similar length, for targets whose cache cannot be addressed by position.

A batch is read together, padded on the left, and decoded to its last row; the next one starts when it is done. Slower
than :class:`eagle3cli.serving.decode.generate.Decoder`, with the same verbs, and right for every cache that
transformers has, that of linear attention too.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from eagle3cli.backends.target.positions import PositionCache, cached, counts_positions, grouped, keeps_positions
from eagle3cli.serving.decode.generate import Decoder, Reply, Row, choose, settle
from eagle3cli.serving.sampling import Sampling

PROBE_TOKENS = 16
TOLERANCE, TOLERANCE_16 = 1e-3, 0.02
"""Of the largest logit, for weights of 32 and 16 bits: another order of sums differs by far less."""


class BatchDecoder:
    """As :class:`Decoder`, batch after batch; prompts that wait are taken in the order in which they came."""

    def __init__(
        self, model: PreTrainedModel, batch_size: int, eos_ids: frozenset[int], sampling: Sampling | None = None
    ) -> None:
        self.model, self.batch_size = model, batch_size
        self.eos_ids, self.sampling = eos_ids, sampling or Sampling()
        self.waiting: deque[Row] = deque()
        self.rows: list[Row | None] = []
        self._cache: Any = None
        self._mask_BS = torch.zeros(0, 0)
        self._last_B = torch.zeros(0)

    @property
    def is_finished(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self.waiting and not any(self.rows)

    @property
    def wants_more(self) -> bool:
        """No batch runs, and the next one is not full."""
        return not any(self.rows) and len(self.waiting) < self.batch_size

    def add(
        self, index: int, prompt: Sequence[int], limit: int, *, stream: str | None = None, soon: bool = False
    ) -> None:
        """Queue a prompt, see :meth:`Decoder.add`; ``soon`` puts it in front."""
        name = f"{self.sampling.seed}:{index if stream is None else stream}"
        (self.waiting.appendleft if soon else self.waiting.append)(Row(index, prompt, limit, random.Random(name)))

    @torch.inference_mode()
    def step(self) -> list[Reply]:
        """One token for every row of the batch, or the first of the next batch. Returns what finished."""
        if any(self.rows):
            self._mask_BS = torch.cat((self._mask_BS, self._mask_BS.new_ones(len(self.rows), 1)), 1)
            ids_BQ = self._last_B[:, None]
        else:
            taken = [self.waiting.popleft() for _ in range(min(self.batch_size, len(self.waiting)))]
            self.rows = [*taken]
            longest = max(len(row.prompt) for row in taken)
            padded = [[0] * (longest - len(row.prompt)) + list(row.prompt) for row in taken]
            ids_BQ = torch.tensor(padded, device=self.model.device)
            starts_B1 = torch.tensor([[longest - len(row.prompt)] for row in taken], device=self.model.device)
            self._mask_BS = (torch.arange(longest, device=self.model.device)[None] >= starts_B1).long()
            self._cache = DynamicCache(config=self.model.config)
        self._last_B = self._forward(ids_BQ)
        return settle(self.rows, range(len(self.rows)), self._last_B, self.eos_ids)

    def _forward(self, ids_BQ: Tensor) -> Tensor:
        positions_BS = (self._mask_BS.cumsum(-1) - 1).clamp(min=0)
        logits_B1V = self.model(
            input_ids=ids_BQ,
            position_ids=positions_BS[:, -ids_BQ.shape[1] :],
            attention_mask=self._mask_BS,
            use_cache=True,
            logits_to_keep=1,
            **cached(self.model, self._cache),
        ).logits
        return choose(logits_B1V[:, -1], self.rows, self.sampling)


@contextmanager
def decoding(
    model: PreTrainedModel, batch_size: int, eos_ids: frozenset[int], sampling: Sampling | None = None
) -> Iterator[Decoder | BatchDecoder]:
    """The fastest decoder that is right for ``model``, to be used within the block."""
    if not serves_positions(model):
        yield BatchDecoder(model, batch_size, eos_ids, sampling)
        return
    with grouped(model):
        yield Decoder(model, batch_size, eos_ids, sampling)


@torch.inference_mode()
def serves_positions(model: PreTrainedModel, rows: int = 2) -> bool:
    """Whether a cache by positions is what this model's attention can use: by its config, and by trying.

    With ``rows`` of 1 whether it can for one row at a time; with 2 for rows that stand at different places, too.
    """
    if not keeps_positions(model) or (rows > 1 and counts_positions(model)):
        return False
    config = model.config.get_text_config()
    device, count = model.device, PROBE_TOKENS
    ids_BS = torch.arange(1, rows * (count + 1) + 1, device=device).reshape(rows, count + 1) % config.vocab_size
    ends_B = torch.tensor([count // 2, count][:rows], device=device)
    rows_B, positions_BQ = torch.arange(rows, device=device), torch.arange(count, device=device).expand(rows, count)
    cache = PositionCache(rows, count + 1)

    def forward(ids_BQ: Tensor, positions_BQ: Tensor) -> Tensor:
        cache.point(rows_B, positions_BQ, int(positions_BQ.max()) + 1)
        found: Tensor = model(
            input_ids=ids_BQ, position_ids=positions_BQ, use_cache=True, **cached(model, cache)
        ).logits[:, -1]
        return found

    try:
        with grouped(model):
            # The shorter row's padding, and what the cache kept of it, must leave no trace in the second pass.
            forward(ids_BS[:, :count], positions_BQ)
            got_BV = forward(ids_BS[rows_B, ends_B][:, None], ends_B[:, None])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return False  # a layer that wants more of its cache, or shapes of its own
    own = [model(input_ids=ids_BS[row : row + 1, : ends_B[row] + 1], use_cache=False).logits[0, -1] for row in rows_B]
    own_BV = torch.stack(own)
    allowed = TOLERANCE if got_BV.dtype == torch.float32 else TOLERANCE_16
    return bool((got_BV - own_BV).abs().max() <= allowed * own_BV.abs().max())
