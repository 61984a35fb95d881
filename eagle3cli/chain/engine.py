"""Runs stages one after the other: what is done is skipped, what was interrupted goes on, ``stages.json`` remembers."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eagle3cli.chain.stages import Stage, StageOut, for_stage, stages
from eagle3cli.errors import UsageError
from eagle3cli.runtime.files import read_json, write_json

if TYPE_CHECKING:
    from eagle3cli.console.out import Out
    from eagle3cli.runtime.stop import Stop
    from eagle3cli.settings.tables import Settings

FILE = "stages.json"
DEFAULT = "the default"


@dataclass
class Ledger:
    """What ``stages.json`` holds: per stage its settings, whether it is done, its seconds and its result."""

    path: Path
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Ledger:
        """The ledger of a run's folder; raises UsageError for a folder that something else filled."""
        path = folder / FILE
        if path.exists():
            return cls(path, read_json(path)["stages"])
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError("holds something else than a run", where=str(folder), fix="choose another --output-dir")
        return cls(path)

    def note(self, name: str, **values: Any) -> None:
        """Remember something of a stage."""
        self.stages[name] = {**self.stages.get(name, {}), **values}
        write_json(self.path, {"stages": self.stages})


def run_stages(settings: Settings, out: Out, stop: Stop) -> Ledger:
    """Bring every stage to its end; a line per stage says how long it took. Returns results and times."""
    ledger = Ledger.open(settings.run.output_dir)
    stage_out = StageOut(json_wanted=out.json_wanted)
    target, upstream = settings.target.model_path, ""
    redo = False
    for stage in stages(settings):
        stop.check(f"finished stages are in {settings.run.output_dir}")
        wanted = stage.of(settings)
        key = hashlib.sha256(json.dumps([upstream, wanted], sort_keys=True).encode()).hexdigest()[:16]
        redo = _may_redo(ledger, stage, key, wanted, settings, redo)
        if not _is_done(ledger, stage, key, settings):
            _run(ledger, stage, key, wanted, for_stage(stage, settings, target), stage_out)
            out.info(f"{stage.name}: done in {_clock(ledger.stages[stage.name]['seconds'])}")
        else:
            out.info(f"{stage.name}: done earlier, in {_clock(ledger.stages[stage.name]['seconds'])}")
        if stage.name == "target":
            target = str(ledger.stages["target"]["result"]["target"])
        upstream = key
    return ledger


def _may_redo(
    ledger: Ledger, stage: Stage, key: str, wanted: Mapping[str, Any], settings: Settings, redo: bool
) -> bool:
    """Whether an earlier result with other settings may go; then it goes. Raises UsageError where it may not."""
    before = ledger.stages.get(stage.name)
    if before is None or before["key"] == key:
        return redo
    was = before["settings"]
    changed = sorted(name for name in wanted.keys() | was.keys() if wanted.get(name) != was.get(name))
    allowed = redo or settings.run.overwrite or (settings.run.regenerate and stage.name == "regenerate")
    allowed = allowed or (stage.name == "target" and before["state"] != "done")  # nothing was made with it yet
    if changed and not allowed:
        told = (f"{name} was {was.get(name, DEFAULT)}, is {wanted.get(name, DEFAULT)}" for name in changed)
        fix = "pass --overwrite to redo this stage and those after it, or choose another --output-dir"
        raise UsageError(f"made with other settings: {'; '.join(told)}", where=f"stage {stage.name}", fix=fix)
    _remove(stage.output(settings), settings.run.output_dir, stage.name)
    del ledger.stages[stage.name]
    return True


def _remove(output: Path, folder: Path, name: str) -> None:
    """Delete a stage's folder, which has to be inside the run's own."""
    if output == folder or not output.exists():
        return
    if folder.resolve() not in output.resolve().parents:
        fix = f"redo it by hand with eagle3 {name} --overwrite, or choose another place for it"
        raise UsageError(f"{output} is outside of the run's folder and is not deleted", where=f"stage {name}", fix=fix)
    shutil.rmtree(output)


def _is_done(ledger: Ledger, stage: Stage, key: str, settings: Settings) -> bool:
    before = ledger.stages.get(stage.name, {})
    return before.get("key") == key and before["state"] == "done" and stage.output(settings).exists()


def _run(ledger: Ledger, stage: Stage, key: str, wanted: Mapping[str, Any], settings: Settings, out: StageOut) -> None:
    """Run or go on with one stage; its seconds add up over interruptions."""
    spent = ledger.stages.get(stage.name, {}).get("seconds", 0.0)
    if stage.name == "export":
        _remove(stage.output(settings), settings.run.output_dir, stage.name)
    ledger.note(stage.name, key=key, settings=dict(wanted), state="begun", seconds=spent)
    begun, out.data = time.monotonic(), {}
    try:
        stage.run(settings, out)
    except BaseException:
        ledger.note(stage.name, seconds=spent + time.monotonic() - begun)
        raise
    result = json.loads(json.dumps(dict(out.data), default=str))
    ledger.note(stage.name, state="done", seconds=round(spent + time.monotonic() - begun, 1), result=result)


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
