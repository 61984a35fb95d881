"""Where a run stands, beside its weights: counters that every checkpoint holds as ``progress.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eagle3cli.errors import Eagle3Error
from eagle3cli.runtime.files import read_json

FILE_KEYS = {"evals_without_improvement": "stale", "metrics": "window"}
"""Fields that have another name in the file, as earlier versions wrote it."""


@dataclass
class TrainState:
    """Counters of a run."""

    step: int = 0
    """Finished optimizer steps."""
    seconds: float = 0.0
    """Training time, earlier sessions included."""
    best: float = 0.0
    """Best held-out acceptance length so far."""
    evals_without_improvement: int = 0
    """Evaluations since that one."""
    skipped: int = 0
    """Steps left out because their gradient was not finite."""
    rates: list[float] = field(default_factory=list)
    """Mean acceptance rate of every step of the unroll in the last training step, where the loss follows it."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """What was counted since the last log line (:meth:`Metrics.saved`)."""
    fingerprint: str = ""
    """What the run was started with, hashed as earlier versions do; a checkpoint of another run is refused."""
    identity: dict[str, Any] = field(default_factory=dict)
    """The same in the clear; empty in checkpoints of earlier versions."""

    def to_file(self) -> dict[str, Any]:
        """The content of ``progress.json``."""
        return {FILE_KEYS.get(name, name): value for name, value in asdict(self).items()}


def read_state(path: Path) -> TrainState:
    """The counters of a checkpoint; raises Eagle3Error for a file that this version did not write."""
    kinds = {name: type(value) for name, value in TrainState().to_file().items()}
    names = {key: name for name, key in FILE_KEYS.items()}
    try:
        raw = {"identity": {}, **read_json(path)}
        state = TrainState(**{names.get(key, key): value for key, value in raw.items()})
        if any(not isinstance(raw[key], (kind, int) if kind is float else kind) for key, kind in kinds.items()):
            raise TypeError("a counter of another kind")
    except (TypeError, KeyError, AttributeError) as error:
        fix = "go on with the version of eagle3 that wrote it, or --overwrite to start over"
        raise Eagle3Error("damaged-file", f"not the counters of a run: {error}", where=str(path), fix=fix) from error
    return state
