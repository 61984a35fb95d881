"""eagle3 refresh: a served draft trained on from its server's logs, and served if it is better."""

from __future__ import annotations

from eagle3cli.cli.command import LOCAL_TARGET_FIELDS, Command
from eagle3cli.console.out import Out
from eagle3cli.errors import SOME_ROWS_FAILED, UsageError
from eagle3cli.settings.tables import Settings


def run(settings: Settings, out: Out) -> int | None:
    """Go back to a version, or read the logs, train, judge and decide; say what came of it."""
    from eagle3cli.pipeline.refresh.preflight import check_inputs, served_draft
    from eagle3cli.pipeline.refresh.versions import Versions

    options = settings.refresh
    if options.logs and options.rollback is not None:
        raise UsageError(
            "conflicting-options",
            "--logs and --rollback are two different wishes",
            where="--rollback",
            fix="leave one of them out",
        )
    draft = served_draft(settings, out)
    if options.rollback is not None:
        versions = Versions(draft)
        with versions.held():
            entry = versions.rollback(options.rollback)
        text = f"{draft} is version {entry['version']} again (it was {entry['from']}); restart its servers"
        out.result({**entry, "draft": draft}, text)
        return None
    check_inputs(settings)
    from eagle3cli.pipeline.refresh.refresh import refresh
    from eagle3cli.pipeline.refresh.summary import as_data, as_text, table

    done = refresh(settings, draft, out)
    if shown := table(done):
        out.table(*shown)
    if done.promoted:
        out.next("bench", {"draft.path": str(draft), "target.model_path": done.target})
    out.result(as_data(done, draft), as_text(done, draft))
    return SOME_ROWS_FAILED if done.rows.get("rejected") else None


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
