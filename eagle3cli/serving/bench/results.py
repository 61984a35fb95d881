"""The file that a benchmark's results go to: each measured configuration whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eagle3cli.errors import UsageError
from eagle3cli.runtime.files import write_text
from eagle3cli.runtime.provenance import changes, refuse_changes
from eagle3cli.serving.bench.configs import Config

ResultRow = dict[str, Any]
"""One JSON line of the result file."""


SCHEMA = 2
"""The version of the file's shape: ``examples/bench.md`` tells it. 1 had no environment and no parts."""
ABSENT_BEFORE: ResultRow = {"top_p": 1.0, "top_k": 0}
"""Settings that older files do not name, with the values that they were measured with."""


@dataclass(frozen=True)
class Case:
    """What is measured at once: a task with a configuration at a temperature."""

    task: str
    config: Config
    temperature: float = 0.0

    @property
    def name(self) -> ResultRow:
        """The keys by which its rows are found."""
        return {"task": self.task, "config": str(self.config), "temperature": self.temperature}

    @property
    def baseline(self) -> Case:
        """The same without the draft."""
        return Case(self.task, self.config.baseline, self.temperature)

    def __str__(self) -> str:
        return f"{self.task} {self.config}" + (f" temperature {self.temperature:g}" if self.temperature else "")


@dataclass
class Results:
    """The result file. ``rows`` hold requests and configurations in the order they were measured."""

    path: Path
    settings: ResultRow
    rows: list[ResultRow] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, settings: ResultRow, *, overwrite: bool) -> Results:
        """Go on with an earlier file of the same settings; raises UsageError for one with others."""
        if overwrite or not path.exists():
            return cls(path, settings)
        fix = "choose another --output, or pass --overwrite"
        try:
            first, *rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
            before = dict(first["settings"])
            rows = [row for row in rows if row["kind"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UsageError("foreign-files", "not a result file of eagle3 bench", where=str(path), fix=fix) from error
        before = {**ABSENT_BEFORE, **before}
        if not before.get("target"):  # of servers it was not told once
            before["target"] = settings.get("target")
        refuse_changes(changes(before, settings, keys=settings), str(path), fix)
        return cls(path, settings, rows)

    def add(self, rows: Sequence[ResultRow]) -> None:
        """Take in a measured configuration and write the file."""
        self.rows += rows
        self.write()

    def write(self) -> None:
        """Write the file, after rows were changed in their place."""
        lines = [{"kind": "settings", "schema": SCHEMA, "settings": self.settings}, *self.rows]
        write_text(self.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def configuration(self, case: Case) -> ResultRow | None:
        """The row of a configuration, None where it was not measured yet."""
        return next(self._of("configuration", case), None)

    def requests(self, case: Case) -> list[ResultRow]:
        """The rows of its requests."""
        return list(self._of("request", case))

    def _of(self, kind: str, case: Case) -> Iterator[ResultRow]:
        keys = {"kind": kind, **case.name}
        return (row for row in self.rows if keys.items() <= row.items())
