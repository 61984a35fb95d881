"""What a served draft was trained on: which run it is from, that run's settings, and samples of its rows.

The run is looked for in the folder of the draft and the two around it, in ``train`` beside it (where ``eagle3 run``
trains), and in ``train.output_dir``; it is that draft's run where its weights are the draft's. Its settings and samples
of its rows are kept among the draft's versions at the first refresh, so that they may go afterwards, and the old rows
are the same ones every night.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import shutil
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eagle3cli.data.sources.lines import read_raw_lines
from eagle3cli.errors import DataError, Eagle3Error, UsageError
from eagle3cli.runtime.files import write_folder
from eagle3cli.runtime.report import Reporter
from eagle3cli.settings.tables import Settings

SETTINGS = "settings.toml"
TRAIN, EVAL = "train.jsonl", "eval.jsonl"
MOST_ROWS = 20_000
"""Rows of the old training data that are kept for rehearsal."""
TABLES = ("target", "data", "cache", "regenerate", "hidden_states", "train")
"""Tables of the earlier run that a refresh goes on with, where nothing else is said."""
LEFT_OUT = (
    *("overwrite", "recorded", "retry_errors", "sample_range", "input_path", "total_steps", "time_budget"),
    *("echo_factor", "echo_buffer", "keep_states"),
)


@dataclass(frozen=True)
class OldRun:
    """The run that a draft is from: its settings as they were written, and where it stands."""

    folder: Path
    tables: dict[str, dict[str, Any]]

    def path(self, table: str, name: str) -> Path | None:
        """A path of the run's settings as it is found from here: a relative one was meant from where the run was
        started, which is the current folder or one around the run.
        """
        value = self.tables.get(table, {}).get(name)
        if not isinstance(value, str) or not value:
            return None
        for start in (Path(), *self.folder.resolve().parents):
            if (start / value).exists():
                return start / value
        return Path(value)


def with_run_settings(settings: Settings, run: OldRun) -> Settings:
    """The settings with the run's own where nobody set another value."""
    for name in TABLES:
        options = getattr(settings, name)
        known = {
            key: value
            for key, value in run.tables.get(name, {}).items()
            if key in type(options).model_fields and key not in LEFT_OUT and key not in options.model_fields_set
        }
        with suppress(ValidationError):  # of a version that knew other values
            valid = type(options).model_validate(known)
            settings = settings.updated(name, **{key: getattr(valid, key) for key in known})
    if "model_path" not in settings.target.model_fields_set:
        return settings
    target = run.path("target", "model_path")
    own = run.tables.get("target", {}).get("model_path")
    if target is not None and target.exists() and settings.target.model_path == own:
        settings = settings.updated("target", model_path=str(target))
    return settings


def find_run(settings: Settings, draft: Path, kept: Path) -> tuple[OldRun | None, list[str]]:
    """The run that the draft is from, and where it was looked for; ``kept`` is the folder of an earlier refresh."""
    if (kept / SETTINGS).is_file():
        tables = _tables(kept / SETTINGS)
        origin = tables.get("refresh_origin", {}).get("run")
        return OldRun(Path(origin) if isinstance(origin, str) else kept, tables), []
    real = draft.resolve()
    places = [real, *real.parents[:2], draft.parent / "train", settings.train.output_dir]
    for folder in dict.fromkeys(places):
        if (folder / SETTINGS).is_file() and _is_run_of(folder, real):
            return OldRun(folder, _tables(folder / SETTINGS)), []
    return None, [str(folder / SETTINGS) for folder in dict.fromkeys(places)]


def _is_run_of(folder: Path, draft: Path) -> bool:
    """Whether the draft's weights are those of a run, but for the type in which they are kept."""
    import torch

    from eagle3cli.models.checkpoint import read_tensors
    from eagle3cli.models.folders import find_draft

    if folder == draft or folder in draft.parents:
        return True  # best/ or a checkpoint of that run
    try:
        own = read_tensors(find_draft(folder))
        served = read_tensors(draft)
    except Eagle3Error:
        return False
    names = [name for name in ("fc.weight", "midlayer.self_attn.q_proj.weight", "d2t") if name in served]
    return bool(names) and all(
        name in own
        and own[name].shape == served[name].shape
        and torch.equal(own[name].to(served[name].dtype), served[name])
        for name in names
    )


