"""Merging the queries' own keys into the attention's output on a GPU, forward and backward.

A program handles one query position and one key/value head with the G = A/K query heads that read it, so that each
own key and value is read once and nothing but the results is written. The plain twin is ``attention.merge_draft_kv``
(its derivative is autograd's); the shape legend is in ``models/draft.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 1
"""A tile is G x D numbers, 512 in most models: enough for one warp."""


@triton.jit
def forward_kernel(
    query_ptr,
    out_ptr,
    lse_ptr,
    keys,
    values,
    merged_ptr,
    total_ptr,
    scale,
    out_row,
    out_head,
    lse_row,
    lse_head,
    K: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    J: tl.constexpr,
    G_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
):
    """Joint output and log-sum-exp: the step-0 part comes in as one key of score ``lse`` and value ``out``."""
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    group = tl.arange(0, G_BLOCK)
    channel = tl.arange(0, D_BLOCK)
    head = kv_head * G + group
    inside = (group < G)[:, None] & (channel < D)[None, :]
    tile = (row * K * G + head)[:, None] * D + channel[None, :]
    kv_tile = (row * K + kv_head) * D + channel
    query = tl.load(query_ptr + tile, mask=inside, other=0.0).to(tl.float32)
    lse = tl.load(lse_ptr + row * lse_row + head * lse_head, mask=group < G, other=0.0)
    out_tile = row * out_row + head[:, None] * out_head + channel[None, :]
    merged = tl.load(out_ptr + out_tile, mask=inside, other=0.0).to(tl.float32)
    top = lse
    denominator = tl.full((G_BLOCK,), 1.0, tl.float32)
    for j in tl.static_range(J):
        key = tl.load(keys[j] + kv_tile, mask=channel < D, other=0.0).to(tl.float32)
        value = tl.load(values[j] + kv_tile, mask=channel < D, other=0.0).to(tl.float32)
        score = tl.sum(query * key[None, :], 1) * scale
        larger = tl.maximum(top, score)
        kept = tl.exp(top - larger)
        weight = tl.exp(score - larger)
        merged = merged * kept[:, None] + weight[:, None] * value[None, :]
        denominator = denominator * kept + weight
        top = larger
    merged = merged / denominator[:, None]
    tl.store(merged_ptr + tile, merged.to(merged_ptr.dtype.element_ty), mask=inside)
    tl.store(total_ptr + row * K * G + head, top + tl.log(denominator), mask=group < G)


@triton.jit
def backward_kernel(
    grad_ptr,
    query_ptr,
    out_ptr,
    lse_ptr,
    keys,
    values,
    merged_ptr,
    total_ptr,
    d_query_ptr,
    d_out_ptr,
    d_lse_ptr,
    d_kv_ptr,
    scale,
    grad_row,
    grad_head,
    out_row,
    out_head,
    lse_row,
    lse_head,
    d_kv_stride,
    K: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    J: tl.constexpr,
    G_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
):
    """The softmax's derivative: ``w = exp(score - total)``, ``d(score) = w (grad . value - delta)``.

    ``delta = grad . merged``; the step-0 part is a key of score ``lse`` and value ``out``. ``d_kv`` holds the gradients
    of keys and values in turn, ``d_kv_stride`` numbers each.
    """
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    group = tl.arange(0, G_BLOCK)
    channel = tl.arange(0, D_BLOCK)
    head = kv_head * G + group
    inside = (group < G)[:, None] & (channel < D)[None, :]
    tile = (row * K * G + head)[:, None] * D + channel[None, :]
    kv_tile = (row * K + kv_head) * D + channel
    out_tile = row * out_row + head[:, None] * out_head + channel[None, :]
    grad_tile = row * grad_row + head[:, None] * grad_head + channel[None, :]
    grad = tl.load(grad_ptr + grad_tile, mask=inside, other=0.0).to(tl.float32)
    merged = tl.load(merged_ptr + tile, mask=inside, other=0.0).to(tl.float32)
    delta = tl.sum(grad * merged, 1)
    total = tl.load(total_ptr + row * K * G + head, mask=group < G, other=0.0)

    out = tl.load(out_ptr + out_tile, mask=inside, other=0.0).to(tl.float32)
    lse_at = row * lse_row + head * lse_head
    weight = tl.exp(tl.load(lse_ptr + lse_at, mask=group < G, other=0.0) - total)
    d_lse = weight * (tl.sum(grad * out, 1) - delta)
    tl.store(d_lse_ptr + lse_at, d_lse, mask=group < G)
    tl.store(d_out_ptr + out_tile, (weight[:, None] * grad).to(d_out_ptr.dtype.element_ty), mask=inside)

    query = tl.load(query_ptr + tile, mask=inside, other=0.0).to(tl.float32)
    d_query = tl.zeros((G_BLOCK, D_BLOCK), tl.float32)
    for j in tl.static_range(J):
        key = tl.load(keys[j] + kv_tile, mask=channel < D, other=0.0).to(tl.float32)
        value = tl.load(values[j] + kv_tile, mask=channel < D, other=0.0).to(tl.float32)
        # Padded heads have a zero gradient, so their weights, whatever they are, add nothing below.
        weight = tl.exp(tl.sum(query * key[None, :], 1) * scale - total)
        d_score = weight * (tl.sum(grad * value[None, :], 1) - delta) * scale
        d_query += d_score[:, None] * key[None, :]
        d_key = tl.sum(d_score[:, None] * query, 0)
        d_value = tl.sum(weight[:, None] * grad, 0)
        d_kv_at = d_kv_ptr + 2 * j * d_kv_stride + kv_tile
        tl.store(d_kv_at, d_key.to(d_kv_ptr.dtype.element_ty), mask=channel < D)
        tl.store(d_kv_at + d_kv_stride, d_value.to(d_kv_ptr.dtype.element_ty), mask=channel < D)
    tl.store(d_query_ptr + tile, d_query.to(d_query_ptr.dtype.element_ty), mask=inside)


def merge_draft_kv(query: Tensor, out: Tensor, lse_RA: Tensor, draft_kv: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """As ``attention.merge_draft_kv``; the log-sum-exp carries no gradient."""
    merged, total_RA = _MergeDraftKV.apply(query, out, lse_RA, *draft_kv)  # type: ignore[no-untyped-call]
    return merged, total_RA


class _MergeDraftKV(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, out: Tensor, lse: Tensor, *draft_kv: Tensor) -> tuple[Tensor, Tensor]:
        query = query.contiguous()
        out = _channels_last(out)
        draft_kv = tuple(states.contiguous() for states in draft_kv)
        merged = torch.empty(query.shape, dtype=out.dtype, device=query.device)
        total = torch.empty(query.shape[:2], dtype=torch.float32, device=query.device)
        if len(query):
            with torch.cuda.device_of(query):
                forward_kernel[_grid(query, draft_kv)](
                    query,
                    out,
                    lse,
                    draft_kv[0::2],
                    draft_kv[1::2],
                    merged,
                    total,
                    query.shape[-1] ** -0.5,
                    *out.stride()[:2],
                    *lse.stride(),
                    **_constants(query, draft_kv),
                )
        ctx.save_for_backward(query, out, lse, merged, total, *draft_kv)
        ctx.mark_non_differentiable(total)
        return merged, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        query, out, lse, merged, total, *draft_kv = ctx.saved_tensors
        grad = _channels_last(grads[0])
        d_query = torch.empty_like(query)
        # In the memory order of what they are gradients of: the kernel behind may have its heads first.
        d_out = torch.empty_like(out)
        d_lse = torch.empty_like(lse)
        d_kv = torch.empty((len(draft_kv), *draft_kv[0].shape), dtype=draft_kv[0].dtype, device=query.device)
        if len(query):
            with torch.cuda.device_of(grad):
                backward_kernel[_grid(query, draft_kv)](
                    grad,
                    query,
                    out,
                    lse,
                    tuple(draft_kv[0::2]),
                    tuple(draft_kv[1::2]),
                    merged,
                    total,
                    d_query,
                    d_out,
                    d_lse,
                    d_kv,
                    query.shape[-1] ** -0.5,
                    *grad.stride()[:2],
                    *out.stride()[:2],
                    *lse.stride(),
                    d_kv.stride(0),
                    **_constants(query, draft_kv),
                )
        return (d_query, d_out, d_lse, *d_kv)


def _channels_last(x_RAD: Tensor) -> Tensor:
    """The same with a head's channels side by side; rows and heads may stand in any order."""
    return x_RAD if x_RAD.stride(-1) == 1 else x_RAD.contiguous()


def _grid(query: Tensor, draft_kv: Sequence[Tensor]) -> tuple[int, int]:
    return (len(query), draft_kv[0].shape[1])


def _constants(query: Tensor, draft_kv: Sequence[Tensor]) -> dict[str, int]:
    kv_heads = draft_kv[0].shape[1]
    group = query.shape[1] // kv_heads
    return {
        "K": kv_heads,
        "G": group,
        "D": query.shape[2],
        "J": len(draft_kv) // 2,
        "G_BLOCK": triton.next_power_of_2(group),
        "D_BLOCK": triton.next_power_of_2(query.shape[2]),
        "num_warps": WARPS,
    }
