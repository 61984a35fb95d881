"""Lossless decoding with a draft chain, in this process: the engine behind ``bench --engine local``.

Per step and row of the batch the draft proposes k tokens, one target pass verifies them all, the leading ones that the
target would have written are kept, and the target adds one of its own. At a temperature proposals are drawn and kept
by exact speculative sampling (:mod:`speculate`). k = 0 is plain decoding through the same code. The text is the
target's own whatever the draft says. Knows nothing about text or tasks.

Shapes: B rows of the batch, Q query tokens, H hidden, C auxiliary width.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from eagle3cli.backends.target.hf import HfTarget
from eagle3cli.backends.target.positions import PositionCache, cached, grouped, grouped_attention, position_mask
from eagle3cli.errors import ModelError
from eagle3cli.models.draft import Draft, rotate
from eagle3cli.serving.decode.batches import serves_positions
from eagle3cli.serving.decode.speculate import draw, draws, keep_or_replace

COMPACT_BELOW = 0.75
"""Finished rows are dropped from the batch once no more than this share is live."""


@dataclass
class Decoded:
    """One prompt's new tokens and how they came about."""

    token_ids: list[int] = field(default_factory=list)
    finish: str = "length"
    steps: int = 0
    """Verification passes; the first token comes from the prefill and from none of them."""
    accepted_at: list[int] = field(default_factory=list)
    """Steps in which the proposal at each depth was accepted and is part of the reply."""
    counted_at: list[int] = field(default_factory=list)
    """The same with those behind the reply's end, which its last step accepted, too: servers count like that."""
    frames: list[tuple[float, int]] = field(default_factory=list)
    """When there were how many tokens, in seconds since the batch began."""
    smallest_margin: float = float("inf")
    """Smallest gap between the best and second-best logit: below about 1e-4 two exact engines may differ."""

    @property
    def acceptance_length(self) -> float:
        """Tokens per verification pass, the first token apart."""
        return (len(self.token_ids) - 1) / self.steps if self.steps else 0.0


@dataclass(frozen=True)
class Speed:
    """Wall-clock seconds of a :func:`decode` call."""

    prefill: float
    decode: float


@torch.inference_mode()
def decode(
    target: HfTarget,
    draft: Draft | None,
    prompts: Sequence[Sequence[int]],
    *,
    k: int,
    max_new_tokens: int,
    eos_ids: frozenset[int],
    batch_size: int,
    temperature: float = 0.0,
    seeds: Sequence[int] = (),
) -> tuple[list[Decoded], Speed]:
    """Continuations of token prompts, with ``k`` draft steps per verification (0: none).

    Greedy at temperature 0, else drawn, each with its own of ``seeds``. The prompts are decoded in batches of similar
    length; results keep the order given. Raises ModelError for a target whose past is not addressed by position (linear
    attention).
    """
    assert not temperature or len(seeds) == len(prompts), "sampling needs a seed for every prompt"
    assert k == 0 or draft is not None, "k > 0 needs a draft"
    if not serves_positions(target.model):
        batch_size = 1
    if batch_size == 1 and not serves_positions(target.model, rows=1):
        name = type(target.model).__name__
        what = f"{name} cannot be decoded here: its past is not keys and values by position alone"
        raise ModelError(what, where=target.path, fix="measure it on a server: eagle3 bench without --engine local")
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    results = [Decoded(accepted_at=[0] * k, counted_at=[0] * k) for _ in prompts]
    prefill = total = 0.0
    with grouped(target.model), target.tapping() as taps:
        for at in range(0, len(order), batch_size):
            part = order[at : at + batch_size]
            begun = time.perf_counter()
            batch = _Batch(target, taps, draft if k else None, [list(prompts[i]) for i in part], k, max_new_tokens)
            batch.temperature = temperature
            batch.streams = [random.Random(seeds[i]) for i in part] if temperature else []
            first = batch.prefill()
            prefilled = time.perf_counter()
            _run(batch, first, [results[i] for i in part], max_new_tokens, eos_ids, begun)
            prefill += prefilled - begun
            total += time.perf_counter() - begun
    return results, Speed(prefill, total - prefill)


