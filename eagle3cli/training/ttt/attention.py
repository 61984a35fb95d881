"""Attention of one step of the unroll: causal over step-0 keys, plus each position's own keys of the steps since.

At step i the query of position p sees the step-0 keys of its sequence up to p, and the i keys that p itself made at
steps 1..i (``draft_kv``): in all N x N scores once, and N x i more (of a draft with a window fewer of either, see
:class:`QueryPositions`). So the step-0 part runs in a flash kernel that
returns its log-sum-exp, and the few own keys are dot products, merged by log-sum-exp: no scores are kept, and no mask
of rows x keys exists.

The backward pass gives the same flash backward the FINAL output and the FINAL log-sum-exp. With them the kernel's
``P = exp(score - lse)`` are the weights of the joint softmax, and its ``delta = sum(grad * out)`` is the joint one, so
its gradients are exact (the identity behind ring attention, arXiv 2310.01889); the own keys' terms are added.

A dense twin is in the tests; the shape legend is in ``models/draft.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor

from eagle3cli.models.window import Window
from eagle3cli.training.ttt import kernels

GROUPED_ON_CPU = Version(torch.__version__).release >= (2, 13)
"""Whether the CPU kernel takes keys with fewer heads than the queries: 2.13's does, 2.8's reads past their end."""
QUERY_BLOCK = 512
"""Queries of a kernel call: a block reads only the keys up to its last query, and no mask is queries x keys large."""
MASK_ELEMENTS = 512 * 16_384
"""Of a block's mask at most (42 MB with what it is made of): the blocks of longer sequences have fewer queries."""

KeyValue = tuple[Tensor, Tensor]
DraftKV = list[KeyValue]
"""A ``(key_RKD, value_RKD)`` for every step after the first, aligned with the queries."""


@dataclass(frozen=True)
class QueryPositions:
    """Where the queries stand in the packed batch, and how far back they see.

    The query of position p at step i stands at p + i of its text, where its RoPE puts it, and so does the key that p
    makes then. A window of W therefore shows it the step-0 keys from p + i - W + 1 to p, and of its own keys the W
    newest: what a server shows it that keeps every key at its position.
    """

    position_R: Tensor
    """Packed position of every query, ascending."""
    cu_seqlens: tuple[int, ...]
    """Sequence b is ``cu_seqlens[b]:cu_seqlens[b+1]``."""
    host_R: Tensor | None = None
    """``position_R`` in the host's memory, where it is known there."""
    given_begin_R: Tensor | None = None
    step: int = 0
    """The step of the unroll."""
    window: Window | None = None

    @property
    def begin_R(self) -> Tensor:
        """Packed position at which each query's sequence begins."""
        if self.given_begin_R is not None:
            return self.given_begin_R
        bounds = torch.tensor(self.cu_seqlens, device=self.position_R.device)
        return bounds[torch.searchsorted(bounds, self.position_R, right=True) - 1]

    @property
    def reach(self) -> int | None:
        """Step-0 keys up to the own position that the window shows, none where it is 0 or less; None: all."""
        return None if self.window is None else self.window.size - self.step

    @property
    def blind(self) -> bool:
        """Whether no query sees a step-0 key any more: the window holds own keys alone."""
        return self.window is not None and not self.window.sinks and self.window.size <= self.step

    def own_keys(self, draft_kv: DraftKV) -> tuple[DraftKV, Tensor | None]:
        """The own keys that some query sees, and ``[J, R]`` which of them each query does not; None: it sees all."""
        if self.window is None or len(draft_kv) <= self.window.size:
            return draft_kv, None
        if self.window.sinks < 2:  # own keys stand behind position 0
            return draft_kv[-self.window.size :], None
        at_R = self.position_R - self.begin_R
        key_JR = at_R + torch.arange(1, len(draft_kv) + 1, device=at_R.device)[:, None]
        return draft_kv, ~self.window.shows(at_R + self.step, key_JR)


