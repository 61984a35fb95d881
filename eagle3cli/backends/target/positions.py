"""A key/value cache whose slot number IS the token's position, for batched decoding with rollback.

Every row of the batch has its own length. A token at position ``p`` is written to slot ``p`` of its row and a query at
position ``q`` sees the slots ``<= q``, so a rejected token needs no clean-up: its slot is written again before any
query can see it, and right-padding of a prompt disappears the same way. What else a family's attention does (sliding
windows, chunks, soft-caps, sinks) is kept: transformers says which slots a layer sees, and hands over the rest as
arguments. Knows nothing about sampling or drafting.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache

from eagle3cli.models.window import Window

GROUPED_ATTENTION = "eagle3_grouped"
ADDRESSED = {"full_attention", "sliding_attention", "chunked_attention", "indexed_attention"}
"""Kinds of layers whose past is states by position; the last chooses its keys, by states of theirs (DeepSeek-V3.2)."""
BLOCKWISE = {"compressed_sparse_attention", "heavily_compressed_attention", "minimax_m3_sparse"}
"""Kinds of layers that count keys in blocks from the first one on, padding too."""
_current: ContextVar[PositionCache] = ContextVar("_current")
"""The cache that was pointed last: transformers asks for a layer's mask without saying where the rows stand."""


