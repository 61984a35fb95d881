"""What was timed on this machine, kept for later plans: read where machine, target and settings are the same.

The files lie in ``$XDG_CACHE_HOME/eagle3/calibration`` (``~/.cache`` unless set), where vLLM, Triton's and the hub's
caches have their per-machine state, too: one for each machine, target and set of settings, so that homes that several
machines share keep them apart.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eagle3cli.errors import Eagle3Error
from eagle3cli.pipeline.forecast.ranges import Range
from eagle3cli.runtime.files import read_json, well_formed, write_json
from eagle3cli.runtime.machine import machine
from eagle3cli.runtime.provenance import compared, digest_json

MACHINE = ("eagle3", "torch", "transformers", "cpu", "cores", "gpus")
"""What of a machine decides how fast it is."""
BUSY = 0.1
"""From this share of others on people are told of it."""
Facts = dict[str, Any]


@dataclass(frozen=True)
class Conditions:
    """What a calibration holds for: another machine, target or way to compute is another calibration."""

    machine: Facts
    target: Facts
    """Its name, for people, and the digest of what its speed depends on."""
    settings: Facts
    """By their key; what changes the time of a step."""

    @property
    def path(self) -> Path:
        """The file of just these conditions."""
        return folder() / f"{digest_json([self.machine, self.target['kind'], self.settings])}.json"


@dataclass(frozen=True)
class DecodingStep:
    """One pass of the target over a batch, with what the draft proposes before it."""

    batch: int
    depth: int
    """Draft tokens of each sequence; 0 without a draft."""
    seconds: Range


@dataclass(frozen=True)
class TrainingStep:
    """One optimizer step of the draft, the target not counted."""

    rows: int
    row: int
    """Tokens of each row."""
    loss: int
    """Those of them that carry loss."""
    seconds: Range


@dataclass(frozen=True)
class Calibration:
    """What was timed; a part that time did not suffice for, or that this machine cannot, is None or empty."""

    made: str
    """Date and time."""
    waited: float = 0.0
    """The largest share of a part's time in which other programs had the processor."""
    load: Range | None = None
    """Seconds until the target is loaded."""
    capture_rate: Range | None = None
    """Tokens/s of the target with what hidden-states makes of them."""
    decoding: tuple[DecodingStep, ...] = ()
    training: TrainingStep | None = None

    def decoding_seconds(self, batch: float, depth: float) -> Range | None:
        """Of a step, between and beyond what was timed along straight lines; None where nothing of the kind was."""
        lines = {
            deep: [step for step in self.decoding if step.depth == deep] for deep in {s.depth for s in self.decoding}
        }
        if 0 not in lines or (depth and len(lines) == 1):
            return None
        of_batch = {
            deep: _on_line(batch, [(step.batch, step.seconds) for step in steps]) for deep, steps in lines.items()
        }
        return _on_line(depth, sorted(of_batch.items(), key=lambda item: item[0]))

    def missing(self) -> list[str]:
        """Parts that were not timed."""
        parts = {"load": self.load, "capture": self.capture_rate, "decode": self.decoding, "train": self.training}
        return [name for name, part in parts.items() if not part]


def _on_line(at: float, points: list[tuple[int, Range]]) -> Range:
    """Through the first and the last point; where there is only one, that."""
    (first, low), (last, high) = points[0], points[-1]
    if first == last:
        return low
    share = (at - first) / (last - first)
    ends = [one + share * (other - one) for one, other in ((low.low, high.low), (low.high, high.high))]
    least = min(low.low, high.low)
    return Range(max(least, min(ends)), max(least, *ends))


