"""Attention of one unroll depth: causal over depth-0 keys, plus each row's own keys of the depths since.

The depth-0 part runs in a flash kernel that returns its log-sum-exp; the few own keys are dot products, merged by
log-sum-exp. The backward gives the same flash backward the FINAL output and log-sum-exp, which makes its gradients
those of the joint softmax (the identity behind ring attention, arXiv 2310.01889), and adds the own keys' terms.

Shapes: R query rows, N heads, K key/value heads, D head size, S keys, J own keys. A dense twin is in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor

GROUPED_ON_CPU = Version(torch.__version__).release >= (2, 13)
"""Whether the CPU kernel takes keys with fewer heads than the queries: 2.13's does, 2.8's reads past their end."""
QUERY_BLOCK = 512
"""Query rows per kernel call: a block reads only the keys up to its last row, and no mask is rows x keys large."""

Own = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class QueryRows:
    """Where the query rows stand in the packed batch."""

    rows_R: Tensor
    """Packed position of every query row, ascending."""
    bounds: tuple[int, ...]
    """Sequence b is ``bounds[b]:bounds[b+1]``."""


@dataclass(frozen=True)
class Block:
    """Some query rows of one sequence and the keys that they may see."""

    rows: slice
    keys: slice
    rows_Q: Tensor | None
    """Packed positions of the query rows, or None where they are exactly the last keys: plain causal order."""

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """Additive mask ``[Q, S]``, None where plain causal order says it all.

        Made anew for every use: the masks of all blocks are together as large as rows x keys.
        """
        if self.rows_Q is None:
            return None
        keys_S = torch.arange(self.keys.start, self.keys.stop, device=self.rows_Q.device)
        mask = torch.zeros(len(self.rows_Q), len(keys_S), dtype=dtype, device=self.rows_Q.device)
        return mask.masked_fill_(keys_S > self.rows_Q[:, None], float("-inf"))


def make_blocks(rows_R: Tensor, bounds: tuple[int, ...]) -> list[Block]:
    """Split ascending packed query rows into blocks that stay inside one sequence."""
    cuts = torch.searchsorted(rows_R, torch.tensor(bounds, device=rows_R.device)).tolist()
    blocks = []
    for begin, first, last in zip(bounds[:-1], cuts[:-1], cuts[1:], strict=True):
        for at in range(first, last, QUERY_BLOCK):
            rows = slice(at, min(at + QUERY_BLOCK, last))
            rows_Q = rows_R[rows]
            keys = slice(begin, int(rows_Q[-1]) + 1)
            blocks.append(Block(rows, keys, None if len(rows_Q) == keys.stop - keys.start else rows_Q))
    return blocks


def attend(query_RND: Tensor, keys_SKD: Tensor, values_SKD: Tensor, own: Own, rows: QueryRows) -> Tensor:
    """Attention output ``[R, N, D]``, on any device.

    ``own`` holds one ``(key_RKD, value_RKD)`` per depth after the first, aligned with the query rows.
    """
    blocks = make_blocks(rows.rows_R, rows.bounds)
    flat = [tensor for pair in own for tensor in pair]
    out: Tensor = _UnrollAttention.apply(query_RND, keys_SKD, values_SKD, blocks, *flat)  # type: ignore[no-untyped-call]
    return out


class _UnrollAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, values: Tensor, blocks: list[Block], *own: Tensor) -> Tensor:
        out_RND = torch.empty_like(query)
        lse_RN = torch.empty(query.shape[:2], dtype=torch.float32, device=query.device)
        for block in blocks:
            mask_QS = block.mask(query.dtype)
            out, lse = _flash(_heads_first(query[block.rows]), keys[block.keys], values[block.keys], mask_QS)
            out_RND[block.rows] = out[0].transpose(0, 1)
            lse_RN[block.rows] = lse[0].transpose(0, 1)
        if own:
            out_RND, lse_RN = merge_own(query, out_RND, lse_RN, own)
        ctx.blocks = blocks
        ctx.save_for_backward(query, keys, values, out_RND, lse_RN, *own)
        return out_RND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, keys, values, out_RND, lse_RN, *own = ctx.saved_tensors
        grad_RND = grads[0].contiguous()
        d_query, d_keys, d_values = torch.empty_like(query), torch.zeros_like(keys), torch.zeros_like(values)
        for block in ctx.blocks:
            dq, dk, dv = _flash_backward(
                _heads_first(grad_RND[block.rows]),
                _heads_first(query[block.rows]),
                keys[block.keys],
                values[block.keys],
                _heads_first(out_RND[block.rows]),
                lse_RN[block.rows].transpose(0, 1)[None].contiguous(),
                block.mask(query.dtype),
            )
            d_query[block.rows] = dq[0].transpose(0, 1)
            d_keys[block.keys] += dk[0].transpose(0, 1)
            d_values[block.keys] += dv[0].transpose(0, 1)
        d_own = _own_backward(query, out_RND, lse_RN, grad_RND, own, d_query)
        return (d_query, d_keys, d_values, None, *d_own)


def _heads_first(x_RND: Tensor) -> Tensor:
    return x_RND.transpose(0, 1)[None]


def _grouped(x_RND: Tensor, groups: int) -> Tensor:
    """Heads split by the key/value head that they read: ``[R, K, N/K, D]``."""
    split: Tensor = x_RND.unflatten(1, (groups, -1))
    return split


def _own_scores(query: Tensor, own_keys: list[Tensor]) -> Tensor:
    """Scaled scores of each row against its own keys, ``[J, R, N]``, fp32."""
    q = _grouped(query, own_keys[0].shape[1]).float()
    scores = [(q * key.float()[:, :, None]).sum(-1).flatten(1) for key in own_keys]
    return torch.stack(scores) * float(query.shape[-1] ** -0.5)


def merge_own(query: Tensor, out: Tensor, lse_RN: Tensor, own: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of one softmax over the depth-0 keys, given their own, and the rows' own keys.

    ``own`` holds keys and values in turn: ``key_1, value_1, key_2, ...``.
    """
    keys, values = list(own[0::2]), list(own[1::2])
    scores_JRN = _own_scores(query, keys)
    total_RN = torch.logaddexp(lse_RN, torch.logsumexp(scores_JRN, 0))
    merged = out.float() * (lse_RN - total_RN).exp()[..., None]
    weights_JRN = (scores_JRN - total_RN).exp()
    for weight_RN, value in zip(weights_JRN, values, strict=True):
        part = _grouped(weight_RN[..., None], value.shape[1]) * value.float()[:, :, None]
        merged += part.flatten(1, 2)
    return merged.to(out.dtype), total_RN


