"""What a refresh is asked for, checked before anything is read: the served draft, the logs, the old rows."""

from __future__ import annotations

from pathlib import Path

from eagle3cli.cli.preflight.devices import check_device
from eagle3cli.cli.preflight.draft import check_draft
from eagle3cli.cli.preflight.paths import check_file
from eagle3cli.errors import DataError, UsageError
from eagle3cli.pipeline.refresh.versions import Versions
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.units import parse_duration
from eagle3cli.settings.tables import Settings


def served_draft(settings: Settings, report: Reporter) -> Path:
    """The folder that servers read; raises UsageError where none is named or it is something else."""
    draft = settings.refresh.draft
    if draft is None:
        fix = "name the folder that servers read: eagle3 refresh runs/draft --logs FILE"
        raise UsageError("missing-draft", "no draft", where="DRAFT", fix=fix)
    versions = Versions(draft)
    if not draft.exists() and versions.folder.is_dir():
        with versions.held():  # brings back what a kill may have left between two names
            pass
    check_draft(settings.updated("draft", path=str(draft)), None, report)
    if not (draft / "config.json").is_file():
        what = "a training run, not the folder that servers read"
        raise UsageError(
            "not-a-draft", what, where=str(draft), fix=f"give {draft / 'best'}, or what eagle3 export wrote"
        )
    return draft


def check_inputs(settings: Settings) -> None:
    """Raise UsageError for a time, a device or a file that is none."""
    options = settings.refresh
    if not options.logs:
        raise UsageError("missing-data", "no logs", where="--logs", fix="give the logs of the server, or --rollback")
    parse_duration(options.time_budget)
    check_device(settings.target.device)
    for path in options.logs:
        check_file(path, "--logs", may_be_empty=True)  # a night without requests stops no other log
        if not path.is_file():
            what = "a pipe or a device, and logs are read more than once"
            raise DataError("not-a-file", what, where=str(path), fix="write it into a file first: --logs FILE")
    for rows, flag in ((settings.data.train_path, "--train-data-path"), (settings.data.eval_path, "--eval-data-path")):
        if rows is not None:
            check_file(rows, flag)