@dataclass(frozen=True)
class Block:
    """Some queries of one sequence and the keys that they may see."""

    queries: slice
    keys: slice
    position_Q: Tensor | None
    """Packed positions of the queries, or None where they are exactly the last keys: plain causal order."""
    sinks: tuple[int, int] = (0, 0)
    """Begin and end of keys before those: the first of the sequence, where a window has moved on from them."""
    reach: int | None = None
    """How many keys up to its own position a query sees; None: all."""
    sink_end: int = 0
    """Packed position up to which it sees keys whatever its reach is."""

    def take(self, states_SKD: Tensor) -> Tensor:
        """The keys (or values) of the block."""
        if not self.sinks[1]:
            return states_SKD[self.keys]
        return torch.cat((states_SKD[slice(*self.sinks)], states_SKD[self.keys]))

    def add_to(self, gradient_SKD: Tensor, part: Tensor) -> None:
        """Add the gradient of what :meth:`take` gave."""
        begin, end = self.sinks
        gradient_SKD[self.keys] += part[end - begin :]
        gradient_SKD[begin:end] += part[: end - begin]

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """Additive mask ``[Q, S]``, None where plain causal order says it all.

        Made anew for every use: the masks of all blocks are together as large as queries x keys.
        """
        if self.position_Q is None:
            return None
        keys_S = self.take(torch.arange(self.keys.stop, device=self.position_Q.device))
        hidden_QS = keys_S > self.position_Q[:, None]
        if self.reach is not None:
            hidden_QS |= (keys_S <= self.position_Q[:, None] - self.reach) & (keys_S >= self.sink_end)
        return torch.zeros(hidden_QS.shape, dtype=dtype, device=hidden_QS.device).masked_fill_(hidden_QS, float("-inf"))


def make_blocks(queries: QueryPositions) -> list[Block]:
    """Split the queries into blocks that stay inside one sequence; none where they see no step-0 key."""
    if queries.blind:
        return []
    host_R = queries.position_R.cpu() if queries.host_R is None else queries.host_R
    cuts = torch.searchsorted(host_R, torch.tensor(queries.cu_seqlens)).tolist()
    blocks = []
    ranges = zip(queries.cu_seqlens[:-1], queries.cu_seqlens[1:], cuts[:-1], cuts[1:], strict=True)
    for begin, end, first, last in ranges:
        size = queries_at_once(end - begin, queries.window)
        for at in range(first, last, size):
            part = slice(at, min(at + size, last))
            blocks.append(_block(queries, part, begin, int(host_R[part.start]), int(host_R[part.stop - 1])))
    return blocks


