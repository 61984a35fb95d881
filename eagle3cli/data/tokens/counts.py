"""How often each token occurs in replies and prompts, and which of them a draft's vocabulary should hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.errors import DataError, UsageError

Counts = npt.NDArray[np.int64]

WANTED_COVERAGE = 0.99
SIZE_STEP = 1024
"""The suggested size is the smallest multiple of SIZE_STEP (kind to matrix kernels and tensor parallelism) that covers
this share of the reply tokens: where the draft cannot propose the token, acceptance ends, whatever the draft learnt."""


def no_counts() -> Counts:
    """Counts of nothing."""
    return np.zeros(0, dtype=np.int64)


def add_counts(counts: Counts, token_ids: npt.NDArray[np.int32]) -> Counts:
    """The counts with these tokens added."""
    more = np.bincount(token_ids, minlength=len(counts)).astype(np.int64)
    more[: len(counts)] += counts
    return more


def count_tokens(rows: Iterable[TokenRow]) -> tuple[Counts, Counts]:
    """How often each token id occurs in replies and in prompts: two int64 arrays, as long as the ids need."""
    reply = no_counts()
    prompt = no_counts()
    for row in rows:
        trained = row.loss_mask.astype(bool)
        reply = add_counts(reply, row.token_ids[trained])
        prompt = add_counts(prompt, row.token_ids[~trained])
    return reply, prompt


def fit_to_vocab(counts: Counts, vocab_size: int) -> Counts:
    """Counts as long as the target's vocabulary; raises DataError where a counted id is outside of it."""
    used = counts.nonzero()[0]
    if len(used) and int(used[-1]) >= vocab_size:
        what = f"token id {int(used[-1])} is outside the target's vocabulary of {vocab_size}"
        raise DataError(
            "token-outside-vocabulary",
            what,
            fix="tokenizer and model do not belong together; check --target-model-path",
        )
    fitted = np.zeros(vocab_size, dtype=np.int64)
    fitted[: min(len(counts), vocab_size)] = counts[:vocab_size]
    return fitted


@dataclass(frozen=True)
class Ranking:
    """The target's tokens, the most wanted first."""

    ids: Counts
    """All V token ids."""
    fixed: int
    """How many of the first are in every draft vocabulary, however seldom they occur."""

    def first(self, size: int) -> Counts:
        """Ids of the draft vocabulary of this size, ascending; raises UsageError where the fixed ones do not fit."""
        if size < self.fixed:
            raise UsageError(
                "invalid-value",
                f"a draft vocabulary of {size} cannot hold the {self.fixed} special tokens of the target",
                where="draft.vocab_size",
                fix=f"set --draft-vocab-size to {self.fixed} or more",
            )
        return np.sort(self.ids[:size])

    def coverage(self, reply: Counts) -> npt.NDArray[np.float64]:
        """Share of the counted tokens that a draft vocabulary of size 0, 1, .. V can propose; 1.0 of no tokens."""
        total = int(reply.sum())
        if not total:
            return np.ones(len(self.ids) + 1)
        return np.concatenate([[0], np.cumsum(reply[self.ids])]) / total

    def suggested(self, reply: Counts) -> int:
        """The smallest multiple of SIZE_STEP that covers WANTED_COVERAGE of the counted tokens; V where none does."""
        needed = max(self.fixed, int(np.searchsorted(self.coverage(reply), WANTED_COVERAGE)), 1)
        return min(-(-needed // SIZE_STEP) * SIZE_STEP, len(self.ids))


def rank_tokens(
    reply: Counts, prompt: Counts, *, always: Iterable[int] = (), reply_weight: int = 3, prompt_weight: int = 1
) -> Ranking:
    """Tokens by weighted count, ties by lower id, behind those that are ``always`` in."""
    fixed = np.unique(np.fromiter((i for i in always if 0 <= i < len(reply)), dtype=np.int64))
    score = (reply * reply_weight + prompt * prompt_weight).astype(np.float64)
    score[fixed] = np.inf
    return Ranking(np.argsort(-score, kind="stable"), len(fixed))
