"""Lossless decoding with a draft chain, in this process: the engine behind ``bench --engine local``.

Each step of a batch has three parts:

1. propose: the draft writes k tokens, one after the other, each from its own hidden state and the token before;
2. verify: one pass of the target reads the newest token and all k draft tokens. Attention is causal, so its logits
   after each of them are those that plain decoding would compute if it had come that far;
3. accept: the leading draft tokens that the target would have written itself are kept, and the target adds one of its
   own, so every step gives 1 to k + 1 tokens. At a temperature they are drawn by exact rejection sampling
   (:mod:`eagle3cli.serving.decode.speculate`).

The text is the target's own whatever the draft says; what is saved are target passes, each of which reads all weights
for few tokens. k = 0 is plain decoding through the same code. Knows nothing about text or tasks.

The shape legend is in ``models/draft.py``; Q is k + 1 when verifying, T the k draft steps.
"""

from __future__ import annotations

import random
import time
from collections import abc
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eagle3cli.backends.target.hf import HfTarget
from eagle3cli.backends.target.positions import PositionCache
from eagle3cli.data.images.tokens import ImageTokens
from eagle3cli.errors import ModelError
from eagle3cli.models.draft import Draft
from eagle3cli.models.sampling import Sampling, probabilities
from eagle3cli.serving.decode.generate import COMPACT_BELOW, Sequence, draw
from eagle3cli.serving.decode.passes import Passes, TargetPass
from eagle3cli.serving.decode.speculate import rejection_sample, uniform


@dataclass
class Decoded(Sequence):
    """One prompt's new tokens and how they came about."""

    steps: int = 0
    """Verification passes; the first token comes from the prefill and from none of them."""
    accepted_at: list[int] = field(default_factory=list)
    """Steps in which the draft token at each depth was accepted and is part of the reply."""
    counted_at: list[int] = field(default_factory=list)
    """The same with those behind the reply's end, which its last step accepted, too: servers count like that."""
    frames: list[tuple[float, int]] = field(default_factory=list)
    """When there were how many tokens, in seconds since the batch began."""


@torch.inference_mode()
def decode(
    target: HfTarget,
    draft: Draft | None,
    prompts: abc.Sequence[abc.Sequence[int]],
    *,
    k: int,
    max_new_tokens: int,
    eos_ids: frozenset[int],
    batch_size: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seeds: abc.Sequence[int] = (),
    check: abc.Callable[[float], None] | None = None,
    passes: Passes | None = None,
) -> list[Decoded]:
    """Continuations of token prompts, with ``k`` draft steps per verification (0: none).

    Greedy at temperature 0, else drawn among the target's ``top_k`` (0: all) and ``top_p``, each with its own of
    ``seeds``. The prompts are decoded in batches of similar length; results keep the order given. ``check`` is called
    before every step with the share of the work that is done, as far as the longest replies tell, and may raise to end
    it all. ``passes`` are those of this target and draft, for a caller that decodes more than once. Raises ModelError
    for a target whose past is not addressed by position (linear attention).
    """
    assert not temperature or len(seeds) == len(prompts), "sampling needs a seed for every prompt"
    assert k == 0 or draft is not None, "k > 0 needs a draft"
    passes = passes or Passes(target, draft)
    if passes.most_rows == 0:
        name = type(target.model).__name__
        what = f"{name} cannot be decoded here: its past is not keys and values by position alone"
        raise ModelError(
            "unsupported-engine",
            what,
            where=target.path,
            fix="measure it on a server: eagle3 bench without --engine local",
        )
    batch_size = min(batch_size, passes.most_rows or batch_size)
    sequences = []
    for index, prompt in enumerate(prompts):
        rng = random.Random(seeds[index] if temperature else 0)
        zeros = [0] * k
        sequences.append(Decoded(index, prompt, max_new_tokens, rng, accepted_at=zeros, counted_at=zeros.copy()))
    by_length = sorted(sequences, key=lambda sequence: len(sequence.prompt_ids))
    with passes.running() as target_pass:
        for start in range(0, len(by_length), batch_size):
            part = by_length[start : start + batch_size]
            batch = _Batch(passes, target_pass, part, k, Sampling(temperature, top_p, top_k))

            def check_batch(tokens: int, before: int = start, rows: int = len(part)) -> None:
                if check is not None:
                    check((before + rows * tokens / max_new_tokens) / len(by_length))

            _decode_batch(batch, eos_ids, check_batch)
    return sequences