def folder() -> Path:
    """Where calibrations lie."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eagle3" / "calibration"


def this_machine() -> Facts:
    """What of this machine decides how fast it is."""
    facts = machine()
    return {name: facts[name] for name in MACHINE}


def save(conditions: Conditions, calibration: Calibration) -> None:
    """Keep a calibration; one of the same conditions is replaced. Raises Eagle3Error where it cannot be written."""
    training = calibration.training
    content = {
        "made": calibration.made,
        "waited": calibration.waited,
        "machine": conditions.machine,
        "target": conditions.target,
        "settings": conditions.settings,
        "load_seconds": calibration.load and calibration.load.numbers(),
        "capture_tokens_per_s": calibration.capture_rate and calibration.capture_rate.numbers(),
        "decoding_step_seconds": [
            {"batch": step.batch, "depth": step.depth, **step.seconds.numbers()} for step in calibration.decoding
        ],
        "training_step_seconds": training
        and {"rows": training.rows, "row": training.row, "loss": training.loss, **training.seconds.numbers()},
    }
    write_json(conditions.path, content)


def find(conditions: Conditions) -> tuple[Calibration | None, str]:
    """The calibration of these conditions, and what people are told of it; of those that are not for them, why not."""
    if conditions.path.is_file():
        try:
            calibration, _ = read_calibration(conditions.path)
        except Eagle3Error as error:
            return None, f"calibration: {error}; it is not used (--calibrate makes it anew)"
        left = calibration.missing()
        text = f"calibration: {conditions.path}, of {calibration.made}"
        text += f"; not timed: {', '.join(left)}" if left else ""
        if calibration.waited > BUSY:
            text += (
                f"; others used {calibration.waited:.0%} of its time: the ranges reach from without them to with them"
            )
        return calibration, text
    others = list(_others())
    same = [other for other in others if other.target["kind"] == conditions.target["kind"]]
    if same:
        reasons = min((_reasons(other, conditions) for other in same), key=len)
        return None, f"calibration: that of this target is not used: {'; '.join(reasons)}; --calibrate makes it anew"
    if others:
        names = ", ".join(sorted({other.target["name"] for other in others}))
        return None, f"calibration: none of this target; those here, of {names}, are not used (--calibrate makes one)"
    return None, "calibration: none; --calibrate times this machine with these models for at most a minute"


def _reasons(other: Conditions, conditions: Conditions) -> list[str]:
    changed = compared({**other.machine, **other.settings}, {**conditions.machine, **conditions.settings})
    return [f"{change.key} was {change.was}, is {change.now}" for change in changed] or ["its settings have other keys"]


def _others() -> Iterator[Conditions]:
    """The conditions of all that are here; a file that is none is passed over."""
    for path in sorted(folder().glob("*.json")):
        try:
            yield read_calibration(path)[1]
        except Eagle3Error:
            continue


def read_calibration(path: Path) -> tuple[Calibration, Conditions]:
    """A calibration and what it holds for; raises Eagle3Error for a file that is none."""
    content = read_json(path)
    with well_formed(path, "a calibration", "remove it"):
        target = {key: str(content["target"][key]) for key in ("name", "kind")}
        conditions = Conditions(dict(content["machine"]), target, dict(content["settings"]))
        training = content["training_step_seconds"]
        step = training and TrainingStep(
            int(training["rows"]), int(training["row"]), int(training["loss"]), _range(training)
        )
        calibration = Calibration(
            made=str(content["made"]),
            waited=float(content["waited"]),
            load=_range(content["load_seconds"]),
            capture_rate=_range(content["capture_tokens_per_s"]),
            decoding=tuple(
                DecodingStep(int(each["batch"]), int(each["depth"]), _range(each))
                for each in content["decoding_step_seconds"]
            ),
            training=step,
        )
    return calibration, conditions


def _range(numbers: Facts | None) -> Any:
    """None stays None. Raises ValueError for what is no time or rate."""
    if numbers is None:
        return None
    low = float(numbers["low"])
    high = float(numbers["high"])
    if not 0 < low <= high < float("inf"):
        raise ValueError(f"{low} to {high} is no range")
    return Range(low, high)


def now() -> str:
    """Date and time to the minute, UTC."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
