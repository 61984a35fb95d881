"""Rows of unlike length through a transformers target side by side, with nothing between them: ``[1, N]`` tokens.

The positions start anew with each row, and attention is told by ``cu_seqlens`` where rows begin; all else in a decoder
works on single tokens. transformers hands both to the attention of a layer as keyword arguments. That needs a kernel
for rows of any length, which torch and flash-attn have for CUDA in half precision; for CPUs it is here. Whether a model
comes through with the states that its rows have alone is tried once it is loaded.

The shape legend is in ``models/draft.py``; Q are the queries of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.utils.import_utils import is_flash_attn_2_available

from eagle3cli.backends.target.positions import counts_positions
from eagle3cli.backends.target.target import Tokens
from eagle3cli.runtime.devices import to_device

VARLEN_ATTENTION = "eagle3_varlen"
"""For CUDA."""
BLOCK_ATTENTION = "eagle3_blocks"
"""For CPUs."""
QUERY_BLOCK = 128
"""Queries of a block on a CPU: more of them are scored against keys that they must not see."""
FEWEST_QUERIES = 16
SCORES = 2**22
"""Scores of a block, about; long rows have fewer queries in one."""


def varlen_attention(
    module: torch.nn.Module,
    query_1AND: Tensor,
    key_1KND: Tensor,
    value_1KND: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row, by torch's flash kernel; ``[1, N, A, D]`` as transformers expects.

    Raises ImportError or TypeError with a torch that has no such kernel, NotImplementedError for caps, sinks and masks.
    """
    from torch.nn.attention.varlen import varlen_attn

    if softcap is not None or s_aux is not None or attention_mask is not None:
        raise NotImplementedError("soft-caps, sinks and a mask that the model has made")
    query, key, value = (states[0].transpose(0, 1) for states in (query_1AND, key_1KND, value_1KND))
    # The kernel has one head size; latent attention has shorter values than keys.
    width = value.shape[-1]
    if width < query.shape[-1]:
        value = F.pad(value, (0, query.shape[-1] - width))
    bounds = cu_seq_lens_q.to(query.device)
    window = (-1, 0)  # all that stands before, nothing behind
    out: Any = varlen_attn(
        query,
        key,
        value,
        bounds,
        bounds,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=window,
        enable_gqa=True,
    )
    return out[None, ..., :width], None


def block_attention(
    module: torch.nn.Module,
    query_1AND: Tensor,
    key_1KND: Tensor,
    value_1KND: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    cu_seq_lens_k: Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row, some queries at a time; ``[1, N, A, D]`` as transformers expects.

    A row with more keys than queries reads the first tokens of the pass before its own: what all rows begin with. As
    in transformers' own eager attention, scores are in the type of the states and their softmax is in fp32. Two
    products and a softmax take a CPU half of the time of torch's flash kernel. Raises NotImplementedError for caps,
    sinks and masks.
    """
    if softcap is not None or s_aux is not None or attention_mask is not None:
        raise NotImplementedError("soft-caps, sinks and a mask that the model has made")
    query_AND, key_KND, value_KND = (states[0] for states in (query_1AND, key_1KND, value_1KND))
    heads, tokens, width = query_AND.shape
    factor = width**-0.5 if scaling is None else scaling
    out_NAD = query_AND.new_empty(tokens, heads, value_KND.shape[-1])
    bounds = zip(pairwise(cu_seq_lens_q.tolist()), cu_seq_lens_k.diff().tolist(), strict=True)
    for (begin, end), keys in bounds:
        before = keys - (end - begin)
        key_KSD, value_KSD = (
            torch.cat((states[:, :before], states[:, begin:end]), 1) if before else states[:, begin:end]
            for states in (key_KND, value_KND)
        )
        block = max(FEWEST_QUERIES, min(QUERY_BLOCK, SCORES // (heads * keys)))
        for first in range(begin, end, block):
            last = min(first + block, end)
            seen = slice(before + last - begin)
            out_NAD[first:last] = _last_queries(query_AND[:, first:last], key_KSD[:, seen], value_KSD[:, seen], factor)
    return out_NAD[None], None


def _last_queries(query_AQD: Tensor, key_KSD: Tensor, value_KSD: Tensor, factor: float) -> Tensor:
    """Attention ``[Q, A, D]`` of queries that stand at the last of the keys."""
    heads, queries, width = query_AQD.shape
    kv_heads, keys, _ = key_KSD.shape
    # The heads of a group read the same keys: as more queries of one head they need no copies of them.
    scores = torch.bmm(query_AQD.reshape(kv_heads, -1, width), key_KSD.mT).float().mul_(factor)
    scores_AQS = scores.view(heads, queries, keys)
    scores_AQS[..., -queries:] += scores.new_full((queries, queries), float("-inf")).triu_(1)
    weights = scores_AQS.softmax(-1).to(value_KSD.dtype).view(kv_heads, -1, keys)
    return torch.bmm(weights, value_KSD).view(heads, queries, -1).transpose(0, 1)


AttentionInterface.register(VARLEN_ATTENTION, varlen_attention)
AttentionInterface.register(BLOCK_ATTENTION, block_attention)


def packed_inputs(sequences: Sequence[Tokens], device: torch.device, shared: int = 0) -> dict[str, Any]:
    """Arguments of a decoder for rows side by side; the ``shared`` tokens that all begin with stand before them, once.

    Then these are a row of their own, and the others have more keys than queries: :func:`block_attention`.
    """
    rows = [np.asarray(ids, dtype=np.int64) for ids in sequences]
    begins = [shared] * len(rows)
    if shared:
        rows = [rows[0][:shared], *(ids[shared:] for ids in rows)]
        begins = [0, *begins]
    queries = [len(ids) for ids in rows]
    keys = [begin + length for begin, length in zip(begins, queries, strict=True)]
    bounds_q, bounds_k = (
        to_device(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), device) for lengths in (queries, keys)
    )
    positions_N = np.concatenate([np.arange(*ends) for ends in zip(begins, keys, strict=True)])
    return {
        "input_ids": to_device(torch.from_numpy(np.concatenate(rows))[None], device),
        "position_ids": to_device(torch.from_numpy(positions_N)[None], device),
        "cu_seq_lens_q": bounds_q,
        "cu_seq_lens_k": bounds_k,
        "max_length_q": max(queries),
        "max_length_k": max(keys),
        "use_cache": False,
    }


def packed_kernels(model: PreTrainedModel, device: str) -> Iterator[str]:
    """Attention implementations that may run packed rows of ``model`` on a type of device; none where a layer sees less
    than all tokens before it, keeps more of them than keys and values, or counts them itself."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ("full_attention",))
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None) is not None:
        return
    if counts_positions(model):
        return
    if device == "cpu":
        yield BLOCK_ATTENTION
        return
    yield VARLEN_ATTENTION
    if is_flash_attn_2_available():
        yield "flash_attention_2"
