"""Decoding in batches of prompts of similar length, for targets whose cache cannot be addressed by position.

A batch is read together, padded on the left, and decoded to its last sequence; the next one starts when it is done.
Slower than :class:`eagle3cli.serving.decode.generate.Decoder`, with the same verbs. The model makes the cache itself,
so that it may be of any kind, that of linear attention too; whether its replies are right is tried before it is used.

The shape legend is in ``models/draft.py``.
"""

from __future__ import annotations

import inspect
from collections import abc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eagle3cli.backends.target.positions import PositionCache, cached, counts_positions, grouped, keeps_positions
from eagle3cli.backends.target.prompt import ModelInputs, PromptReader
from eagle3cli.data.images.tokens import ImageTokens
from eagle3cli.errors import DataError, ModelError
from eagle3cli.models.sampling import Sampling
from eagle3cli.runtime.out_of_memory import is_out_of_memory
from eagle3cli.serving.decode.generate import BaseDecoder, Decoder, Sequence

CACHES = ("cache", "past_key_values", "cache_params", "state")
"""Names under which models take their cache, and give it back."""
PROBE_TOKENS = 16
PROBE_STEPS = 4
PROBE_ERRORS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What models raise for a cache of another kind than theirs, or for shapes that they do not expect."""
TOLERANCE = 1e-3
"""Of the largest logit, for weights of 32 bits: another order of sums differs by far less."""
ROUNDING = 1 / 3
"""Of what a wrong past changes, for weights of 16 bits. How far right paths differ there depends on the processor: by 1
to 2% of the largest logit with AVX512-BF16, by 6 to 10% with AMX. On SmolLM2-135M the former is a hundredth of a wrong
past's change; in the tests noise of AMX's size is a fifth of it at most, faults of a cache are .43 to 2.3 times it."""


class BatchDecoder(BaseDecoder):
    """As :class:`Decoder`, batch after batch; prompts that wait are taken in the order in which they came."""

    logits_BV: Tensor
    """What the last pass said of every row."""
    _cache: Any
    _mask_BS: Tensor
    _last_token_B: Tensor
    _shift: int

    @property
    def wants_more(self) -> bool:
        """No batch runs, and the next one is not full."""
        return not any(self.running) and len(self.waiting) < self.batch_size

    @torch.inference_mode()
    def step(self) -> list[Sequence]:
        """One token for every row of the batch, or the first of the next batch. Returns what finished."""
        name = _cache_name(self.model)
        if any(self.running):
            self._mask_BS = torch.cat((self._mask_BS, self._mask_BS.new_ones(len(self.running), 1)), 1)
            positions_B1 = self._mask_BS.sum(-1, keepdim=True) - 1 + self._shift
            arguments = {"input_ids": self._last_token_B[:, None], "position_ids": positions_B1, name: self._cache}
        else:
            try:
                arguments = self._next_batch()
            except DataError as error:  # an image that is gone, or another one, since the prompt was made
                return self._fail(error)
        if len(self.running) > 1:  # alone there is no padding, and some caches want no mask
            arguments["attention_mask"] = self._mask_BS
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:  # transformers 4 has models without it
            arguments["logits_to_keep"] = 1
        out = self.model(use_cache=True, **arguments)
        self._cache = out[name]
        self.logits_BV = out.logits[:, -1]
        self._last_token_B = self._choose(self.logits_BV, self.running)
        return self._append(range(len(self.running)), self._last_token_B)

    def _fail(self, error: DataError) -> list[Sequence]:
        """End the batch that could not be read; it is a single sequence with images."""
        failed = [sequence for sequence in self.running if sequence is not None]
        for sequence in failed:
            sequence.fail(error)
        self.running = [None]
        return failed

    def _next_batch(self) -> dict[str, Any]:
        """Start the next sequences with an empty cache; returns what the model reads of their prompts, padded on the
        left. One with images is a batch of its own."""
        batch = [self.waiting.popleft()]
        while len(batch) < self._most(batch[0]) and self.waiting and not _has_images(self.waiting[0]):
            batch.append(self.waiting.popleft())
        self.running = [*batch]
        inputs = ModelInputs({"input_ids": self._padded(batch)})
        positions_BQ = (self._mask_BS.cumsum(-1) - 1).clamp(min=0)
        if _has_images(batch[0]):
            inputs = self.reader.read(batch[0].prompt_ids)
        self._shift = inputs.shift
        return {"position_ids": positions_BQ, **inputs.arguments}

    def _most(self, first: Sequence) -> int:
        """How many prompts may be read with this one: none where padding would be counted as tokens."""
        return 1 if _has_images(first) or counts_positions(self.model) else self.batch_size

    def _padded(self, batch: abc.Sequence[Sequence]) -> Tensor:
        """The prompts ``[B, Q]``; the mask says where they are."""
        device = self.model.device
        longest = max(len(sequence.prompt_ids) for sequence in batch)
        padding = [longest - len(sequence.prompt_ids) for sequence in batch]
        starts_B1 = torch.tensor(padding, device=device)[:, None]
        self._mask_BS = (torch.arange(longest, device=device)[None] >= starts_B1).long()
        padded = [[*[0] * count, *sequence.prompt_ids] for count, sequence in zip(padding, batch, strict=True)]
        return torch.tensor(padded, device=device)


def _cache_name(model: PreTrainedModel) -> str:
    """The argument that is the cache, and the part of the output; raises TypeError where there is none."""
    arguments = inspect.signature(model.forward).parameters
    for name in CACHES:
        if name in arguments:
            return name
    raise TypeError("the model takes no cache")


def _has_images(sequence: Sequence) -> bool:
    return isinstance(sequence.prompt_ids, ImageTokens)


@contextmanager
def decoding(
    model: PreTrainedModel,
    batch_size: int,
    eos_ids: frozenset[int],
    sampling: Sampling | None = None,
    reader: PromptReader | None = None,
) -> Iterator[Decoder | BatchDecoder]:
    """The fastest decoder that is right for ``model``, to be used within the block; ``reader`` reads prompts with
    images. Raises ModelError where none is."""
    if not serves_positions(model):
        yield BatchDecoder(model, min(batch_size, _most_rows(model)), eos_ids, sampling, reader)
        return
    with grouped(model):
        yield Decoder(model, batch_size, eos_ids, sampling, reader)


def _most_rows(model: PreTrainedModel) -> int:
    """How many rows a :class:`BatchDecoder` may have: 1 where padding changes the replies. Raises ModelError where the
    model's cache is none that it can be decoded with."""
    if serves_batches(model, 2):
        return 1 << 30
    if serves_batches(model, 1):
        return 1
    what = f"{type(model).__name__} cannot be decoded here: with a cache its replies are not those without one"
    fix = "let a server write them: --engine sglang or vllm, or --server-address-port with one that runs"
    raise ModelError("out-of-memory", what, where=model.config.name_or_path or None, fix=fix)


