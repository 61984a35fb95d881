"""The draft's vocabulary: some of the target's tokens, and the two maps between both vocabularies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from eagle3cli.data.tokens.counts import Counts
from eagle3cli.data.tokens.vocab_file import tensors_of
from eagle3cli.errors import DataError


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
    tensors = tensors_of(np.unique(np.asarray(ids, dtype=np.int64)), vocab_size)
    return VocabMapping(d2t=torch.from_numpy(tensors["d2t"]), t2d=torch.from_numpy(tensors["t2d"]))


def load_vocab(path: Path) -> VocabMapping:
    """Read a mapping back; raises DataError where the file is absent, broken or inconsistent."""
    try:
        tensors = load_file(path)
        mapping = VocabMapping(d2t=tensors["d2t"], t2d=tensors["t2d"])
    except (OSError, SafetensorError, KeyError) as error:
        raise DataError("vocabulary-mapping", f"not a vocabulary mapping: {error}", where=str(path)) from error
    ids = mapping.draft_ids
    if mapping.t2d.dtype != torch.bool or not torch.equal(mapping.t2d.nonzero().flatten(), ids):
        raise DataError(
            "vocabulary-mapping", "d2t and t2d disagree", where=str(path), fix="build the cache again with --overwrite"
        )
    return mapping
