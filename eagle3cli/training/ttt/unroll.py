"""The training-time unroll: the draft applied to its own hidden states, step after step (EAGLE-3, arXiv 2503.01840).

At step i position p has read tokens up to ``x_{p+1+i}`` and predicts ``x_{p+2+i}``; its teacher is the target's
distribution at position ``p+1+i``. The first half of this file decides which positions are computed at each step, the
second half computes them. Knows nothing about losses, teachers or optimizers. The dense reference that it must equal
is ``tests/training/ttt/dense.py``; the shape legend is in ``models/draft.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from eagle3cli.backends.batches.context import ContextShard
from eagle3cli.models.draft import AnyAttention, Draft
from eagle3cli.models.window import Window
from eagle3cli.runtime.devices import to_device
from eagle3cli.training.ttt.attention import DraftKV, KeyValue, QueryPositions, attend
from eagle3cli.training.ttt.context import gather_keys
from eagle3cli.training.ttt.gather import gather

Alignment = Literal["serving", "specforge"]
Attend = Callable[[Tensor, Tensor, Tensor, DraftKV, QueryPositions], Tensor]


@dataclass(frozen=True)
class StepPositions:
    """The positions of one step of the unroll.

    A position *carries loss* at a step where its answer counts. It is *computed* at a step where it carries loss then
    or at a later step: the others are left out, and no loss or gradient changes, since a position at step 1 or later
    reads of others only their step-0 keys and values.
    """

    position_R: Tensor
    """Packed position of every one that is computed, ascending."""
    parent_R: Tensor
    """Index of each in the ``position_R`` of the step before (at step 0: the packed position itself)."""
    loss_L: Tensor
    """Indices into ``position_R`` of those that carry loss."""
    teacher_L: Tensor
    """Packed position of the teacher of each of those."""
    counted: int
    """Positions whose accuracy counts: with loss, or with an answer that the draft vocabulary cannot express."""

    @property
    def indices(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All tensors of it."""
        return self.position_R, self.parent_R, self.loss_L, self.teacher_L


@dataclass(frozen=True)
class PositionPlan:
    """The positions of every step for one packed batch."""

    steps: tuple[StepPositions, ...]
    cu_seqlens: tuple[int, ...]
    begin_N: Tensor
    """Packed position at which each token's sequence begins."""
    last_position: int
    """Positions after this one are read by nobody."""
    host: PositionPlan | None = None
    """The same in the host's memory; None where this one is there."""
    taught_N: Tensor | None = None
    """Which teachers' answers the draft vocabulary has, where only a device knows. Then ``loss_L`` goes by the mask
    alone, and the loss leaves the others out; None: they are left out of the plan."""
    shard: ContextShard | None = None
    """Where sequences are dealt to several ranks: this one's part. N counts the tokens that it holds then, while
    ``begin_N`` stays that of the whole packed batch."""

    @property
    def with_loss(self) -> int:
        """Positions that carry loss at step 0: what the loss of a training step is divided by."""
        return len(self.steps[0].loss_L)

    @property
    def empty(self) -> bool:
        """No position carries loss at any step."""
        return self.last_position < 0

    def queries(self, step: int, window: Window | None = None) -> QueryPositions:
        """The positions of a step as the queries of its attention, of a draft with this window."""
        return self.queries_at(self.steps[step].position_R, (self.host or self).steps[step].position_R, step, window)

    def queries_at(
        self, position_R: Tensor, host_R: Tensor, step: int = 0, window: Window | None = None
    ) -> QueryPositions:
        """These positions as queries in the whole packed batch; ``host_R`` are the same in the host's memory."""
        begin_R = self.begin_N[position_R]
        host = (self.host or self).shard
        if self.shard is None or host is None:
            return QueryPositions(position_R, self.cu_seqlens, host_R, begin_R, step, window)
        packed_R, packed_host_R = self.shard.packed_n[position_R], host.packed_n[host_R]
        return QueryPositions(packed_R, self.shard.cu_seqlens, packed_host_R, begin_R, step, window)

    def to(self, device: torch.device) -> PositionPlan:
        """The plan on a device: one copy of all its numbers, which nobody waits for."""
        if device.type == "cpu":
            return self
        parts = [self.begin_N, *(index for step in self.steps for index in step.indices)]
        joint = to_device(torch.cat(parts), device)
        begin_N, *indices = joint.split([len(part) for part in parts])
        steps = []
        for step, at in zip(self.steps, range(0, len(indices), 4), strict=True):
            position_R, parent_R, loss_L, teacher_L = indices[at : at + 4]
            steps.append(StepPositions(position_R, parent_R, loss_L, teacher_L, step.counted))
        shard = None if self.shard is None else self.shard.to(device)
        return replace(self, steps=tuple(steps), begin_N=begin_N, host=self, shard=shard)


