"""A benchmark's configurations, and the file that its results go to: each configuration whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eagle3cli.errors import UsageError
from eagle3cli.runtime.files import write_text

Row = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """``batch`` answers decoded together with ``k`` draft steps per verification; k 0 is the baseline."""

    batch: int
    k: int

    def __str__(self) -> str:
        return f"{self.batch},{self.k},1,{self.k + 1}" if self.k else f"{self.batch},0,0,0"


def parse_config(text: str) -> Config:
    """``batch,steps,topk,draft_tokens`` as SGLang's users write it; raises UsageError with the way out."""
    where = f"--config-list {text}"
    try:
        batch, steps, topk, tokens = (int(part) for part in text.split(","))
    except ValueError as error:
        fix = "e.g. 1,5,1,6, or 1,0,0,0 for the baseline"
        raise UsageError("not batch,steps,topk,draft_tokens", where=where, fix=fix) from error
    if batch < 1 or min(steps, topk, tokens) < 0:
        raise UsageError("the batch is at least 1, the rest at least 0", where=where, fix="e.g. 1,5,1,6")
    if steps == 0:
        if topk or tokens:
            raise UsageError("without draft steps the other two are 0", where=where, fix=f"write {batch},0,0,0")
        return Config(batch, 0)
    if topk != 1:
        fix = f"write {batch},{steps},1,{steps + 1}: the local engine drafts chains, not trees"
        raise UsageError(f"topk is {topk}", where=where, fix=fix)
    if tokens != steps + 1:
        fix = f"write {batch},{steps},1,{steps + 1}"
        raise UsageError(f"a chain of {steps} steps verifies {steps + 1} tokens, not {tokens}", where=where, fix=fix)
    return Config(batch, steps)


def with_baselines(configs: Sequence[Config]) -> list[Config]:
    """Each batch's baseline once, before what is compared with it."""
    found: dict[Config, None] = {}
    for config in configs:
        found.setdefault(Config(config.batch, 0))
        found.setdefault(config)
    return list(found)


@dataclass
class Results:
    """The result file. ``rows`` hold requests and configurations in the order they were measured."""

    path: Path
    settings: Row
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, settings: Row, *, overwrite: bool) -> Results:
        """Go on with an earlier file of the same settings; raises UsageError for one with others."""
        if overwrite or not path.exists():
            return cls(path, settings)
        fix = "choose another --output, or pass --overwrite"
        try:
            first, *rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
            before = first["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError("not a result file of eagle3 bench", where=str(path), fix=fix) from error
        changed = [
            f"{key} was {before.get(key)!r}, is {settings[key]!r}"
            for key in settings
            if settings[key] != before.get(key)
        ]
        if changed:
            raise UsageError(f"made with other settings: {', '.join(changed)}", where=str(path), fix=fix)
        return cls(path, settings, rows)

    def add(self, rows: Sequence[Row]) -> None:
        """Take in a measured configuration and write the file."""
        self.rows += rows
        lines = [{"kind": "settings", "settings": self.settings}, *self.rows]
        write_text(self.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def configuration(self, task: str, config: Config) -> Row | None:
        """The row of a configuration, None where it was not measured yet."""
        return next((row for row in self._of("configuration", task, config)), None)

    def requests(self, task: str, config: Config) -> list[Row]:
        """The rows of its requests."""
        return list(self._of("request", task, config))

    def _of(self, kind: str, task: str, config: Config) -> Iterator[Row]:
        wanted = (kind, task, str(config))
        return (row for row in self.rows if (row["kind"], row["task"], row["config"]) == wanted)


def compared(results: Results, task: str, config: Config) -> Row:
    """A configuration's row with its speed-up over the baseline of the same batch."""
    row, baseline = results.configuration(task, config), results.configuration(task, Config(config.batch, 0))
    assert row is not None
    assert baseline is not None
    return {**row, "speedup": round(row["tokens_per_s"] / baseline["tokens_per_s"], 3)}
