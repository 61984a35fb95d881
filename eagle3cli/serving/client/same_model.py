"""Whether two servers hold the same model: by its name, by its files where they are here, else by what they answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eagle3cli.models.speculators import verifier_of
from eagle3cli.serving.client.client import Info

EDGE = 1 << 20
"""Bytes at both ends of a weight file that are compared; the whole of a large one would take minutes."""
PROBE = (1, 2, 3, 4, 5, 6, 7, 8)
"""Token ids that every vocabulary has."""
PROBE_TOLERANCE = 0.5
"""Log-probability by which types and kernels may move a likely token."""


def model_path(info: Info) -> str:
    """The folder or hub id of the model that a server holds; where it was started with a draft of speculators
    (``vllm serve DRAFT``), that of the draft's target."""
    path = info.path or info.model
    config = _config(Path(path))
    return (verifier_of(config) if config else None) or path


def same_files(one: str, other: str) -> bool | None:
    """Whether two model paths hold the same weights; None where one of them is not a folder of safetensors here."""
    if one == other or Path(one).resolve() == Path(other).resolve():
        return True
    digests = [_digest(Path(path)) for path in (one, other)]
    return digests[0] == digests[1] if all(digests) else None


def same_answers(one: Mapping[int, float], other: Mapping[int, float]) -> bool:
    """Whether the likeliest tokens after :data:`PROBE`, with their log-probabilities, are those of one model."""
    common = one.keys() & other.keys()
    if 2 * len(common) <= max(len(one), len(other)):
        return False
    return all(abs(one[token] - other[token]) < PROBE_TOLERANCE for token in common)


def _config(folder: Path) -> dict[str, Any]:
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return raw if isinstance(raw, dict) else {}


def _digest(folder: Path) -> list[tuple[int, str]]:
    """Size and ends of every weight file."""
    return [(path.stat().st_size, _ends(path)) for path in sorted(folder.glob("*.safetensors"))]


def _ends(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as f:
        digest.update(f.read(EDGE))
        f.seek(max(0, path.stat().st_size - EDGE))
        digest.update(f.read(EDGE))
    return digest.hexdigest()