def _own_backward(
    query: Tensor, out: Tensor, lse_RN: Tensor, grad: Tensor, own: list[Tensor], d_query: Tensor
) -> list[Tensor]:
    """Gradients of the own keys and values; adds their part to ``d_query`` in place."""
    if not own:
        return []
    keys, values, groups = own[0::2], own[1::2], own[0].shape[1]
    scale = query.shape[-1] ** -0.5
    weights_JRN = (_own_scores(query, keys) - lse_RN).exp()
    delta_RN = (grad.float() * out.float()).sum(-1)
    grad_RKGD, query_RKGD = _grouped(grad, groups).float(), _grouped(query, groups).float()
    found = []
    for weight_RN, key, value in zip(weights_JRN, keys, values, strict=True):
        weight_RKG1 = _grouped(weight_RN[..., None], groups)
        d_weight = (grad_RKGD * value.float()[:, :, None]).sum(-1, keepdim=True)
        d_score = weight_RKG1 * (d_weight - _grouped(delta_RN[..., None], groups)) * scale
        d_query += (d_score * key.float()[:, :, None]).flatten(1, 2).to(d_query.dtype)
        found += [(d_score * query_RKGD).sum(2).to(key.dtype), (weight_RKG1 * grad_RKGD).sum(2).to(value.dtype)]
    return found


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _flash(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output ``[1, N, Q, D]`` and log-sum-exp ``[1, N, Q]`` of causal attention over depth-0 keys."""
    if _on_cpu(query):
        # In fp32 whatever the states are: the CPU kernel's low-precision backward is four times slower.
        q, k, v = query.float(), _for_cpu(keys, query), _for_cpu(values, query)
        op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = op(q, k, v, 0.0, mask is None, attn_mask=None if mask is None else mask[None, None].float())
        return out.to(query.dtype), lse
    scores, v = _dense_scores(query, keys, mask), _repeated(values, query)
    lse = torch.logsumexp(scores, -1)
    return ((scores - lse[..., None]).exp() @ v.float()).to(query.dtype), lse


def _flash_backward(
    grad: Tensor, query: Tensor, keys: Tensor, values: Tensor, out: Tensor, lse: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    if _on_cpu(query):
        q, k, v = query.float(), _for_cpu(keys, query), _for_cpu(values, query)
        op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        bias = None if mask is None else mask[None, None].float()
        dq, dk, dv = op(grad.float(), q, k, v, out.float(), lse, 0.0, mask is None, attn_mask=bias)
        if k.shape[1] != keys.shape[1]:
            dk, dv = (each.unflatten(1, (keys.shape[1], -1)).sum(2) for each in (dk, dv))
        return dq.to(query.dtype), dk.to(keys.dtype), dv.to(values.dtype)
    weights = (_dense_scores(query, keys, mask) - lse[..., None]).exp()
    k, v, g = _repeated(keys, query).float(), _repeated(values, query).float(), grad.float()
    delta = (g * out.float()).sum(-1, keepdim=True)
    d_scores = weights * (g @ v.transpose(-1, -2) - delta) * query.shape[-1] ** -0.5
    heads = keys.shape[1]
    dk = (d_scores.transpose(-1, -2) @ query.float()).unflatten(1, (heads, -1)).sum(2)
    dv = (weights.transpose(-1, -2) @ g).unflatten(1, (heads, -1)).sum(2)
    return (d_scores @ k).to(query.dtype), dk.to(keys.dtype), dv.to(values.dtype)


def _for_cpu(states_SKD: Tensor, query: Tensor) -> Tensor:
    return (_heads_first(states_SKD) if GROUPED_ON_CPU else _repeated(states_SKD, query)).float()


def _repeated(states_SKD: Tensor, query: Tensor) -> Tensor:
    return _heads_first(states_SKD).repeat_interleave(query.shape[1] // states_SKD.shape[1], 1)


def _dense_scores(query: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    """fp32 scores with causal order applied; portable to any device."""
    scores = query.float() @ _repeated(keys, query).float().transpose(-1, -2) * float(query.shape[-1] ** -0.5)
    if mask is None:
        size = keys.shape[0]
        hidden = torch.ones(size, size, dtype=torch.bool, device=query.device).triu(1)
        return scores.masked_fill(hidden, float("-inf"))
    return scores + mask.float()