def masked_positions(loss_mask_N: Tensor, cu_seqlens: tuple[int, ...], ttt_length: int, alignment: Alignment) -> Tensor:
    """Whether position p counts at step i by the loss mask m alone, ``[T, N]`` bool.

    serving: ``m_{p+1} .. m_{p+2+i}`` are all 1, the states in which a server asks the draft while it decodes a reply.
    specforge: ``m_{p+i}`` is 1 and the teacher's position is inside the sequence.
    """
    size = len(loss_mask_N)
    position_N = torch.arange(size)
    bounds = torch.tensor(cu_seqlens)
    end_N = torch.repeat_interleave(bounds[1:], bounds[1:] - bounds[:-1])

    def ahead(offset: int, limit: int) -> Tensor:
        """``m_{p+offset}``, False where ``p+limit`` is past the position's sequence."""
        inside_N = position_N + limit < end_N
        return loss_mask_N[(position_N + offset).clamp(max=size - 1)] & inside_N

    if alignment == "specforge":
        return torch.stack([ahead(i, i + 1) for i in range(ttt_length)])
    run_N = ahead(1, 1)
    runs = []
    for i in range(ttt_length):
        run_N = run_N & ahead(2 + i, 2 + i)
        runs.append(run_N)
    return torch.stack(runs)


def draw_anchors(
    rows: Sequence[int], cu_seqlens: tuple[int, ...], fraction: float, *, seed: int, step: int
) -> Tensor | None:
    """A random share of a packed batch's positions, ``[N]`` bool on the CPU; None where the share is all.

    Drawn sequence by sequence from seed, training step and row number, so it does not depend on how a batch is cut.
    """
    if fraction == 1.0:
        return None
    draws = []
    for row, begin, end in zip(rows, cu_seqlens[:-1], cu_seqlens[1:], strict=True):
        generator = torch.Generator().manual_seed(((seed * 1_000_003 + step) * 1_000_003 + row) % 2**63)
        draws.append(torch.rand(end - begin, generator=generator) < fraction)
    return torch.cat(draws)


def plan_positions(
    loss_mask_N: Tensor,
    cu_seqlens: tuple[int, ...],
    expressible_N: Tensor,
    ttt_length: int,
    alignment: Alignment,
    anchors_N: Tensor | None = None,
) -> PositionPlan:
    """Decide the positions of every step, in the host's memory: how many there are decides what a device is asked.

    ``expressible_N`` says whether the answer of a teacher position is in the draft vocabulary; a position whose answer
    is not carries no loss, but may be computed for later steps.
    ``anchors_N`` (bool) names the only positions that may carry loss; None is all.
    """
    masked_TN = masked_positions(loss_mask_N, cu_seqlens, ttt_length, alignment)
    if anchors_N is not None:
        masked_TN &= anchors_N
    size = len(loss_mask_N)
    position_N = torch.arange(size)
    answer_TN = torch.stack([(position_N + 1 + i).clamp(max=size - 1) for i in range(ttt_length)])
    loss_TN = masked_TN & expressible_N[answer_TN]
    # Computed at step i: loss at step i or later. With half of the tokens masked, half of the work goes.
    computed_TN = loss_TN.flip(0).cumsum(0).flip(0) > 0
    steps = []
    before_R = position_N
    for i in range(ttt_length):
        parent_R = computed_TN[i, before_R].nonzero()[:, 0]
        position_R = before_R[parent_R]
        loss_L = loss_TN[i, position_R].nonzero()[:, 0]
        teacher_L = position_R[loss_L] + 1 + i
        steps.append(StepPositions(position_R, parent_R, loss_L, teacher_L, int(masked_TN[i].sum())))
        before_R = position_R
    first_R = steps[0].position_R
    last = int(first_R[-1]) if len(first_R) else -1
    begins = torch.tensor(cu_seqlens[:-1])
    begin_N = torch.repeat_interleave(begins, torch.tensor(cu_seqlens[1:]) - begins)
    return PositionPlan(tuple(steps), cu_seqlens, begin_N, last)


