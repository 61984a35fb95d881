"""The draft's vocabulary: the target's most used tokens, and the two maps between both vocabularies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from eagle3cli.data.rows import TokenRow
from eagle3cli.errors import DataError, UsageError
from eagle3cli.runtime.files import writing

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class VocabMapping:
    """Draft vocabulary of ``Vd`` of the target's ``V`` tokens.

    ``d2t`` int64 ``[Vd]``: target_id = draft_id + d2t[draft_id]. ``t2d`` bool ``[V]``: the draft knows this target id.
    """

    d2t: Tensor
    t2d: Tensor

    @property
    def draft_ids(self) -> Tensor:
        """Target ids of the draft's tokens, int64 ``[Vd]``, ascending."""
        return torch.arange(len(self.d2t)) + self.d2t

    @property
    def size(self) -> int:
        """Vd."""
        return len(self.d2t)

    @property
    def target_size(self) -> int:
        """V."""
        return len(self.t2d)


def from_ids(ids: Sequence[int] | Counts, vocab_size: int) -> VocabMapping:
    """The mapping whose draft knows exactly these target ids."""
    chosen = torch.as_tensor(np.unique(np.asarray(ids, dtype=np.int64)))
    t2d = torch.zeros(vocab_size, dtype=torch.bool)
    t2d[chosen] = True
    return VocabMapping(d2t=chosen - torch.arange(len(chosen)), t2d=t2d)


def full_vocab(vocab_size: int) -> VocabMapping:
    """The draft knows every token of the target."""
    return VocabMapping(d2t=torch.zeros(vocab_size, dtype=torch.int64), t2d=torch.ones(vocab_size, dtype=torch.bool))


def count_tokens(rows: Iterable[TokenRow]) -> tuple[Counts, Counts]:
    """How often each token id occurs in replies and in prompts: two int64 arrays, as long as the ids need."""
    reply, prompt = no_counts(), no_counts()
    for row in rows:
        trained = row.loss_mask.astype(bool)
        reply, prompt = add_counts(reply, row.token_ids[trained]), add_counts(prompt, row.token_ids[~trained])
    return reply, prompt


def no_counts() -> Counts:
    """Counts of nothing."""
    return np.zeros(0, dtype=np.int64)


def add_counts(counts: Counts, token_ids: npt.NDArray[np.int32]) -> Counts:
    """The counts with these tokens added."""
    more = np.bincount(token_ids, minlength=len(counts)).astype(np.int64)
    more[: len(counts)] += counts
    return more


def fit(counts: Counts, vocab_size: int) -> Counts:
    """Counts as long as the target's vocabulary; raises DataError where a counted id is outside of it."""
    used = counts.nonzero()[0]
    if len(used) and int(used[-1]) >= vocab_size:
        what = f"token id {int(used[-1])} is outside the target's vocabulary of {vocab_size}"
        raise DataError(what, fix="tokenizer and model do not belong together; check --target-model-path")
    fitted = np.zeros(vocab_size, dtype=np.int64)
    fitted[: min(len(counts), vocab_size)] = counts[:vocab_size]
    return fitted


def choose(
    reply: Counts,
    prompt: Counts,
    size: int,
    *,
    always: Iterable[int] = (),
    reply_weight: int = 3,
    prompt_weight: int = 1,
) -> VocabMapping:
    """The ``size`` tokens with the highest weighted count, ties by lower id; ``always`` are in whatever their count.

    Raises UsageError when ``size`` cannot hold ``always``.
    """
    vocab_size = len(reply)
    if size >= vocab_size:
        return full_vocab(vocab_size)
    fixed = np.unique(np.fromiter((i for i in always if 0 <= i < vocab_size), dtype=np.int64))
    if len(fixed) > size:
        raise UsageError(
            f"a draft vocabulary of {size} cannot hold the {len(fixed)} special tokens that the data use",
            where="draft.vocab_size",
            fix=f"set --draft-vocab-size to {len(fixed)} or more",
        )
    score = (reply * reply_weight + prompt * prompt_weight).astype(np.float64)
    score[fixed] = np.inf
    order = np.argsort(-score, kind="stable")
    return from_ids(order[:size], vocab_size)


def coverage(mapping: VocabMapping, reply: Counts) -> float:
    """Share of the counted reply tokens that the draft can propose; 1.0 where nothing was counted."""
    total = int(reply.sum())
    return float(reply[mapping.t2d.numpy()].sum()) / total if total else 1.0


def save_vocab(path: Path, mapping: VocabMapping) -> None:
    """Write ``d2t`` and ``t2d`` as safetensors, atomically."""
    with writing(path, "wb") as f:
        f.write(save({"d2t": mapping.d2t, "t2d": mapping.t2d}))


def load_vocab(path: Path) -> VocabMapping:
    """Read a mapping back; raises DataError where the file is absent, broken or inconsistent."""
    try:
        tensors = load_file(path)
        mapping = VocabMapping(d2t=tensors["d2t"], t2d=tensors["t2d"])
    except (OSError, SafetensorError, KeyError) as error:
        raise DataError(f"not a vocabulary mapping: {error}", where=str(path)) from error
    ids = mapping.draft_ids
    if mapping.t2d.dtype != torch.bool or not torch.equal(mapping.t2d.nonzero().flatten(), ids):
        raise DataError("d2t and t2d disagree", where=str(path), fix="build the cache again with --overwrite")
    return mapping
