"""Runs stages one after the other: what is done is skipped, what was interrupted goes on, ``stages.json`` remembers."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eagle3cli.errors import UsageError
from eagle3cli.pipeline.stages import Stage, StageOut, for_stage, stages
from eagle3cli.runs.state import process
from eagle3cli.runtime.files import read_json, well_formed, write_json
from eagle3cli.runtime.provenance import changes, digest_json, refuse_changes

if TYPE_CHECKING:
    from eagle3cli.console.out import Out
    from eagle3cli.runtime.stop import Stop
    from eagle3cli.settings.tables import Settings

FILE = "stages.json"


@dataclass
class Ledger:
    """What ``stages.json`` holds: per stage its settings, whether it is done, its seconds and its result."""

    path: Path
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    redone: str | None = None
    """The stage of a ``--from`` that has begun and not ended."""

    @classmethod
    def open(cls, folder: Path) -> Ledger:
        """The ledger of a run's folder; raises UsageError for a folder that something else filled."""
        path = folder / FILE
        if path.exists():
            kept = read_json(path)
            with well_formed(path, "the stages of a run", "choose another --output-dir, or remove this file"):
                for stage in kept["stages"].values():
                    stage["key"], stage["state"], stage["settings"].items(), float(stage["seconds"])
                return cls(path, kept["stages"], kept.get("redone"))
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError("holds something else than a run", where=str(folder), fix="choose another --output-dir")
        return cls(path)

    def note(self, name: str, **values: Any) -> None:
        """Remember something of a stage."""
        self.stages[name] = {**self.stages.get(name, {}), **values}
        self._write()

    def restarted(self, name: str | None) -> None:
        """Remember that a ``--from`` has begun, or (None) that none is under way."""
        if self.redone != name or name is not None:
            self.redone = name
            self._write()

    def _write(self) -> None:
        redone = {"redone": self.redone} if self.redone else {}
        write_json(self.path, {"stages": self.stages, **redone})


def run_stages(settings: Settings, out: Out, stop: Stop) -> Ledger:
    """Bring the wanted stages to their end; a line per stage says how long it took. Returns results and times."""
    ledger = Ledger.open(settings.run.output_dir)
    wanted_stages = chosen(settings)
    stage_out = StageOut(json_wanted=out.json_wanted)
    target, redo = settings.target.model_path, False
    for stage, values, key in _keyed(settings):
        stop.check(f"finished stages are in {settings.run.output_dir}")
        if stage == wanted_stages[0] and settings.run.from_stage is not None:
            _clear(ledger, settings, stage.name)
        if stage in wanted_stages:
            redo = _may_redo(ledger, stage, key, values, settings, redo)
        if _is_done(ledger, stage, key, settings):
            out.info(f"{stage.name}: done earlier, in {_clock(ledger.stages[stage.name]['seconds'])}")
        elif stage in wanted_stages:
            _run(ledger, stage, key, values, for_stage(stage, settings, target), stage_out)
            out.info(f"{stage.name}: done in {_clock(ledger.stages[stage.name]['seconds'])}")
        elif stage.feeds:
            raise _missing(stage, wanted_stages[0], ledger, settings)
        if stage.name == "target":
            target = str(ledger.stages["target"]["result"]["target"])
        if stage == wanted_stages[-1]:
            break
    ledger.restarted(None)
    return ledger


def _keyed(settings: Settings) -> list[tuple[Stage, dict[str, Any], str]]:
    """Each stage with its settings, and a key that changes with them and with those of the stages before it."""
    found, key = [], ""
    for stage in stages(settings):
        values = stage.of(settings)
        key = digest_json([key, values])
        found.append((stage, values, key))
    return found


def standing(settings: Settings, ledger: Ledger) -> Iterator[tuple[Stage, bool]]:
    """The wanted stages and whether each is done, as :func:`run_stages` would find them; changes nothing."""
    wanted, first = chosen(settings), settings.run.from_stage
    redo = first is not None and ledger.redone != first
    for stage, values, key in _keyed(settings):
        if stage in wanted:
            redo = redo or _is_outdated(ledger, stage, key, values, settings, redo)
            yield stage, not redo and _is_done(ledger, stage, key, settings)


def left(ledger: Ledger, settings: Settings) -> list[str]:
    """The stages that are not done with these settings."""
    return [stage.name for stage, _, key in _keyed(settings) if not _is_done(ledger, stage, key, settings)]


def chosen(settings: Settings) -> tuple[Stage, ...]:
    """The stages that ``--from``, ``--to`` and ``--only`` leave; all where none is given."""
    run, there = settings.run, stages(settings)
    names = [stage.name for stage in there]
    for flag, name in (("--from", run.from_stage), ("--to", run.to_stage), ("--only", run.only_stage)):
        if name is not None and name not in names:
            fix = f"this run has {', '.join(names)}"
            raise UsageError(f"no stage {name} where train.mode is {settings.train.mode}", where=flag, fix=fix)
    first, last = (run.only_stage or run.from_stage or names[0]), (run.only_stage or run.to_stage or names[-1])
    return there[names.index(first) : names.index(last) + 1]