def queries_at_once(length: int, window: Window | None) -> int:
    """Queries of a block in a sequence of so many tokens."""
    seen = length if window is None else min(length, QUERY_BLOCK + window.size + window.sinks)
    return min(QUERY_BLOCK, max(1, MASK_ELEMENTS // max(1, seen)))


def _block(queries: QueryPositions, part: slice, begin: int, first: int, last: int) -> Block:
    """The block of some queries, from packed position ``first`` to ``last`` of the sequence that begins at ``begin``.

    Only keys that one of them sees are in it, so that a window makes the work of a long sequence linear.
    """
    position_Q = queries.position_R[part]
    reach = queries.reach
    # As many queries as keys: none was pruned, and the kernel's own causal order needs no mask.
    is_plain = len(position_Q) == last + 1 - begin
    if queries.window is None or reach is None or last - reach < begin:
        return Block(part, slice(begin, last + 1), None if is_plain else position_Q)
    start = max(begin, min(first - reach, last) + 1)
    sink_end = begin + queries.window.sinks
    sinks = (begin, min(sink_end, start)) if queries.window.sinks and start > begin else (0, 0)
    return Block(part, slice(start, last + 1), position_Q, sinks, reach, sink_end)


def attend(query_RAD: Tensor, key_SKD: Tensor, value_SKD: Tensor, draft_kv: DraftKV, queries: QueryPositions) -> Tensor:
    """Attention output ``[R, A, D]``, on any device.

    ``key_SKD`` and ``value_SKD`` are those of step 0; ``draft_kv`` holds the queries' own, a pair for each later step.
    """
    draft_kv, hidden_JR = queries.own_keys(draft_kv)
    own = [states for pair in draft_kv for states in pair]
    blocks = make_blocks(queries)
    out: Tensor = _UnrollAttention.apply(query_RAD, key_SKD, value_SKD, blocks, hidden_JR, *own)  # type: ignore[no-untyped-call]
    return out


class _UnrollAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        blocks: list[Block],
        hidden_JR: Tensor | None,
        *draft_kv: Tensor,
    ) -> Tensor:
        out_RAD, lse_RA = nothing_seen(query)
        for block in blocks:
            # A block's mask lives as long as its kernel runs: all of them together would be queries x keys.
            mask_QS = block.mask(query.dtype)
            out, lse = _flash(_heads_first(query[block.queries]), block.take(keys), block.take(values), mask_QS)
            out_RAD[block.queries] = out[0].transpose(0, 1)
            lse_RA[block.queries] = lse[0].transpose(0, 1)
        if draft_kv:
            out_RAD, lse_RA = merge_draft_kv(query, out_RAD, lse_RA, draft_kv, hidden_JR)
        # What is kept is the joint output and log-sum-exp: they make the kernel's backward that of the joint softmax.
        ctx.blocks = blocks
        ctx.hidden_JR = hidden_JR
        ctx.save_for_backward(query, keys, values, out_RAD, lse_RA, *draft_kv)
        return out_RAD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, keys, values, out_RAD, lse_RA, *draft_kv = ctx.saved_tensors
        grad_RAD = grads[0].contiguous()
        d_query = torch.zeros_like(query)
        d_keys = torch.zeros_like(keys)
        d_values = torch.zeros_like(values)
        for block in ctx.blocks:
            dq, dk, dv = _flash_backward(
                _heads_first(grad_RAD[block.queries]),
                _heads_first(query[block.queries]),
                block.take(keys),
                block.take(values),
                _heads_first(out_RAD[block.queries]),
                lse_RA[block.queries].transpose(0, 1)[None].contiguous(),
                block.mask(query.dtype),
            )
            d_query[block.queries] = dq[0].transpose(0, 1)
            # Blocks of one sequence share its keys, so these add up; queries are each in one block.
            block.add_to(d_keys, dk[0].transpose(0, 1))
            block.add_to(d_values, dv[0].transpose(0, 1))
        d_draft_kv = _draft_kv_backward(query, out_RAD, lse_RA, grad_RAD, draft_kv, ctx.hidden_JR, d_query)
        return (d_query, d_keys, d_values, None, None, *d_draft_kv)


def nothing_seen(query: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of queries ``[R, A, D]`` that see no key: zeros, and a sum of nothing."""
    return torch.zeros_like(query), query.new_full(query.shape[:2], float("-inf"), dtype=torch.float32)


def _heads_first(x_RAD: Tensor) -> Tensor:
    return x_RAD.transpose(0, 1)[None]


def _grouped(x_RAD: Tensor, kv_heads: int) -> Tensor:
    """Query heads split by the key/value head that they read: ``[R, K, G, D]``, G = A/K."""
    split: Tensor = x_RAD.unflatten(1, (kv_heads, -1))
    return split


def _draft_scores(query: Tensor, draft_keys: list[Tensor], hidden_JR: Tensor | None) -> Tensor:
    """Scaled scores of each query against its own keys, ``[J, R, A]``, fp32; those of ``hidden_JR`` count for nothing.

    Row-wise products: query p never meets the keys that another position made at a later step.
    """
    query_RKGD = _grouped(query, draft_keys[0].shape[1]).float()
    scores = [(query_RKGD * key.float()[:, :, None]).sum(-1).flatten(1) for key in draft_keys]
    scores_JRA = torch.stack(scores) * float(query.shape[-1] ** -0.5)
    return scores_JRA if hidden_JR is None else scores_JRA.masked_fill(hidden_JR[..., None], float("-inf"))


def merge_draft_kv(
    query: Tensor, out: Tensor, lse_RA: Tensor, draft_kv: Sequence[Tensor], hidden_JR: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of one softmax over step-0 keys and own keys, given those of the step-0 keys alone.

    With ``Z = exp(lse)`` of either part, the joint output is ``(Z_0 out_0 + sum_j exp(s_j) v_j) / (Z_0 + sum_j
    exp(s_j))``. ``draft_kv`` holds keys and values in turn: ``key_1, value_1, key_2, ...``; ``hidden_JR`` says which of
    them a query does not see (a window narrower than the unroll, with sinks). On a GPU one kernel does all others
    with nothing kept for the backward pass but what others keep anyway, and the log-sum-exp carries no gradient.
    """
    if query.device.type == "cuda" and hidden_JR is None and kernels.triton_runs():
        from eagle3cli.training.ttt.kernels import draft_kv as kernel

        return kernel.merge_draft_kv(query, out, lse_RA, draft_kv)
    keys = list(draft_kv[0::2])
    values = list(draft_kv[1::2])
    scores_JRA = _draft_scores(query, keys, hidden_JR)
    # By logaddexp: the two parts' sums of exponentials would overflow where their logarithms do not.
    total_RA = torch.logaddexp(lse_RA, torch.logsumexp(scores_JRA, 0))
    merged = out.float() * (lse_RA - total_RA).exp()[..., None]
    weights_JRA = (scores_JRA - total_RA).exp()
    for weight_RA, value in zip(weights_JRA, values, strict=True):
        part = _grouped(weight_RA[..., None], value.shape[1]) * value.float()[:, :, None]
        merged += part.flatten(1, 2)
    return merged.to(out.dtype), total_RA


def _draft_kv_backward(
    query: Tensor,
    out: Tensor,
    lse_RA: Tensor,
    grad: Tensor,
    draft_kv: list[Tensor],
    hidden_JR: Tensor | None,
    d_query: Tensor,
) -> list[Tensor]:
    """Gradients of the own keys and values; adds their part to ``d_query`` in place.

    The softmax's backward at each own key: ``w = exp(s - lse)``, ``ds = w (grad . v - delta)`` with
    ``delta = grad . out``; then ``dk = ds q``, ``dv = w grad`` (summed over the query heads of a key/value head).
    """
    if not draft_kv:
        return []
    keys = draft_kv[0::2]
    values = draft_kv[1::2]
    kv_heads = keys[0].shape[1]
    scale = query.shape[-1] ** -0.5
    weights_JRA = (_draft_scores(query, keys, hidden_JR) - lse_RA).exp()
    delta_RA = (grad.float() * out.float()).sum(-1)
    grad_RKGD = _grouped(grad, kv_heads).float()
    query_RKGD = _grouped(query, kv_heads).float()
    gradients = []
    for weight_RA, key, value in zip(weights_JRA, keys, values, strict=True):
        weight_RKG1 = _grouped(weight_RA[..., None], kv_heads)
        d_weight = (grad_RKGD * value.float()[:, :, None]).sum(-1, keepdim=True)
        d_score = weight_RKG1 * (d_weight - _grouped(delta_RA[..., None], kv_heads)) * scale
        # The kernel has written its part of d_query before: own keys add to it.
        d_query += (d_score * key.float()[:, :, None]).flatten(1, 2).to(d_query.dtype)
        gradients.append((d_score * query_RKGD).sum(2).to(key.dtype))
        gradients.append((weight_RKG1 * grad_RKGD).sum(2).to(value.dtype))
    return gradients


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _flash(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output ``[1, A, Q, D]`` and log-sum-exp ``[1, A, Q]`` of causal attention over step-0 keys."""
    if _on_cpu(query):
        # In fp32 whatever the states are: the CPU kernel's low-precision backward is four times slower.
        q = query.float()
        k = _for_cpu(keys, query)
        v = _for_cpu(values, query)
        op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = op(q, k, v, 0.0, mask is None, attn_mask=None if mask is None else mask[None, None].float())
        return out.to(query.dtype), lse
    scores = _dense_scores(query, keys, mask)
    v = _repeated(values, query)
    lse = torch.logsumexp(scores, -1)
    return ((scores - lse[..., None]).exp() @ v.float()).to(query.dtype), lse


def _flash_backward(
    grad: Tensor, query: Tensor, keys: Tensor, values: Tensor, out: Tensor, lse: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    if _on_cpu(query):
        q = query.float()
        k = _for_cpu(keys, query)
        v = _for_cpu(values, query)
        op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        bias = None if mask is None else mask[None, None].float()
        dq, dk, dv = op(grad.float(), q, k, v, out.float(), lse, 0.0, mask is None, attn_mask=bias)
        if k.shape[1] != keys.shape[1]:
            dk, dv = (each.unflatten(1, (keys.shape[1], -1)).sum(2) for each in (dk, dv))
        return dq.to(query.dtype), dk.to(keys.dtype), dv.to(values.dtype)
    weights = (_dense_scores(query, keys, mask) - lse[..., None]).exp()
    k = _repeated(keys, query).float()
    v = _repeated(values, query).float()
    g = grad.float()
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