def keep_old_data(settings: Settings, run: OldRun | None, places: list[str], kept: Path, report: Reporter) -> None:
    """Have ``kept`` hold the run's settings and samples of its rows (:data:`TRAIN`, :data:`EVAL`), if it does not yet.

    Raises UsageError where neither training nor held-out rows are there: then nobody could tell what is forgotten.
    """
    if (kept / EVAL).is_file():
        return
    train = _rows_file(settings, run, "train_path")
    held_out = _rows_file(settings, run, "eval_path")
    if train is None and held_out is None:
        named = [run.path("data", name) for name in ("train_path", "eval_path")] if run is not None else []
        looked = [str(path) for path in named if path is not None] or places
        where = f"; looked for {', '.join(looked)}" if looked else "; its run read hidden states alone"
        fix = "give them: --train-data-path and --eval-data-path (rows that the target wrote)"
        raise UsageError(
            "old-rows-missing",
            f"the rows that this draft was trained on are not there{where}",
            where=str(kept.parent),
            fix=fix,
        )
    size = settings.refresh.held_out_rows
    if train is None:
        report.warn("the old training rows are gone: nothing is rehearsed, the old held-out rows alone are watched")
    if held_out is None:
        report.warn("the old held-out rows are gone: training rows, kept out of rehearsal, stand in for them")

    def fill(folder: Path) -> None:
        rows = list(_sample(train, MOST_ROWS)) if train is not None else []
        old = list(_sample(held_out, size)) if held_out is not None else rows[-min(size, len(rows) // 2) :]
        rows = rows if held_out is not None else rows[: len(rows) - len(old)]
        _write(folder / TRAIN, rows)
        _write(folder / EVAL, old)
        if not old:
            raise DataError(
                "no-rows", "no rows", where=str(held_out or train), fix="give a file with replies: --eval-data-path"
            )
        if run is not None:
            shutil.copyfile(run.folder / SETTINGS, folder / SETTINGS)
            with (folder / SETTINGS).open("a", encoding="utf-8") as file:
                file.write(f"\n[refresh_origin]\nrun = {json.dumps(str(run.folder.resolve()))}\n")

    write_folder(kept, fill)


def draw(paths: Iterable[Path], count: int, seed: str) -> list[bytes]:
    """``count`` lines of some files, each equally likely, the same ones for the same seed."""
    lines = (raw for path in paths if path.is_file() for _, raw in read_raw_lines(path))
    return [raw for _, raw in heapq.nsmallest(count, ((_rank(raw, seed), raw) for raw in lines))]


def _sample(path: Path, count: int) -> Iterator[bytes]:
    return iter(draw([path], count, "old"))


def _rank(raw: bytes, seed: str) -> bytes:
    return hashlib.blake2b(raw, digest_size=12, key=seed.encode()).digest()


def _write(path: Path, rows: list[bytes]) -> None:
    path.write_bytes(b"".join(raw.rstrip(b"\r\n") + b"\n" for raw in rows))


def _rows_file(settings: Settings, run: OldRun | None, name: str) -> Path | None:
    """The file that was named on the command line, else the run's; None where there is none."""
    own: Path | None = getattr(settings.data, name) if name in settings.data.model_fields_set else None
    path = own if own is not None else run.path("data", name) if run is not None else None
    return path if path is not None and path.is_file() and path.stat().st_size else None


def _tables(path: Path) -> dict[str, dict[str, Any]]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        fix = "put the run's settings.toml back, or give the old rows: --train-data-path and --eval-data-path"
        raise UsageError("settings-file", f"not settings: {error}", where=str(path), fix=fix) from error
    return {name: table for name, table in tables.items() if isinstance(table, dict)}