def _clear(ledger: Ledger, settings: Settings, first: str) -> None:
    """Forget a stage and what follows it, once: when the same command is interrupted and run again, it goes on."""
    if ledger.redone == first:
        return
    there = stages(settings)
    later = there[[stage.name for stage in there].index(first) :]
    for stage in later:
        _may_remove(stage.output(settings), settings.run.output_dir, stage.name)
    for stage in later:
        _remove(stage.output(settings), settings.run.output_dir, stage.name)
        ledger.stages.pop(stage.name, None)
    (settings.run.output_dir / "report.json").unlink(missing_ok=True)  # it tells of what is gone
    ledger.restarted(first)


def _missing(stage: Stage, wanted: Stage, ledger: Ledger, settings: Settings) -> UsageError:
    before = ledger.stages.get(stage.name)
    how = (
        "was not run" if before is None else "was not finished" if before["state"] != "done" else "is of other settings"
    )
    there = stages(settings)
    last = [earlier.name for earlier in there[: there.index(wanted)] if earlier.feeds][-1]
    flag = "--only" if settings.run.only_stage else "--from"
    fix = f"make what is missing first: the same command with --to {last} in place of {flag} {wanted.name}"
    return UsageError(f"stage {wanted.name} needs stage {stage.name}, which {how}", where=flag, fix=fix)


def _may_redo(
    ledger: Ledger, stage: Stage, key: str, wanted: Mapping[str, Any], settings: Settings, redo: bool
) -> bool:
    """Whether an earlier result with other settings may go; then it goes. Raises UsageError where it may not."""
    if not _is_outdated(ledger, stage, key, wanted, settings, redo):
        return redo
    _remove(stage.output(settings), settings.run.output_dir, stage.name)
    del ledger.stages[stage.name]
    return True


def _is_outdated(
    ledger: Ledger, stage: Stage, key: str, wanted: Mapping[str, Any], settings: Settings, redo: bool
) -> bool:
    """Whether there is a result with other settings that may go. Raises UsageError where it may not."""
    before = ledger.stages.get(stage.name)
    if before is None or before["key"] == key:
        return False
    changed = changes(before["settings"], wanted, absent="the default", text="{key} was {was}, is {now}")
    allowed = redo or settings.run.overwrite or (settings.run.regenerate and stage.name == "regenerate")
    allowed = allowed or (stage.name == "target" and before["state"] != "done")  # nothing was made with it yet
    if not allowed:
        fix = "pass --overwrite to redo this stage and those after it, or choose another --output-dir"
        refuse_changes(changed, f"stage {stage.name}", fix, joint="; ")
    return True


def _remove(output: Path, folder: Path, name: str) -> None:
    """Delete a stage's folder, which has to be inside the run's own."""
    _may_remove(output, folder, name)
    if output != folder and output.exists():
        shutil.rmtree(output)


def _may_remove(output: Path, folder: Path, name: str) -> None:
    """Raise UsageError for a folder outside of the run's own."""
    if output != folder and output.exists() and folder.resolve() not in output.resolve().parents:
        fix = f"redo it by hand with eagle3 {name} --overwrite, or choose another place for it"
        raise UsageError(f"{output} is outside of the run's folder and is not deleted", where=f"stage {name}", fix=fix)


def _is_done(ledger: Ledger, stage: Stage, key: str, settings: Settings) -> bool:
    before = ledger.stages.get(stage.name, {})
    return before.get("key") == key and before["state"] == "done" and stage.output(settings).exists()


def _run(ledger: Ledger, stage: Stage, key: str, wanted: Mapping[str, Any], settings: Settings, out: StageOut) -> None:
    """Run or go on with one stage; its seconds add up over interruptions."""
    spent = ledger.stages.get(stage.name, {}).get("seconds", 0.0)
    if stage.name == "export":
        _remove(stage.output(settings), settings.run.output_dir, stage.name)
    ledger.note(stage.name, key=key, settings=dict(wanted), state="begun", seconds=spent, process=process())
    from eagle3cli.runtime.devices import give_back_gpu_memory

    begun, out.data = time.monotonic(), {}
    try:
        stage.run(settings, out)
    except BaseException:
        ledger.note(stage.name, seconds=spent + time.monotonic() - begun)
        raise
    give_back_gpu_memory()  # a server of a later stage needs it
    result = json.loads(json.dumps(dict(out.data), default=str))
    ledger.note(stage.name, state="done", seconds=round(spent + time.monotonic() - begun, 1), result=result)


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