def _run(
    batch: _Batch,
    first: tuple[Tensor, Tensor],
    results: list[Decoded],
    limit: int,
    eos_ids: frozenset[int],
    begun: float,
) -> None:
    """Decode until every row of the batch has finished."""
    tokens_B, margins_B = first
    for row, result in enumerate(results):
        _take(result, [int(tokens_B[row])], [float(margins_B[row])], limit, eos_ids)
        result.frames.append((time.perf_counter() - begun, 1))
    live = list(range(len(results)))
    while True:
        still = [at for at, i in enumerate(live) if not _finished(results[i], limit, eos_ids)]
        if not still:
            return
        if len(still) <= COMPACT_BELOW * len(live):
            batch.keep(torch.tensor(still))
            live = [live[at] for at in still]
        accepted, verified_BQ, margins_BQ = batch.step()
        for at, i in enumerate(live):
            if not _finished(results[i], limit, eos_ids):
                count = accepted[at] + 1
                result = results[i]
                gained = _take(
                    result, verified_BQ[at, :count].tolist(), margins_BQ[at, :count].tolist(), limit, eos_ids
                )
                result.frames.append((time.perf_counter() - begun, len(result.token_ids)))
                result.steps += 1
                for depth in range(accepted[at]):
                    result.counted_at[depth] += 1
                    result.accepted_at[depth] += depth < gained


def _take(result: Decoded, tokens: list[int], margins: list[float], limit: int, eos_ids: frozenset[int]) -> int:
    """Append tokens up to the end of the reply; returns how many were taken."""
    taken = 0
    for token, margin in zip(tokens, margins, strict=True):
        if _finished(result, limit, eos_ids):
            break
        result.token_ids.append(token)
        result.smallest_margin = min(result.smallest_margin, margin)
        taken += 1
    if result.token_ids[-1] in eos_ids:
        result.finish = "stop"
    return taken


def _finished(result: Decoded, limit: int, eos_ids: frozenset[int]) -> bool:
    return len(result.token_ids) >= limit or (bool(result.token_ids) and result.token_ids[-1] in eos_ids)


