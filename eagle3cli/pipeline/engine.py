"""Runs stages one after the other: what is done is skipped, what was interrupted goes on, ``stages.json`` remembers."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eagle3cli.errors import Eagle3Error, Stopped, UsageError
from eagle3cli.pipeline.stages import Stage, StageOut, stage_settings, stages
from eagle3cli.runs.find import STAGES
from eagle3cli.runs.state import this_process
from eagle3cli.runtime.files import PATIENCE, check_removable, locked, read_json, well_formed, write_json
from eagle3cli.runtime.provenance import changes, digest_json, refuse_changes

if TYPE_CHECKING:
    from eagle3cli.console.out import Out
    from eagle3cli.runtime.stop import Stop
    from eagle3cli.settings.tables import Settings


@dataclass
class StageLedger:
    """What ``stages.json`` holds: per stage its settings, whether it is done, its seconds and its result."""

    path: Path
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    redone: str | None = None
    """The stage of a ``--from`` that has begun and not ended."""

    @classmethod
    def open(cls, folder: Path) -> StageLedger:
        """The ledger of a run's folder; raises UsageError for a folder that something else filled."""
        path = folder / STAGES
        if path.exists():
            content = read_json(path)
            with well_formed(path, "the stages of a run", "choose another --output-dir, or remove this file"):
                for stage in content["stages"].values():
                    stage["key"], stage["state"], stage["settings"].items(), float(stage["seconds"])
                return cls(path, content["stages"], content.get("redone"))
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(
                "foreign-files", "holds something else than a run", where=str(folder), fix="choose another --output-dir"
            )
        return cls(path)

    def update(self, name: str, **values: Any) -> None:
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


@dataclass(frozen=True)
class Dependencies:
    """The settings that a stage depends on, and a fingerprint of them and of those of the stages before it."""

    values: dict[str, Any]
    fingerprint: str


