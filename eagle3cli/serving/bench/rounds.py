"""Rounds: configurations that are compared take turns, a part of the questions each, so that a machine that gets busier
slows all of them alike; and how far the rounds agree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from pydantic import TypeAdapter

from eagle3cli.runtime.files import append
from eagle3cli.runtime.provenance import digest_json
from eagle3cli.serving.bench.results import Case, ResultRow
from eagle3cli.serving.bench.session import Measurement

_MEASUREMENT = TypeAdapter(Measurement)


@dataclass(frozen=True)
class Round:
    """One turn of a configuration."""

    tokens: int
    seconds: float
    cpu_seconds: float | None

    @classmethod
    def of(cls, measurement: Measurement) -> Round:
        """What a measurement of a part of the questions came to."""
        tokens = sum(response.answer.tokens for response in measurement.responses)
        return cls(tokens, max(1e-9, measurement.seconds), measurement.cpu_seconds)

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


def spread(rounds: Sequence[Round], baseline: Sequence[Round] | None) -> ResultRow:
    """Median and range over the rounds of a configuration; its speed-ups where its ``baseline`` took turns with it.

    CPU seconds are told where the engine computes in this process: other programs do not change them much.
    """
    row: ResultRow = {"rounds": len(rounds), "tokens_per_s_rounds": _range([one.speed for one in rounds])}
    seconds = _cpu_seconds(rounds)
    if seconds is not None:
        row["cpu_seconds"] = round(seconds, 5)
    if baseline is None or len(baseline) != len(rounds):
        return row
    pairs = zip(rounds, baseline, strict=True)
    row["speedup_rounds"] = _range([one.speed / max(1e-9, plain.speed) for one, plain in pairs])
    plain_seconds = _cpu_seconds(baseline)
    if seconds and plain_seconds:
        tokens, plain_tokens = (sum(one.tokens for one in part) for part in (rounds, baseline))
        row["speedup_cpu"] = round(tokens / seconds / max(1e-9, plain_tokens / plain_seconds), 3)
    return row


def _cpu_seconds(rounds: Sequence[Round]) -> float | None:
    known = [one.cpu_seconds for one in rounds if one.cpu_seconds is not None]
    return sum(known) if len(known) == len(rounds) else None


def _range(values: Sequence[float]) -> ResultRow:
    return {"median": round(median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def parts(order: Sequence[int], size: int) -> list[list[int]]:
    """What is asked, in this order, in parts of ``size``."""
    return [list(order[start : start + size]) for start in range(0, len(order), size)]


@dataclass
class KeptRounds:
    """Rounds of configurations that are not finished, in a file beside the results: a benchmark that was stopped, or
    killed, goes on with them. ``settings`` are those that decide the numbers."""

    path: Path
    settings: ResultRow
    _measured: dict[str, Measurement] = field(default_factory=dict)

    @classmethod
    def open(cls, results: Path, settings: ResultRow, *, overwrite: bool) -> KeptRounds:
        """Those that an earlier run with the same settings left; of others nothing is read."""
        kept = cls(results.with_name(f"{results.stem}.rounds.jsonl"), settings)
        if overwrite:
            kept.clear()
        lines = kept.path.read_bytes().splitlines() if kept.path.exists() else []
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):  # the last line may be torn
                row = json.loads(line)
                if row["settings"] == digest_json(settings):
                    kept._measured[row["round"]] = _MEASUREMENT.validate_python(row["measurement"])
        return kept

    def get(self, case: Case, repeat: int, number: int) -> Measurement | None:
        """What a round came to, None where it was not measured."""
        return self._measured.get(_name(case, repeat, number))

    def add(self, case: Case, repeat: int, number: int, measurement: Measurement) -> None:
        """Keep a round."""
        row = {
            "settings": digest_json(self.settings),
            "round": _name(case, repeat, number),
            "measurement": _MEASUREMENT.dump_python(measurement, mode="json"),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append(self.path, json.dumps(row, ensure_ascii=False) + "\n")

    def clear(self) -> None:
        """Forget all: the configurations are in the results."""
        self._measured = {}
        self.path.unlink(missing_ok=True)


def _name(case: Case, repeat: int, number: int) -> str:
    return f"{case.task} {case.config} {case.temperature!r} {repeat} {number}"