@torch.inference_mode()
def serves_batches(model: PreTrainedModel, rows: int) -> bool:
    """Whether a :class:`BatchDecoder` of so many rows of different lengths gives the model's own logits, by trying."""
    vocab_size = model.config.get_text_config().vocab_size
    decoder = BatchDecoder(model, rows, frozenset())
    lengths = (PROBE_TOKENS, PROBE_TOKENS * 2 // 3)[:rows]
    prompts = [[(7 * row + i + 1) % vocab_size for i in range(length)] for row, length in enumerate(lengths)]
    for index, prompt in enumerate(prompts):
        decoder.add(index, prompt, PROBE_STEPS)
    replies: list[Sequence] = []
    try:
        while not decoder.is_finished:
            replies += decoder.step()
    except PROBE_ERRORS as error:
        if is_out_of_memory(error):
            raise
        return False
    texts = [[*reply.prompt_ids, *reply.token_ids[:-1]] for reply in replies]
    return same_as_alone(model, decoder.logits_BV, [torch.tensor(text, device=model.device) for text in texts])


@torch.inference_mode()
def serves_positions(model: PreTrainedModel, rows: int = 2) -> bool:
    """Whether a cache by positions is what this model's attention can use: by its config, and by trying.

    With ``rows`` of 1 whether it can for one row at a time; with 2 for rows that stand at different places, too.
    """
    if not keeps_positions(model) or (rows > 1 and counts_positions(model)):
        return False
    device = model.device
    vocab_size = model.config.get_text_config().vocab_size
    ids_BS = torch.arange(1, rows * (PROBE_TOKENS + 1) + 1, device=device).reshape(rows, -1) % vocab_size
    ends_B = torch.tensor([PROBE_TOKENS // 2, PROBE_TOKENS][:rows], device=device)
    rows_B = torch.arange(rows, device=device)
    cache = PositionCache(rows, PROBE_TOKENS + 1)

    def forward(ids_BQ: Tensor, positions_BQ: Tensor) -> Tensor:
        cache.point(rows_B, positions_BQ, int(positions_BQ.max()) + 1)
        options = {"position_ids": positions_BQ, "use_cache": True, **cached(model, cache)}
        logits_BV: Tensor = model(input_ids=ids_BQ, **options).logits[:, -1]
        return logits_BV

    try:
        with grouped(model):
            # The shorter row's padding, and what the cache kept of it, must leave no trace in the second pass.
            forward(ids_BS[:, :PROBE_TOKENS], torch.arange(PROBE_TOKENS, device=device).expand(rows, -1))
            logits_BV = forward(ids_BS[rows_B, ends_B][:, None], ends_B[:, None])
    except PROBE_ERRORS:
        return False  # a layer that wants more of its cache, or shapes of its own
    return same_as_alone(model, logits_BV, [ids_BS[row, : end + 1] for row, end in enumerate(ends_B.tolist())])


def same_as_alone(model: PreTrainedModel, logits_BV: Tensor, texts: list[Tensor]) -> bool:
    """Whether logits behind these texts are the model's own, but for rounding."""
    alone_BV = torch.stack([_last_logits(model, ids_S[None])[0] for ids_S in texts])
    if logits_BV.dtype == torch.float32:
        return bool((logits_BV - alone_BV).abs().max() <= TOLERANCE * alone_BV.abs().max())
    apart = (logits_BV.float() - alone_BV.float()).norm(dim=-1)
    wrong = torch.stack([_change_by_a_token(model, ids_S, row_V) for ids_S, row_V in zip(texts, alone_BV, strict=True)])
    return bool(apart.sum() <= ROUNDING * wrong.sum())


def _last_logits(model: PreTrainedModel, ids_BS: Tensor) -> Tensor:
    logits_BV: Tensor = model(input_ids=ids_BS, use_cache=False).logits[:, -1]
    return logits_BV


def _change_by_a_token(model: PreTrainedModel, ids_S: Tensor, logits_V: Tensor) -> Tensor:
    """How far the last token's logits move, as a distance, where one token before it is another: the median over all
    those tokens. A cache that shows a query something else than its past moves them as far, rounding does not."""
    vocab_size = len(logits_V)
    before = len(ids_S) - 1
    others_BS = ids_S.repeat(before, 1)
    at = torch.arange(before, device=ids_S.device)
    others_BS[at, at] = (others_BS[at, at] + vocab_size // 2) % vocab_size
    moved_B: Tensor = (_last_logits(model, others_BS).float() - logits_V.float()).norm(dim=-1)
    return moved_B.median()
