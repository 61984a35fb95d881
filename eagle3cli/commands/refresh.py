"""eagle3 refresh: a served draft trained on from its server's logs, and served if it is better."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from eagle3cli.cli.command import LOCAL_TARGET_FIELDS, Command
from eagle3cli.console.out import Out
from eagle3cli.errors import SOME_ROWS_FAILED, UsageError
from eagle3cli.settings.tables import Settings

if TYPE_CHECKING:
    from eagle3cli.pipeline.refresh.refresh import Refreshed


def run(settings: Settings, out: Out) -> int | None:
    """Go back to a version, or read the logs, train, judge and decide; say what came of it."""
    options = settings.refresh
    if options.logs and options.rollback is not None:
        raise UsageError(
            "--logs and --rollback are two different wishes", where="--rollback", fix="leave one of them out"
        )
    draft = _draft(settings, out)
    if options.rollback is not None:
        from eagle3cli.pipeline.refresh.versions import Versions

        versions = Versions(draft)
        with versions.held():
            entry = versions.rollback(options.rollback)
        text = f"{draft} is version {entry['version']} again (it was {entry['from']}); restart its servers"
        out.result({**entry, "draft": draft}, text)
        return None
    if not options.logs:
        raise UsageError("no logs", where="--logs", fix="give the logs of the server, or --rollback")
    _check_inputs(settings)
    from eagle3cli.pipeline.refresh.refresh import refresh

    done = refresh(settings, draft, out)
    _show(done, draft, out)
    return SOME_ROWS_FAILED if done.rows.get("rejected") else None


def _draft(settings: Settings, out: Out) -> Path:
    from eagle3cli.cli.preflight.draft import check_draft

    draft = settings.refresh.draft
    if draft is None:
        fix = "name the folder that servers read: eagle3 refresh runs/draft --logs FILE"
        raise UsageError("no draft", where="DRAFT", fix=fix)
    from eagle3cli.pipeline.refresh.versions import Versions

    versions = Versions(draft)
    if not draft.exists() and versions.folder.is_dir():
        with versions.held():  # brings back what a kill may have left between two names
            pass
    check_draft(settings.updated("draft", path=str(draft)), None, out)
    if not (draft / "config.json").is_file():
        what = "a training run, not the folder that servers read"
        raise UsageError(what, where=str(draft), fix=f"give {draft / 'best'}, or what eagle3 export wrote")
    return draft


def _check_inputs(settings: Settings) -> None:
    from eagle3cli.cli.preflight.devices import check_device
    from eagle3cli.cli.preflight.paths import check_file
    from eagle3cli.runtime.units import parse_duration

    parse_duration(settings.refresh.time_budget)
    check_device(settings.target.device)
    for path in settings.refresh.logs:
        check_file(path, "--logs")
    for rows, flag in ((settings.data.train_path, "--train-data-path"), (settings.data.eval_path, "--eval-data-path")):
        if rows is not None:
            check_file(rows, flag)


def _show(done: Refreshed, draft: Path, out: Out) -> None:
    from eagle3cli.console.dispositions import dispositions, has_entries, remarks

    lines = []
    if done.rows:
        lines = [f"read {done.rows['read']:,}: {dispositions(done.rows)}", *remarks(done.rows)]
    if done.rows and has_entries(done.rows):
        lines.append(f"each with its place and reason: {done.errors}")
    entry = done.entry or {}
    acceptance = entry.get("acceptance", {})
    if acceptance:
        columns = ("held-out rows of", "before", "after", "change")
        rows = [
            (name, values["before"], values["after"], f"{values['after'] / values['before'] - 1:+.1%}")
            for name, values in acceptance.items()
        ]
        out.table(f"Acceptance length (k={entry['k']})", columns, rows)
    promoted = bool(entry.get("promoted"))
    if promoted:
        out.next("bench", {"draft.path": str(draft), "target.model_path": done.target})
        lines.append(f"restart the servers of {draft}; back again: eagle3 refresh {draft} --rollback")
    data = {"draft": draft, "promoted": promoted, "state": done.state, **entry}
    if done.entry is None:
        data["rows"] = done.rows
    out.result(data, "\n".join([*lines, done.state]))


REGENERATE = ("engine", "batch_size", "max_tokens")

COMMAND = Command(
    name="refresh",
    summary="Train a served draft on from its server's logs, and have it served if it is better on what was held out.",
    examples=(
        "eagle3 refresh runs/draft --logs /var/log/proxy/*.jsonl.gz",
        "eagle3 refresh runs/draft --logs server.jsonl --time-budget 5m --model-names my-model",
        "eagle3 refresh runs/draft --rollback",
    ),
    fields=(
        "refresh.*",
        *("data.train_path", "data.eval_path"),
        *(f"regenerate.{name}" for name in REGENERATE),
        "server.*",
        *LOCAL_TARGET_FIELDS,
        "launch.gpus",
    ),
    arguments=("refresh.draft",),
    run=run,
    loads_torch=True,
)
