"""Rows of unlike length through a transformers target side by side, with nothing between them: ``[1, N]`` tokens.

The positions start anew with each row, and attention is told by ``cu_seqlens`` where rows begin; all else in a decoder
works on single tokens. transformers hands both to the attention of a layer as keyword arguments. That needs a kernel
for rows of any length, which torch and flash-attn have for CUDA in half precision. Whether a model comes through with
the states that its rows have alone is tried once it is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.utils.import_utils import is_flash_attn_2_available

from eagle3cli.backends.target.target import Tokens
from eagle3cli.runtime.devices import to_device

VARLEN_ATTENTION = "eagle3_varlen"


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

    Raises ImportError or TypeError with a torch that has no such kernel, NotImplementedError for caps and sinks.
    """
    from torch.nn.attention.varlen import varlen_attn

    if softcap is not None or s_aux is not None:
        raise NotImplementedError("soft-caps and sinks")
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


AttentionInterface.register(VARLEN_ATTENTION, varlen_attention)


def packed_inputs(sequences: Sequence[Tokens], device: torch.device) -> dict[str, Any]:
    """Arguments of a decoder for rows side by side."""
    lengths = [len(ids) for ids in sequences]
    bounds = to_device(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), device)
    ids_N = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in sequences])
    positions_N = np.concatenate([np.arange(length) for length in lengths])
    return {
        "input_ids": to_device(torch.from_numpy(ids_N)[None], device),
        "position_ids": to_device(torch.from_numpy(positions_N)[None], device),
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        "use_cache": False,
    }


def packed_kernels(model: PreTrainedModel) -> Iterator[str]:
    """Attention implementations that may run packed rows of ``model``; none where a layer sees less than all tokens
    before it, or keeps more of them than keys and values."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ("full_attention",))
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None) is not None:
        return
    yield VARLEN_ATTENTION
    if is_flash_attn_2_available():
        yield "flash_attention_2"