class Pipeline:
    """The stages of one run, what its folder says of them, and what is left to do.

    Raises UsageError for a folder that something else filled, and for ``--from``, ``--to`` and ``--only`` with a stage
    that this run has not.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.run.output_dir
        self.ledger = StageLedger.open(self.folder)
        self.stages = stages(settings)
        self.selected = self._selected()
        self.dependencies: dict[str, Dependencies] = {}
        fingerprint = ""
        for stage in self.stages:
            values = stage.dependencies(settings)
            fingerprint = digest_json([fingerprint, values])
            self.dependencies[stage.name] = Dependencies(values, fingerprint)

    def run(self, out: Out, stop: Stop) -> None:
        """Bring the selected stages to their end; a line per stage says how long it took.

        A run that is refused before it has made anything leaves no folder. Raises UsageError where another process
        runs in the folder.
        """
        missing = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        fix = "wait for it to end, stop it, or choose another --output-dir"
        busy = UsageError("locked", "another run is under way there", where=str(self.folder), fix=fix)
        with locked(self.folder, busy, patience=PATIENCE):
            self.ledger = StageLedger.open(self.folder)  # what one that has just ended left
            try:
                self._run_stages(out, stop)
            except Stopped:
                raise
            except Eagle3Error:
                if self.folder in missing and not {path.name for path in self.folder.glob("*")} - {STAGES}:
                    self.ledger.path.unlink(missing_ok=True)
                    for folder in missing:
                        folder.rmdir()
                raise

    def _run_stages(self, out: Out, stop: Stop) -> None:
        settings = self.settings
        stage_out = StageOut(json_wanted=out.json_wanted)
        target = settings.target.model_path
        redo = False
        for stage in self.stages:
            stop.check(f"finished stages are in {self.folder}")
            if stage == self.selected[0] and settings.run.from_stage is not None:
                self._clear_from(stage)
            if stage in self.selected and self._goes_on(stage, redo=redo):
                self._set_aside(stage, out)
            elif stage in self.selected and self._is_outdated(stage, redo=redo):
                _remove(stage, settings)
                del self.ledger.stages[stage.name]
                redo = True
            if self.is_done(stage):
                out.info(f"{stage.name}: done earlier, in {self._seconds(stage)}")
            elif stage in self.selected:
                self._run(stage, stage_settings(stage, settings, target), stage_out)
                out.info(f"{stage.name}: done in {self._seconds(stage)}")
            elif stage.feeds:
                raise self._missing(stage)
            if stage.name == "target":
                target = str(self.ledger.stages["target"]["result"]["target"])
            if stage == self.selected[-1]:
                break
        self.ledger.restarted(None)

    def planned(self) -> Iterator[tuple[Stage, bool]]:
        """The selected stages and whether each is done, as :meth:`run` would find them; changes nothing."""
        first = self.settings.run.from_stage
        redo = first is not None and self.ledger.redone != first
        for stage in self.selected:
            if not self._goes_on(stage, redo=redo):
                redo = redo or self._is_outdated(stage, redo=redo)
            yield stage, not redo and self.is_done(stage)

    def unfinished(self) -> list[str]:
        """The stages that are not done with these settings."""
        return [stage.name for stage in self.stages if not self.is_done(stage)]

    def is_done(self, stage: Stage) -> bool:
        """Whether a stage is done with these settings, and its output is there."""
        entry = self.ledger.stages.get(stage.name, {})
        same = entry.get("key") == self.dependencies[stage.name].fingerprint
        return same and entry["state"] == "done" and stage.output(self.settings).exists()

    def _selected(self) -> tuple[Stage, ...]:
        """The stages that ``--from``, ``--to`` and ``--only`` leave; all where none is given."""
        run = self.settings.run
        names = [stage.name for stage in self.stages]
        for flag, name in (("--from", run.from_stage), ("--to", run.to_stage), ("--only", run.only_stage)):
            if name is not None and name not in names:
                message = f"no stage {name} where train.mode is {self.settings.train.mode}"
                raise UsageError("unknown-name", message, where=flag, fix=f"this run has {', '.join(names)}")
        first = run.only_stage or run.from_stage or names[0]
        last = run.only_stage or run.to_stage or names[-1]
        return self.stages[names.index(first) : names.index(last) + 1]

    def _clear_from(self, first: Stage) -> None:
        """Forget a stage and what follows it, once: when the same command is interrupted and run again, it goes on."""
        if self.ledger.redone == first.name:
            return
        later = self.stages[self.stages.index(first) :]
        for stage in later:
            _check_removable(stage, self.settings)
        for stage in later:
            _remove(stage, self.settings)
            self.ledger.stages.pop(stage.name, None)
        (self.folder / "report.json").unlink(missing_ok=True)  # it tells of what is gone
        self.ledger.restarted(first.name)

    def _missing(self, stage: Stage) -> UsageError:
        entry = self.ledger.stages.get(stage.name)
        if entry is None:
            how = "was not run"
        else:
            how = "was not finished" if entry["state"] != "done" else "is of other settings"
        first = self.selected[0]
        last = [earlier.name for earlier in self.stages[: self.stages.index(first)] if earlier.feeds][-1]
        flag = "--only" if self.settings.run.only_stage else "--from"
        fix = f"make what is missing first: the same command with --to {last} in place of {flag} {first.name}"
        return UsageError(
            "stage-not-done", f"stage {first.name} needs stage {stage.name}, which {how}", where=flag, fix=fix
        )

    def _goes_on(self, stage: Stage, *, redo: bool) -> bool:
        """Whether a stage with other settings than now goes on from what it has, or is remade without being asked.

        Not where the stages before are redone, with it.
        """
        entry = self.ledger.stages.get(stage.name)
        current = self.dependencies[stage.name]
        if entry is None or entry["key"] == current.fingerprint or redo or self.settings.run.overwrite:
            return False
        before = entry["settings"]
        keys = before.keys() | current.values.keys()
        changed = {key for key in keys if before.get(key) != current.values.get(key)}
        return stage.remade or (bool(changed) and changed <= set(stage.free))

    def _set_aside(self, stage: Stage, out: Out) -> None:
        """Before a stage goes on: what was measured with other settings, or of another draft, is kept under its own
        name, and the seconds are counted anew of what is remade.
        """
        if not stage.remade:
            return
        self.ledger.stages[stage.name] = {**self.ledger.stages[stage.name], "state": "begun", "seconds": 0.0}
        output = stage.output(self.settings)
        if stage.name == "bench" and output.exists():
            _check_removable(stage, self.settings)
            number = next(n for n in count(1) if not output.with_name(f"{output.name}.{n}").exists())
            output.rename(output.with_name(f"{output.name}.{number}"))
            out.info(f"bench: what was measured before is in {output.with_name(f'{output.name}.{number}')}")

    def _is_outdated(self, stage: Stage, *, redo: bool) -> bool:
        """Whether there is a result with other settings that may go. Raises UsageError where it may not."""
        entry = self.ledger.stages.get(stage.name)
        current = self.dependencies[stage.name]
        if entry is None or entry["key"] == current.fingerprint:
            return False
        run = self.settings.run
        allowed = redo or run.overwrite or (run.regenerate and stage.name == "regenerate")
        allowed = allowed or (stage.name == "target" and entry["state"] != "done")  # nothing was made with it yet
        if not allowed:
            changed = changes(entry["settings"], current.values, absent="the default", text="{key} was {was}, is {now}")
            fix = "pass --overwrite to redo this stage and those after it, or choose another --output-dir"
            refuse_changes(changed, f"stage {stage.name}", fix, joint="; ")
        return True

    def _run(self, stage: Stage, settings: Settings, out: StageOut) -> None:
        """Run or go on with one stage; its seconds add up over interruptions."""
        spent = self.ledger.stages.get(stage.name, {}).get("seconds", 0.0)
        if stage.name == "export":
            _remove(stage, settings)
        current = self.dependencies[stage.name]
        self.ledger.update(
            stage.name,
            key=current.fingerprint,
            settings=current.values,
            state="begun",
            seconds=spent,
            process=this_process(),
        )
        start = time.monotonic()
        out.data = {}
        try:
            stage.run(settings, out)
        except BaseException:
            self.ledger.update(stage.name, seconds=spent + time.monotonic() - start)
            raise
        if "torch" in sys.modules:  # a stage that failed before it was imported left nothing on a GPU
            from eagle3cli.runtime.devices import give_back_gpu_memory

            give_back_gpu_memory()  # a server of a later stage needs it
        result = json.loads(json.dumps(dict(out.data), default=str))
        self.ledger.update(stage.name, state="done", seconds=round(spent + time.monotonic() - start, 1), result=result)

    def _seconds(self, stage: Stage) -> str:
        seconds: float = self.ledger.stages[stage.name]["seconds"]
        return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _remove(stage: Stage, settings: Settings) -> None:
    """Delete a stage's folder, which has to be inside the run's own."""
    _check_removable(stage, settings)
    output = stage.output(settings)
    if output != settings.run.output_dir and output.exists():
        shutil.rmtree(output)


def _check_removable(stage: Stage, settings: Settings) -> None:
    """Raise UsageError for a folder outside of the run's own."""
    output = stage.output(settings)
    folder = settings.run.output_dir
    if output.is_symlink():  # a draft that eagle3 refresh has served
        check_removable(output)
    if output != folder and output.exists() and folder.resolve() not in output.resolve().parents:
        fix = f"redo it by hand with eagle3 {stage.name} --overwrite, or choose another place for it"
        message = f"{output} is outside of the run's folder and is not deleted"
        raise UsageError("unknown-name", message, where=f"stage {stage.name}", fix=fix)