def dealt(plan: PositionPlan, shard: ContextShard) -> PositionPlan:
    """The plan of a rank's part of a batch, made of the tokens that it holds, as one of the whole batch.

    Step 0 takes its states from those of the rank's own positions.
    """
    first = plan.steps[0]
    first = replace(first, parent_R=torch.searchsorted(shard.own_M, first.position_R))
    return replace(plan, steps=(first, *plan.steps[1:]), begin_N=shard.begin_n, shard=shard)


@dataclass(frozen=True)
class _Shared:
    """What every step reads."""

    draft: Draft
    attend: Attend
    plan: PositionPlan
    offset_N: Tensor
    """Position of every packed token inside its sequence."""
    hidden_weight_OH: Tensor
    """What the first layer multiplies the hidden state by: of q, k and v, or of their latents, side by side."""
    token_NO: Tensor
    """What these owe to the token at each packed position."""
    kv: list[KeyValue]
    """Step-0 keys and values ``[S, K, D]`` of every layer, of all positions that some position can see."""


def unroll(
    draft: Draft,
    token_ids_N: Tensor,
    aux_NC: Tensor,
    embedding_VH: Tensor,
    plan: PositionPlan,
    *,
    attend: Attend = attend,
    recompute: bool = False,
) -> list[Tensor]:
    """Normed hidden states of the positions with loss at every step, each ``[L, H]``, ready for the draft's head.

    ``h^0 = fc(aux)``; at step i position p reads token ``x_{p+1+i}``, attends to the step-0 keys of its sequence up to
    p and to its own keys of steps 1..i at RoPE position p+i (to those that the draft's window shows), and passes
    ``h^{i+1}`` on without the final norm (with it, where the config says ``norm_output``). ``recompute`` keeps no
    activations inside a step and makes them again in the backward pass.
    """
    hidden_RH, shared = _step_zero(draft, token_ids_N, aux_NC, draft.embedding(embedding_VH), plan, attend)
    normed = list[Tensor]()
    draft_kv = [list[KeyValue]() for _ in draft.stack]
    for ttt_step, positions in enumerate(plan.steps):
        if not len(positions.position_R):
            normed.append(hidden_RH.new_zeros(0, draft.config.hidden_size))
            continue
        # Positions that no loss needs any more are dropped here, with their keys: what follows costs R, not N.
        hidden_RH = gather(hidden_RH, positions.parent_R)
        draft_kv = [
            [(gather(k, positions.parent_R), gather(v, positions.parent_R)) for k, v in pairs] for pairs in draft_kv
        ]
        run = partial(_one_step, shared, ttt_step, positions)
        if recompute and torch.is_grad_enabled():
            head_RH, hidden_RH, newest = checkpoint(run, hidden_RH, draft_kv, use_reentrant=False)
        else:
            head_RH, hidden_RH, newest = run(hidden_RH, draft_kv)
        # New lists, not appended ones: the backward pass of this step keeps the old ones.
        draft_kv = [[*old, *new] for old, new in zip(draft_kv, newest, strict=True)]
        normed.append(gather(head_RH, positions.loss_L))
    return normed


def _step_zero(
    draft: Draft, token_ids_N: Tensor, aux_NC: Tensor, embedding_VH: Tensor, plan: PositionPlan, attend: Attend
) -> tuple[Tensor, _Shared]:
    """What the last layer reads at step 0 in all positions that some position can see, and what the steps share.

    Layers before the last run over all those positions: each is a key of the next layer.
    """
    first = draft.midlayer
    shard = plan.shard
    position_N = torch.arange(len(token_ids_N), device=token_ids_N.device)
    offset_N = (position_N if shard is None else shard.packed_n) - plan.begin_N
    embedded_NH = first.input_layernorm(F.embedding(token_ids_N, embedding_VH).to(aux_NC.dtype))

    # The first layer's q, k and v (or their latents) are W [RMS(embed(x)) ; RMS(h)] = W_left RMS(embed(x)) + W_right
    # RMS(h). A token is read by up to T steps (of T positions): its half is computed once, not T times.
    token_weight_OH, hidden_weight_OH = first.self_attn.joint_weight().split(draft.config.hidden_size, 1)
    token_NO = F.linear(embedded_NH, token_weight_OH)
    shared = _Shared(draft, attend, plan, offset_N, hidden_weight_OH, token_NO, [])

    # Alone, a rank makes the keys of all positions that some position sees; of several each makes those of its own.
    seen_S = position_N[: plan.last_position + 1] if shard is None else shard.own_M
    # The token behind a sequence's last position is another's, or none: nobody sees the key that is made of it.
    token_SO = token_NO[1 : plan.last_position + 2] if shard is None else _next(token_NO, seen_S)
    hidden_SH = draft.first_hidden(aux_NC[: plan.last_position + 1] if shard is None else aux_NC[seen_S])
    rope = draft.rope(offset_N[seen_S], hidden_SH.dtype)
    host = (plan.host or plan).shard
    every = torch.arange(plan.last_position + 1) if host is None else host.own_M
    queries = plan.queries_at(seen_S, every, window=draft.config.sliding)
    for index, layer in enumerate(draft.stack[:-1]):
        own = layer.self_attn

        def attention(normed_SH: Tensor, index: int = index, own: AnyAttention = own) -> Tensor:
            read_SO = _project(shared, index, normed_SH, token_SO, slice(None))
            query_SO, kv_SO = read_SO.tensor_split((own.query_channels,), 1)
            shared.kv.append(gather_keys(own.keys_values(kv_SO, rope), shard))
            return attend(own.queries(query_SO, rope), *shared.kv[index], [], queries)

        hidden_SH = layer(hidden_SH, attention)

    # Of the last layer all positions give keys and values, but only those with a loss ahead ask: see _one_step.
    last = len(draft.stack) - 1
    normed_SH = draft.stack[last].hidden_norm(hidden_SH)
    last_attention = draft.stack[last].self_attn
    kv_SO = _project(shared, last, normed_SH, token_SO, slice(last_attention.query_channels, None))
    shared.kv.append(gather_keys(last_attention.keys_values(kv_SO, rope), shard))
    return hidden_SH, shared


