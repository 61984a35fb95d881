"""Hidden states as SpecForge keeps them: one ``.ckpt`` (or ``.ckpt.gz``) a row, read without running what is in it.

A file holds ``input_ids`` and ``loss_mask`` (both L), ``aux_hidden_state`` (1 x L x layers H: the auxiliary layers'
outputs side by side) and ``hidden_state`` (1 x L x H: the last one, after the target's final norm).
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from torch import Tensor

from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.errors import DataError
from eagle3cli.runtime.report import Reporter

KEYS = ("input_ids", "loss_mask", "aux_hidden_state", "hidden_state")
SUFFIXES = (".ckpt", ".ckpt.gz")


@dataclass(frozen=True)
class FeatureRow:
    """One file: tokens, mask, and the states of all tokens."""

    row: TokenRow
    aux_SC: Tensor
    last_SH: Tensor


@dataclass(frozen=True)
class FeatureFiles:
    """The files of a folder: those that hold a row, with its tokens and mask, and what is wrong with the others."""

    files: list[Path]
    rows: list[TokenRow]
    dtypes: set[torch.dtype]
    errors: dict[Path, str]


def list_files(folder: Path) -> list[Path]:
    """All files of rows below ``folder``, sorted; raises DataError where there is none."""
    files = sorted(p for p in folder.rglob("*") if p.name.endswith(SUFFIXES) and p.is_file()) if folder.is_dir() else []
    if not files:
        fix = "give the folder that SpecForge's prepare_hidden_states wrote"
        raise DataError("specforge-file", "no .ckpt files here", where=str(folder), fix=fix)
    return files


def read_listed(paths: Iterable[Path], *, layers: int, hidden: int, vocab: int, report: Reporter) -> FeatureFiles:
    """Read every file's tokens and mask, and check its states' shapes; of .ckpt files nothing else is read."""
    listed = FeatureFiles([], [], set(), {})
    paths = list(paths)
    with report.task("reading tokens and masks", len(paths), unit="files") as task:
        for path in paths:
            try:
                features = read_features(path, layers=layers, hidden=hidden, vocab=vocab)
            except DataError as error:
                listed.errors[path] = error.message
            else:
                listed.files.append(path)
                listed.rows.append(features.row)
                listed.dtypes.add(features.aux_SC.dtype)
            task.advance()
    return listed


def read_features(path: Path, *, layers: int, hidden: int, vocab: int) -> FeatureRow:
    """One row; states are mapped, not read. Raises DataError with what is wrong."""
    raw = _load(path)
    missing = [key for key in KEYS if not isinstance(raw.get(key), Tensor)]
    if missing:
        raise DataError("specforge-file", f"no tensor {', '.join(missing)}", where=str(path))
    ids = raw["input_ids"].flatten()
    mask = raw["loss_mask"].flatten()
    aux, last = (_without_batch(raw[key]) for key in ("aux_hidden_state", "hidden_state"))
    if not len(ids) or len(mask) != len(ids):
        raise DataError("specforge-file", f"{len(ids)} tokens with a mask of {len(mask)}", where=str(path))
    for name, states, width in (("aux_hidden_state", aux, layers * hidden), ("hidden_state", last, hidden)):
        if states.shape != (len(ids), width) or not states.is_floating_point():
            what = f"{name} is {list(states.shape)} {states.dtype}, not {len(ids)} x {width} numbers"
            raise DataError("specforge-file", f"{what} ({layers} auxiliary layers of {hidden})", where=str(path))
    if not 0 <= int(ids.min()) <= int(ids.max()) < vocab:
        raise DataError("specforge-file", f"token ids outside the target's vocabulary of {vocab}", where=str(path))
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise DataError("specforge-file", "the mask holds other values than 0 and 1", where=str(path))
    row = TokenRow(path.name, ids.numpy().astype(np.int32), mask.numpy().astype(np.uint8))
    return FeatureRow(row, aux, last)


def _without_batch(states: Tensor) -> Tensor:
    return states[0] if states.dim() == 3 and len(states) == 1 else states


def _load(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".gz":
            tensors = torch.load(io.BytesIO(gzip.decompress(path.read_bytes())), weights_only=True, map_location="cpu")
        else:
            tensors = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, UnpicklingError, zlib.error) as error:
        message = str(error).strip().splitlines()
        raise DataError(
            "specforge-file",
            f"not a file of tensors: {message[0] if message else type(error).__name__}",
            where=str(path),
        ) from error
    if not isinstance(tensors, dict):
        raise DataError("specforge-file", f"holds a {type(tensors).__name__}, not tensors by name", where=str(path))
    return tensors