def _decode_batch(batch: _Batch, eos_ids: frozenset[int], check: abc.Callable[[int], None]) -> None:
    """Decode until every sequence of the batch has finished; ``check`` gets the tokens of the longest reply."""
    check(0)
    for sequence, token in zip(batch.sequences, batch.prefill(), strict=True):
        sequence.extend([token], eos_ids)
        sequence.frames.append((time.perf_counter() - batch.started, 1))
    while unfinished := [row for row, sequence in enumerate(batch.sequences) if not sequence.finish]:
        check(max(len(batch.sequences[row].token_ids) for row in unfinished))
        # Finished sequences cost a row of every pass; dropping them copies both caches, so not one at a time.
        if len(unfinished) <= COMPACT_BELOW * len(batch.sequences):
            batch.keep(unfinished)
        for sequence, (accepted, tokens) in zip(batch.sequences, batch.step(), strict=True):
            if sequence.finish:
                continue
            added = sequence.extend(tokens, eos_ids)
            sequence.frames.append((time.perf_counter() - batch.started, len(sequence.token_ids)))
            sequence.steps += 1
            for depth in range(accepted):
                sequence.counted_at[depth] += 1
                sequence.accepted_at[depth] += depth < added


@dataclass
class _Batch:
    """The caches and the newest states of the sequences that are decoded together.

    Both caches are addressed by position (:class:`PositionCache`): what a rejected token left behind needs no clean-up,
    for its slot is written again before any query can see it.
    """

    passes: Passes
    target_pass: TargetPass
    sequences: list[Decoded]
    k: int
    sampling: Sampling

    def __post_init__(self) -> None:
        self.started = time.perf_counter()
        batch = len(self.sequences)
        self.device = self.passes.target.device
        self.draft = self.passes.draft_passes if self.k else None
        lengths = [len(sequence.prompt_ids) for sequence in self.sequences]
        self.length_B = torch.tensor(lengths, device=self.device)
        """Tokens of every sequence, the newest included."""
        self.max_length = max(lengths) + self.sequences[0].max_tokens
        slots = self.max_length + self.k + 1
        self.target_cache = PositionCache(batch, slots)
        self.draft_cache = PositionCache(batch, slots)
        self.newest_B = torch.zeros_like(self.length_B)
        """The last token of every sequence: neither model has read it yet."""
        self.draft_hidden_BH = torch.zeros(0, 0)
        """The draft's hidden state one position before the newest token: the first draft token comes from it."""

    def prefill(self) -> list[int]:
        """Run the prompts, padded on the right; returns the first new token of every sequence."""
        batch = len(self.sequences)
        rows_B = torch.arange(batch, device=self.device)
        end_B = self.length_B - 1
        ids_BQ, positions_BQ = self._padded()
        prompts = [sequence.prompt_ids for sequence in self.sequences]
        if any(isinstance(prompt, ImageTokens) for prompt in prompts):
            aux_BQC, last_BQH = self.target_pass.read_each(prompts, self.target_cache)
        else:
            aux_BQC, last_BQH = self.target_pass(ids_BQ, positions_BQ, self.target_cache)
        no_draft_B0 = self.length_B.new_zeros(batch, 0)
        # The head reads one position of each prompt: logits of all of them would be [B, Q, V].
        _, tokens_B1 = self._verify(last_BQH[rows_B, end_B][:, None], no_draft_B0, no_draft_B0[..., None])
        self.newest_B = tokens_B1[:, 0]
        next_BQ = ids_BQ.roll(-1, 1)
        next_BQ[rows_B, end_B] = self.newest_B
        self._extend_draft(aux_BQC, next_BQ, positions_BQ, end_B)
        self.length_B = self.length_B + 1
        return self.newest_B.tolist()

    def _padded(self) -> tuple[Tensor, Tensor]:
        """Tokens and positions of the prompts, ``[B, Q]``, padded on the right."""
        width = int(self.length_B.max())
        ids_BQ = torch.zeros(len(self.sequences), width, dtype=torch.long, device=self.device)
        for row, sequence in enumerate(self.sequences):
            ids_BQ[row, : len(sequence.prompt_ids)] = torch.tensor(sequence.prompt_ids)
        return ids_BQ, torch.arange(width, device=self.device).expand_as(ids_BQ)

    def step(self) -> list[tuple[int, list[int]]]:
        """Propose, verify, accept: of every sequence how many draft tokens it accepted, and its new tokens."""
        draft_tokens_BT, draft_probs_BTW = self._propose()
        ids_BQ = torch.cat((self.newest_B[:, None], draft_tokens_BT), 1)
        positions_BQ = self.length_B[:, None] - 1 + torch.arange(self.k + 1, device=ids_BQ.device)
        aux_BQC, last_BQH = self.target_pass(ids_BQ, positions_BQ, self.target_cache)
        accepted_B, tokens_BQ = self._verify(last_BQH, draft_tokens_BT, draft_probs_BTW)
        self._extend_draft(aux_BQC, tokens_BQ, positions_BQ, accepted_B)
        self.newest_B = tokens_BQ.gather(1, accepted_B[:, None])[:, 0]
        # A finished sequence that is still in the batch goes on with junk; it must not outrun the slots.
        self.length_B = (self.length_B + accepted_B + 1).clamp(max=self.max_length)
        pairs = zip(accepted_B.tolist(), tokens_BQ.tolist(), strict=True)
        return [(accepted, tokens[: accepted + 1]) for accepted, tokens in pairs]

    def keep(self, kept: list[int]) -> None:
        """Go on with these rows only."""
        self.sequences = [self.sequences[row] for row in kept]
        rows = torch.tensor(kept)
        self.target_cache.keep(rows)
        self.draft_cache.keep(rows)
        self.length_B = self.length_B[rows]
        self.newest_B = self.newest_B[rows]
        if self.draft is not None:
            self.draft_hidden_BH = self.draft_hidden_BH[rows]

    def _propose(self) -> tuple[Tensor, Tensor]:
        """The draft's next tokens ``[B, T]``; when sampling also what each was drawn from, ``[B, T, W]``."""
        none_B0 = self.newest_B.new_zeros(len(self.newest_B), 0)
        if self.draft is None:
            return none_B0, none_B0[..., None]
        hidden_BH = self.draft_hidden_BH
        tokens: list[Tensor] = []
        probs: list[Tensor] = []
        for step in range(self.k):
            normed_BH, carried_BH = self.draft.draft.head_and_carry(hidden_BH)
            logits_BW = self.draft.head(normed_BH)
            if self.sampling.temperature:
                probs.append(probabilities(logits_BW, self.sampling))
                chosen_B = draw(probs[-1], self._uniform(1)[:, 0])
            else:
                chosen_B = logits_BW.argmax(-1)
            tokens.append(self.draft.draft_ids_W[chosen_B])
            if step < self.k - 1:
                # Row p of the draft reads token p + 1, so it stands one position before the token that it reads.
                positions_B1 = self.length_B[:, None] - 1 + step
                hidden_B1H = self.draft(carried_BH[:, None], tokens[-1][:, None], positions_B1, self.draft_cache)
                hidden_BH = hidden_B1H[:, 0]
        return torch.stack(tokens, 1), torch.stack(probs, 1) if probs else none_B0[..., None]

    def _verify(self, last_BQH: Tensor, draft_tokens_BT: Tensor, draft_probs_BTW: Tensor) -> tuple[Tensor, Tensor]:
        """Accepted draft tokens of every sequence ``[B]``, and the target's tokens ``[B, Q]``; Q is T + 1."""
        logits_BQV = self.passes.head(last_BQH)
        if not self.sampling.temperature:
            tokens_BQ = logits_BQV.argmax(-1)
            # The product is 1 up to the first difference: only a token whose whole prefix is right can be accepted.
            return (tokens_BQ[:, :-1] == draft_tokens_BT).long().cumprod(1).sum(1), tokens_BQ
        probs_BQV = probabilities(logits_BQV, self.sampling)
        uniform_BQ = self._uniform(last_BQH.shape[1])
        draft_ids_W = self.draft.draft_ids_W if self.draft is not None else draft_tokens_BT.new_zeros(1)
        return rejection_sample(probs_BQV, draft_tokens_BT, draft_probs_BTW, draft_ids_W, uniform_BQ)

    def _uniform(self, count: int) -> Tensor:
        return uniform([sequence.rng for sequence in self.sequences], count, self.device)

    def _extend_draft(self, aux_BQC: Tensor, next_BQ: Tensor, positions_BQ: Tensor, last_B: Tensor) -> None:
        """Run the draft over positions that the target has read; ``last`` is where the newest token comes from.

        There it reads the target's states in place of the hidden states that it guessed while proposing: every chain
        starts as the first ttt step of training does. States behind ``last`` are junk that is written over.
        """
        if self.draft is not None:
            first_BQH = self.draft.first_hidden(aux_BQC)
            hidden_BQH = self.draft(first_BQH, next_BQ, positions_BQ, self.draft_cache)
            self.draft_hidden_BH = hidden_BQH[torch.arange(len(last_B), device=last_B.device), last_B]
