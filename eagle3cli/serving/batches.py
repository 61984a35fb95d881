"""Decoding in batches of prompts of similar length, for targets whose cache cannot be addressed by position.

A batch is read together, padded on the left, and decoded to its last row; the next one starts when it is done. Slower
than :class:`eagle3cli.serving.generate.Decoder`, with the same verbs, and right for every cache that transformers has:
sliding windows, attention sinks, linear attention.
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

from eagle3cli.backends.positions import PositionCache, cached, grouped, position_mask
from eagle3cli.serving.generate import Decoder, Reply, Row, choose, settle
from eagle3cli.serving.sampling import Sampling

PROBE_TOKENS = 16
TOLERANCE = 0.02
"""Of the largest logit: a wrong attention differs by far more, another order of sums by far less."""


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
def serves_positions(model: PreTrainedModel) -> bool:
    """Whether a cache by positions with plain attention is what this model computes: by its config, and by trying."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "attn_logit_softcapping", None):
        return False
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and window < (config.max_position_embeddings or 0):
        return False
    ids_1Q = torch.arange(1, PROBE_TOKENS + 1, device=model.device)[None] % config.vocab_size
    positions_1Q = torch.arange(PROBE_TOKENS, device=model.device)[None]
    own_V = model(input_ids=ids_1Q, use_cache=False).logits[0, -1].float()
    cache = PositionCache(1, PROBE_TOKENS)
    cache.point(torch.zeros(1, dtype=torch.long, device=model.device), positions_1Q, PROBE_TOKENS)
    mask = position_mask(positions_1Q, PROBE_TOKENS, model.dtype)
    try:
        with grouped(model):
            out = model(
                input_ids=ids_1Q, position_ids=positions_1Q, attention_mask=mask, use_cache=True, **cached(model, cache)
            )
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return False  # a layer that wants more of its cache, or shapes of its own
    return bool((out.logits[0, -1].float() - own_V).abs().max() <= TOLERANCE * own_V.abs().max())