def _next(token_NO: Tensor, seen_S: Tensor) -> Tensor:
    """What the first layer owes to the token behind each of these positions; junk where there is none."""
    return token_NO[(seen_S + 1).clamp(max=len(token_NO) - 1)]


def step_zero_alone(
    draft: Draft, token_ids_N: Tensor, aux_NC: Tensor, embedding_VH: Tensor, plan: PositionPlan, attend: Attend
) -> Tensor:
    """Zero, behind which stands this rank's share of the step-0 keys and values: the pass of a rank none of whose own
    positions carries loss, while other ranks' positions see its keys."""
    _, shared = _step_zero(draft, token_ids_N, aux_NC, draft.embedding(embedding_VH), plan, attend)
    return shared.kv[-1][0][:0].sum()


def _one_step(
    shared: _Shared, ttt_step: int, positions: StepPositions, hidden_RH: Tensor, draft_kv: list[list[KeyValue]]
) -> tuple[Tensor, Tensor, list[list[KeyValue]]]:
    """The layers for the positions of one step: what the head reads ``[R, H]``, what the next step gets ``[R, H]``, and
    the positions' new keys and values by layer.

    At step 0 there are no new keys, since all positions share theirs, and all layers but the last have run.
    """
    draft = shared.draft
    position_R = positions.position_R
    token_RO = gather(shared.token_NO, position_R + 1 + ttt_step)
    rope = draft.rope(shared.offset_N[position_R] + ttt_step, token_RO.dtype)
    queries = shared.plan.queries(ttt_step, draft.config.sliding)
    newest = [list[KeyValue]() for _ in draft.stack]
    first = len(draft.stack) - 1 if ttt_step == 0 else 0
    for index, layer in enumerate(draft.stack[first:], start=first):
        own = layer.self_attn

        def attention(normed_RH: Tensor, index: int = index, own: AnyAttention = own) -> Tensor:
            channels = slice(0, None if ttt_step else own.query_channels)
            read_RO = _project(shared, index, normed_RH, token_RO, channels)
            query_RO, kv_RO = read_RO.tensor_split((own.query_channels,), 1)
            if ttt_step:
                newest[index].append(own.keys_values(kv_RO, rope))
            query_RAD = own.queries(query_RO, rope)
            return shared.attend(query_RAD, *shared.kv[index], draft_kv[index] + newest[index], queries)

        hidden_RH = layer(hidden_RH, attention)
    head_RH, next_RH = draft.head_and_carry(hidden_RH)
    return head_RH, next_RH, newest


def _project(shared: _Shared, index: int, normed_RH: Tensor, token_RO: Tensor, channels: slice) -> Tensor:
    """q, k and v of a layer (or their latents) side by side, or those of their ``channels`` that are asked for, by one
    product."""
    if index:
        return F.linear(normed_RH, shared.draft.stack[index].self_attn.joint_weight()[channels])
    return token_RO[:, channels] + F.linear(normed_RH, shared.hidden_weight_OH[channels])