def grouped_attention(
    module: torch.nn.Module,
    query_BAQD: Tensor,
    key_BKSD: Tensor,
    value_BKSD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    indices: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention that never repeats keys for grouped queries: the group is folded into the query rows.

    ``attention_mask`` is additive, ``[B, 1, Q, S]``; ``softcap`` bounds the scores, ``s_aux`` ``[A]`` is the score of
    a sink, a key that every query sees and that has no value; ``indices`` ``[B, Q, any]`` are the only keys that a
    query attends to, of those it sees. The result is ``[B, Q, A, D]`` as transformers expects.
    """
    batch, heads, queries, dim = query_BAQD.shape
    kv_heads = key_BKSD.shape[1]
    groups = heads // kv_heads
    # The heads of a group read the same keys: as more query rows of one head they need no copies of them.
    query = query_BAQD.reshape(batch, kv_heads, groups * queries, dim)
    mask = attention_mask
    if indices is not None:
        assert mask is not None, "keys are chosen among those that a mask shows"
        left_out_B1QS = torch.ones_like(mask, dtype=torch.bool).scatter(-1, indices[:, None].long(), False)
        mask = mask.masked_fill(left_out_B1QS, float("-inf"))
    if mask is not None and groups > 1 and queries > 1:
        mask = mask.repeat(1, 1, groups, 1)
    if s_aux is not None:
        # A sink is a key of zeros whose score the mask supplies, and whose value of zeros adds nothing.
        key_BKSD, value_BKSD = (F.pad(states, (0, 0, 0, 1)) for states in (key_BKSD, value_BKSD))
        sink = (
            s_aux.reshape(1, kv_heads, groups, 1, 1).expand(batch, -1, -1, queries, 1).reshape(batch, kv_heads, -1, 1)
        )
        assert mask is not None, "sinks come with a mask"
        mask = torch.cat((mask.expand(batch, kv_heads, groups * queries, -1), sink.to(mask.dtype)), -1)
    if softcap is None:
        out = F.scaled_dot_product_attention(query, key_BKSD, value_BKSD, attn_mask=mask, scale=scaling)
    else:
        scores = query @ key_BKSD.mT * (dim**-0.5 if scaling is None else scaling)
        scores = torch.tanh(scores / softcap) * softcap
        probabilities = torch.softmax((scores if mask is None else scores + mask).float(), -1)
        out = probabilities.to(query.dtype) @ value_BKSD
    # Some families view the heads side by side, which needs them so in memory.
    return out.reshape(batch, heads, queries, -1).transpose(1, 2).contiguous(), None


def grouped_mask(*, mask_function: Callable[..., Tensor], dtype: torch.dtype, **_: Any) -> Tensor:
    """The additive mask ``[B, 1, Q, S]`` of one kind of layers: ``mask_function(row, head, query, key)`` they see."""
    cache = _current.get()
    queries = cache.positions_BQ
    rows = torch.arange(len(queries), device=queries.device)
    slots = torch.arange(cache.extent, device=queries.device)
    visible = mask_function(rows[:, None, None, None], slots.new_zeros(()), queries[:, None, :, None], slots)
    return _additive(~visible, dtype).expand(len(rows), -1, -1, -1)


def _additive(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))


AttentionInterface.register(GROUPED_ATTENTION, grouped_attention)
AttentionMaskInterface.register(GROUPED_ATTENTION, grouped_mask)


class PositionCache(Cache):
    """Keys and values of ``rows`` x ``slots`` positions for every layer of a transformers decoder."""

    def __init__(self, rows: int, slots: int) -> None:
        super().__init__(layers=[])
        self.rows = rows
        self.slots = slots
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.index_keys: dict[int, Tensor] = {}
        """By layer, of those that choose the keys they attend to: what they choose by."""
        self.rows_B1 = torch.zeros(0, dtype=torch.long)
        self.positions_BQ = torch.zeros(0, dtype=torch.long)
        self.extent = 0
        self.shift_B: Tensor | None = None
        """By row: what is added to a slot's number for the position that a token behind the prompt is turned by, where
        images have fewer positions than tokens; None: nothing."""
        self.all_rows = False
        self.span: slice | None = None
        """The slots that a single row's pass writes, where they are neighbours: writing them needs no index."""

    def point(self, rows_B: Tensor, positions_BQ: Tensor, extent: int) -> None:
        """Say where the next forward pass writes, and how many slots it may see."""
        self.rows_B1 = rows_B[:, None]
        self.positions_BQ = positions_BQ
        self.extent = extent
        self.all_rows = len(rows_B) == self.rows
        self.span = None
        if self.rows == 1 and positions_BQ.device.type == "cpu":
            begin = extent - positions_BQ.shape[1]
            if positions_BQ[0].tolist() == list(range(begin, extent)):
                self.span = slice(begin, extent)
        _current.set(self)

    def turned_by(self, rows_B: Tensor, positions_BQ: Tensor) -> Tensor:
        """The positions that tokens behind the prompts of these rows are turned by, ``[B, Q]``."""
        return positions_BQ if self.shift_B is None else positions_BQ + self.shift_B[rows_B][:, None]

    def set_shift(self, row: int, shift: int) -> None:
        """Say how far the positions of a row's tokens behind its prompt, which was read, are from their slots."""
        if self.shift_B is None and shift:
            self.shift_B = torch.zeros(self.rows, dtype=torch.long, device=self.positions_BQ.device)
        if self.shift_B is not None:
            self.shift_B[row] = shift

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write ``[rows, K, Q, D]`` states at the positions pointed to; returns all that the pass may see."""
        while len(self.keys) <= layer_idx:
            for store, states in ((self.keys, key_states), (self.values, value_states)):
                shape = (self.rows, self.slots, states.shape[1], states.shape[3])
                store.append(torch.zeros(shape, dtype=states.dtype, device=states.device))
        pairs = ((self.keys[layer_idx], key_states), (self.values[layer_idx], value_states))
        keys, values = (self._write(slots, states.transpose(1, 2)).transpose(1, 2) for slots, states in pairs)
        return keys, values

    def update_indexer(self, indexer_key_states: Tensor, layer_idx: int) -> Tensor:
        """The same for ``[rows, Q, D]`` states that a layer chooses its keys by."""
        if layer_idx not in self.index_keys:
            shape = (self.rows, self.slots, indexer_key_states.shape[-1])
            self.index_keys[layer_idx] = indexer_key_states.new_zeros(shape)
        return self._write(self.index_keys[layer_idx], indexer_key_states)

    def _write(self, slots: Tensor, states: Tensor) -> Tensor:
        """Put ``[rows, Q, ...]`` states where the pass points; returns the slots that it may see."""
        # Slot number = position: what a rejected token wrote is overwritten before a query may see it.
        if self.span is not None:
            slots[:, self.span] = states
        else:
            slots[self.rows_B1, self.positions_BQ] = states
        # Only the slots in use, and as a view where every row takes part: no copy of the cache a pass.
        return slots[:, : self.extent] if self.all_rows else slots[self.rows_B1[:, 0], : self.extent]

    def grow(self, slots: int) -> None:
        """Have this many slots, at least as many as there are."""
        more = slots - self.slots
        self.keys = [F.pad(keys, (0, 0, 0, 0, 0, more)) for keys in self.keys]
        self.values = [F.pad(values, (0, 0, 0, 0, 0, more)) for values in self.values]
        self.index_keys = {layer: F.pad(states, (0, 0, 0, more)) for layer, states in self.index_keys.items()}
        self.slots = slots

    def keep(self, rows: Tensor) -> None:
        """Drop every row that is not listed; the survivors are renumbered in the order given."""
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]
        self.shift_B = None if self.shift_B is None else self.shift_B[rows]
        self.index_keys = {layer: states[rows] for layer, states in self.index_keys.items()}
        self.rows = len(rows)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Where the pass begins, for the models that count (Llama 4); 0 where the rows begin at different places."""
        first_B = self.positions_BQ[:, 0]
        return int(first_B[0]) if len(self.positions_BQ) == 1 or bool((first_B == first_B[0]).all()) else 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Zero: the masks know the positions."""
        return 0

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Slots that the pass may see, from the first one on."""
        return self.extent, 0


class NoCache(Cache):
    """A cache that keeps nothing. With one transformers does not look for packed rows in the positions of a batch,
    which the host of a GPU would have to wait for."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The states themselves."""
        return key_states, value_states

    def update_indexer(self, indexer_key_states: Tensor, layer_idx: int) -> Tensor:
        """The states themselves."""
        return indexer_key_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """None are kept."""
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Every pass begins at the beginning."""
        return 0

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Keys of a pass: as many as its queries, or as the positions that older transformers give for them."""
        queries = args[0]
        return (queries if isinstance(queries, int) else len(queries)), 0


def position_mask(positions_BQ: Tensor, extent: int, dtype: torch.dtype, window: Window | None = None) -> Tensor:
    """Additive ``[B, 1, Q, extent]`` mask: a query at position q sees the slots ``<= q``, or those that ``window``
    shows."""
    slots = torch.arange(extent, device=positions_BQ.device)
    query_B1Q1 = positions_BQ[:, None, :, None]
    return _additive(slots > query_B1Q1 if window is None else ~window.shows(query_B1Q1, slots), dtype)


def cached(model: torch.nn.Module, cache: Any) -> dict[str, Any]:
    """The key/value cache as a keyword argument of ``model``; newer transformers call it ``cache``."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    return {name: cache}


def keeps_positions(model: PreTrainedModel) -> bool:
    """Whether the past of every layer is keys and values by position, as far as the config tells; that of linear
    attention can be neither rolled back nor copied to other rows."""
    return ADDRESSED.issuperset(getattr(model.config.get_text_config(), "layer_types", None) or ())


def counts_positions(model: PreTrainedModel) -> bool:
    """Whether a layer counts the tokens behind it instead of reading their positions (Llama 4's scaling by length, keys
    that are compressed or chosen block by block): then all rows of a pass must stand at the same place."""
    config = model.config.get_text_config()
    in_blocks = BLOCKWISE.intersection(getattr(config, "layer_types", None) or ())
    return bool(in_blocks) or bool(getattr(config, "attn_temperature_tuning", False))


@contextmanager
def with_attention(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Run the text model of ``model`` with an attention implementation, and give back the one it had; a tower keeps
    its own."""
    config = model.config
    text = config.get_text_config()
    part = next((name for name in config.sub_configs if getattr(config, name, None) is text), None)
    before = text._attn_implementation
    model.set_attn_implementation(implementation if part is None else {part: implementation})
    try:
        yield
    finally:
        model.set_attn_implementation(before if part is None else {part: before})


def grouped(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Run ``model`` with :func:`grouped_attention`."""
    return with_attention(model, GROUPED_ATTENTION)