class _Batch:
    """The caches and the newest states of the rows that are decoded together."""

    def __init__(
        self,
        target: HfTarget,
        taps: dict[int, Tensor],
        draft: Draft | None,
        prompts: list[list[int]],
        k: int,
        max_new_tokens: int,
    ) -> None:
        self.target, self.taps, self.draft, self.prompts, self.k = target, taps, draft, prompts, k
        self.embedding_VH = draft.embedding(target.embedding_VH) if draft is not None else target.embedding_VH
        self.longest = max(len(p) for p in prompts) + max_new_tokens
        slots = self.longest + k + 1
        self.target_cache = PositionCache(len(prompts), slots)
        self.draft_cache = PositionCache(len(prompts), slots)
        self.length_B = torch.tensor([len(p) for p in prompts], device=target.device)
        """Known tokens of every row, the newest included."""
        self.newest_B = self.length_B
        self.draft_hidden_BH: Tensor | None = None
        """The draft's hidden state at its newest row: it proposes the token after the newest one."""
        self.temperature = 0.0
        self.streams: list[random.Random] = []
        """At a temperature, every row's random numbers."""

    def prefill(self) -> tuple[Tensor, Tensor]:
        """Run the prompts; returns the first new token of every row and its margin."""
        width = max(len(p) for p in self.prompts)
        ids_BQ = torch.zeros(len(self.prompts), width, dtype=torch.long, device=self.target.device)
        for row, prompt in enumerate(self.prompts):
            ids_BQ[row, : len(prompt)] = torch.tensor(prompt)
        positions_BQ = torch.arange(width, device=ids_BQ.device).expand(len(ids_BQ), width)
        aux_BQC, last_BQH = self._target_pass(ids_BQ, positions_BQ)
        rows_B = torch.arange(len(ids_BQ), device=ids_BQ.device)
        newest_BQH = last_BQH[rows_B, self.length_B - 1][:, None]
        none = self.length_B.new_zeros(len(ids_BQ), 0)
        _, tokens_BQ, margins_BQ = self._verify(newest_BQH, none, none[..., None].float())
        tokens_B, margins_B = tokens_BQ[:, 0], margins_BQ[:, 0]
        if self.draft is not None:
            next_BQ = torch.cat((ids_BQ[:, 1:], ids_BQ[:, :1]), 1)
            next_BQ[rows_B, self.length_B - 1] = tokens_B
            hidden_BQH = self._draft_pass(self.draft, self.draft.first_hidden(aux_BQC), next_BQ, positions_BQ)
            self.draft_hidden_BH = hidden_BQH[rows_B, self.length_B - 1]
        self.newest_B, self.length_B = tokens_B, self.length_B + 1
        return tokens_B, margins_B

    def step(self) -> tuple[list[int], Tensor, Tensor]:
        """Propose, verify, accept: returns accepted proposals per row, the target's tokens ``[B, k+1]`` and margins."""
        proposed_BQ, draft_BkVd = self._propose()
        ids_BQ = torch.cat((self.newest_B[:, None], proposed_BQ), 1)
        positions_BQ = self.length_B[:, None] - 1 + torch.arange(self.k + 1, device=ids_BQ.device)
        aux_BQC, last_BQH = self._target_pass(ids_BQ, positions_BQ)
        accepted_B, verified_BQ, margins_BQ = self._verify(last_BQH, proposed_BQ, draft_BkVd)
        rows_B = torch.arange(len(ids_BQ), device=ids_BQ.device)
        if self.draft is not None:
            # Rows after the accepted ones are junk; their slots are written again before any query can see them.
            hidden_BQH = self._draft_pass(self.draft, self.draft.first_hidden(aux_BQC), verified_BQ, positions_BQ)
            self.draft_hidden_BH = hidden_BQH[rows_B, accepted_B]
        self.newest_B = verified_BQ[rows_B, accepted_B]
        # A finished row that is still in the batch goes on with junk; it must not outrun the slots.
        self.length_B = (self.length_B + accepted_B + 1).clamp(max=self.longest)
        return accepted_B.tolist(), verified_BQ, margins_BQ

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.target_cache.keep(rows)
        self.draft_cache.keep(rows)
        self.length_B, self.newest_B = self.length_B[rows], self.newest_B[rows]
        self.streams = [self.streams[row] for row in rows.tolist()] if self.streams else []
        if self.draft_hidden_BH is not None:
            self.draft_hidden_BH = self.draft_hidden_BH[rows]

    def _propose(self) -> tuple[Tensor, Tensor]:
        """The draft's chain of k tokens after the newest one, ``[B, k]``; when sampling, what each was drawn from."""
        none = self.newest_B.new_zeros(len(self.newest_B), 0)
        if self.draft is None or self.draft_hidden_BH is None:
            return none, none[..., None].float()
        hidden_BH, found, chances = self.draft_hidden_BH, [], []
        for depth in range(self.k):
            normed_BH, carried_BH = self.draft.head_and_carry(hidden_BH)
            logits = self.draft.lm_head(normed_BH)
            if self.temperature:
                chances.append((logits.float() / self.temperature).softmax(-1))
                chosen_B = draw(chances[-1], draws(self.streams, 1, logits.device)[:, 0])
            else:
                chosen_B = logits.argmax(-1)
            found.append(self.draft.draft_ids[chosen_B])
            if depth < self.k - 1:
                # The draft's newest row stands one position before the newest token.
                at_B1 = self.length_B[:, None] - 1 + depth
                hidden_BH = self._draft_pass(self.draft, carried_BH[:, None], found[-1][:, None], at_B1)[:, 0]
        return torch.stack(found, 1), torch.stack(chances, 1) if chances else none[..., None].float()

    def _verify(self, last_BQH: Tensor, proposed_BQ: Tensor, draft_BkVd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Accepted proposals per row, the target's tokens ``[B, k+1]`` and their margins."""
        if not self.temperature:
            verified_BQ, margins_BQ = self._best(last_BQH)
            return (verified_BQ[:, :-1] == proposed_BQ).long().cumprod(1).sum(1), verified_BQ, margins_BQ
        chances_BQV = (self.target.head(last_BQH).float() / self.temperature).softmax(-1)
        ids_Vd = self.draft.draft_ids if self.draft is not None else proposed_BQ.new_zeros(0)
        k = proposed_BQ.shape[1]
        numbers_BQ = draws(self.streams, k + 1, last_BQH.device)
        kept_B, tokens_BQ = keep_or_replace(
            chances_BQV, proposed_BQ, draft_BkVd, ids_Vd, numbers_BQ[:, :k], numbers_BQ[:, k]
        )
        return kept_B, tokens_BQ, torch.full(tokens_BQ.shape, float("inf"))

    def _best(self, last_XH: Tensor) -> tuple[Tensor, Tensor]:
        top = self.target.head(last_XH).topk(2, dim=-1)
        return top.indices[..., 0], (top.values[..., 0] - top.values[..., 1]).float()

    def _target_pass(self, ids_BQ: Tensor, positions_BQ: Tensor) -> tuple[Tensor, Tensor]:
        extent = int(positions_BQ.max()) + 1
        self.target_cache.point(torch.arange(len(ids_BQ), device=ids_BQ.device), positions_BQ, extent)
        out = self.target.decoder(
            input_ids=ids_BQ,
            position_ids=positions_BQ,
            use_cache=True,
            **cached(self.target.decoder, self.target_cache),
        )
        return torch.cat([self.taps[layer] for layer in self.target.aux_layers], -1), out.last_hidden_state

    def _draft_pass(self, draft: Draft, hidden_BQH: Tensor, next_BQ: Tensor, positions_BQ: Tensor) -> Tensor:
        """The draft's layers once: row p reads ``next`` = token p+1; returns hidden states ``[B, Q, H]``."""
        batch, queries = next_BQ.shape
        embedded = draft.midlayer.input_layernorm(F.embedding(next_BQ, self.embedding_VH)).flatten(0, 1)
        cos, sin = draft.rope(positions_BQ.flatten(), embedded.dtype)
        extent = int(positions_BQ.max()) + 1
        self.draft_cache.point(torch.arange(batch, device=embedded.device), positions_BQ, extent)
        mask = position_mask(positions_BQ, extent, embedded.dtype)
        hidden_RH = hidden_BQH.flatten(0, 1)
        for index, layer in enumerate(draft.stack):
            normed_RH, attention = layer.hidden_norm(hidden_RH), layer.self_attn
            read = torch.cat((embedded, normed_RH), -1) if index == 0 else normed_RH
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            query, key, value = (p(read).unflatten(1, (-1, draft.config.head_dim)) for p in projections)
            turned = (rotate(query, cos, sin), rotate(key, cos, sin), value)
            heads = [states.unflatten(0, (batch, queries)).transpose(1, 2) for states in turned]
            keys, values = self.draft_cache.update(heads[1], heads[2], index)
            attended, _ = grouped_attention(attention, heads[0], keys, values, mask)
            residual_RH = draft.residual(hidden_RH, normed_RH) if index == 0 else hidden_RH
            hidden_RH = layer.finish(residual_RH, attended.flatten(0, 1))
        out: Tensor = hidden_RH.unflatten(0, (batch, queries))
        return out
