"""The folder of a training run, read from its files alone, while it goes on or long after.

    run.json        what the run is (device, steps, data, sample rows) and each session's state
    settings.toml   settings as used
    metrics.jsonl   a line per logged step and per evaluation
    log.txt         what the terminal was told, with the time
    report.html     all of it as a page, written anew at every evaluation

Any of them may be missing or half written: an old run, a killed one, one that begins.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eagle3cli.runs.events import Event, start_event, valid_events
from eagle3cli.training.history import HISTORY, read_history

METADATA = "run.json"
LOG = "log.txt"
REPORT = "report.html"

METADATA_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("total_steps", "steps_per_epoch", "processes", "target_processes", "draft_weights"), int),
    "budget_seconds": (int, float),
    "data": dict,
    **dict.fromkeys(("samples", "sessions"), list),
    **dict.fromkeys(("decoded", "machine", "on_policy", "split"), dict),
    "command": str,
    **dict.fromkeys(("eagle3", "python", "torch", "transformers", "device", "device_name"), str),
}
"""What ``run.json`` holds; anything else in it is not looked at."""


@dataclass
class Run:
    """A training run as its files tell it."""

    folder: Path
    metadata: dict[str, Any] = field(default_factory=dict)
    """``run.json``."""
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """``settings.toml``, by table."""
    steps: list[Event] = field(default_factory=list)
    evals: list[Event] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """Lines of ``log.txt``."""
    start: Event | None = None
    """The draft before its first step, where the run was evaluated then."""

    @property
    def name(self) -> str:
        """The folder's own name; ``train`` alone says little, so the one around it stands before."""
        whole = self.folder.resolve()
        return f"{whole.parent.name}/{whole.name}" if whole.name == "train" else whole.name

    def setting(self, key: str, default: Any = None) -> Any:
        """A setting by ``table.name``."""
        table, _, name = key.partition(".")
        return self.settings.get(table, {}).get(name, default)

    @property
    def last_step(self) -> int:
        """The newest step that was logged."""
        return max((event["step"] for event in self._newest), default=0)

    @property
    def seconds(self) -> float:
        """Training time, evaluations apart."""
        return max((float(event.get("seconds", 0.0)) for event in self._newest), default=0.0)

    @property
    def _newest(self) -> list[Event]:
        return [*self.steps[-1:], *self.evals[-1:]]

    @property
    def measured(self) -> list[Event]:
        """Evaluations that hold acceptance lengths."""
        return [event for event in self.evals if event.get("acceptance_length")]

    @property
    def best(self) -> Event | None:
        """The evaluation with the best acceptance length of the deepest k, the first of equals: at the temperature of
        the last one, where that was measured at one."""
        last = self.measured[-1] if self.measured else {}
        alike = [event for event in self.measured if event.get("temperature") == last.get("temperature")]
        return max(alike, key=lambda event: served_lengths(event)[-1], default=None)

    @property
    def curve(self) -> list[Event]:
        """Step lines for a curve over steps, from the untrained draft on."""
        return [*([self.start] if self.start and "loss" in self.start else []), *self.steps]

    @property
    def measured_curve(self) -> list[Event]:
        """Evaluations for a curve over steps, from the untrained draft on."""
        return [*([self.start] if self.start and self.start.get("acceptance_length") else []), *self.measured]

    @property
    def epoch_starts(self) -> list[int]:
        """The steps after which each epoch but the first begins; of older runs the first that was logged in it."""
        length = self.metadata.get("steps_per_epoch") or 0
        if length > 0:
            return list(range(length, self.last_step, length))
        epochs: dict[int, int] = {}
        for event in self.steps:
            if isinstance(event.get("epoch"), int):
                epochs.setdefault(event["epoch"], event["step"])
        return [step for epoch, step in sorted(epochs.items()) if epoch > min(epochs)]

    def total(self, name: str) -> float | None:
        """The sum of a number over all step lines; None where no line has it."""
        values = [float(event[name]) for event in self.steps if isinstance(event.get(name), int | float)]
        return sum(values) if values else None


def served_lengths(event: Event) -> list[float]:
    """Acceptance length for k = 1, 2, ... by which an evaluation is judged: at its temperature, where it has one."""
    lengths: list[float] = event.get("sampled_acceptance_length") or event["acceptance_length"]
    return lengths


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a training run, begun at least."""
    return any((folder / name).is_file() for name in (METADATA, HISTORY, LOG)) or (folder / "checkpoints").is_dir()


def read_run(folder: Path) -> Run:
    """Everything that the folder's files hold; what is missing or damaged stays empty."""
    history = read_history(folder)
    steps, evals = valid_events(history)
    return Run(
        folder,
        metadata=read_metadata(folder),
        settings=_settings(folder / "settings.toml"),
        steps=steps,
        evals=evals,
        warnings=[line for line in log_lines(folder) if " warning: " in line],
        start=start_event(history),
    )


def read_metadata(folder: Path) -> dict[str, Any]:
    """``run.json``, each field of the type that it should have; empty where there is none or it is damaged."""
    try:
        content = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {name: content[name] for name, types in METADATA_TYPES.items() if isinstance(content.get(name), types)}


def log_lines(folder: Path, most: int = 1 << 20) -> list[str]:
    """The last lines of ``log.txt``, no more than ``most`` bytes of them."""
    try:
        with (folder / LOG).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - most))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def _settings(path: Path) -> dict[str, dict[str, Any]]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: table for name, table in tables.items() if isinstance(table, dict)}
