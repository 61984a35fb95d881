"""The file of a draft vocabulary, written and compared without torch; ``vocab.py`` reads it to work with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from eagle3cli.data.tokens.counts import Counts
from eagle3cli.runtime.files import writing


def tensors_of(ids: Counts, vocab_size: int) -> dict[str, npt.NDArray[np.generic]]:
    """What the file holds: ``d2t`` int64 ``[Vd]``, target_id - draft_id; ``t2d`` bool ``[V]``, the draft knows this id.

    ``ids`` are the target's ids that the draft knows, ascending.
    """
    t2d = np.zeros(vocab_size, dtype=np.bool_)
    t2d[ids] = True
    return {"d2t": ids - np.arange(len(ids)), "t2d": t2d}


def write_vocab(path: Path, ids: Counts, vocab_size: int) -> None:
    """Write the file, atomically."""
    with writing(path, "wb") as f:
        f.write(save(tensors_of(ids, vocab_size)))


def holds(path: Path, ids: Counts, vocab_size: int) -> bool:
    """Whether the file is a mapping of exactly these target ids."""
    try:
        tensors = load_file(path)
        return all(np.array_equal(tensors[name], array) for name, array in tensors_of(ids, vocab_size).items())
    except (OSError, SafetensorError, KeyError):
        return False
