"""eagle3 cache: token rows with masks, and the draft's vocabulary."""

from __future__ import annotations

from eagle3cli.cli.command import TOKENIZE_FIELDS, Command
from eagle3cli.cli.dry_run import planner
from eagle3cli.console.out import Out
from eagle3cli.errors import SOME_ROWS_FAILED
from eagle3cli.settings.tables import Settings


def run(settings: Settings, out: Out) -> int | None:
    """Build the cache (or find it) and say what is in it."""
    from eagle3cli.cli.preflight.preflight import preflight

    preflight(COMMAND, settings, out)
    from eagle3cli.cli.local_target import vocab_sizes, with_local_target
    from eagle3cli.console.cached import rejected, summary_text
    from eagle3cli.console.tokens import Style, page
    from eagle3cli.data.tokens.cache import open_or_build

    original = settings
    settings = with_local_target(settings, out)
    cached = open_or_build(settings, *vocab_sizes(settings), out)
    summary = {name: value for name, value in cached.summary.items() if name not in ("always_ids", "files")}
    if settings.cache.view_train_data:
        from eagle3cli.data.inspect.show import show

        out.print(page(show(settings, rows=settings.cache.view_train_data), Style(out.colour)))
    next_stage(original, out)
    out.result({"folder": cached.folder, **summary}, summary_text(summary, cached.folder))
    return SOME_ROWS_FAILED if summary["built"] and any(rejected(summary)) else None


def next_stage(settings: Settings, out: Out) -> None:
    """Training goes on with the rows, or what it reads from disk is captured first."""
    rows = {"data.train_path": settings.data.train_path, "data.eval_path": settings.data.eval_path}
    command = "hidden-states" if settings.train.mode == "offline" else "train"
    out.next(command, {**rows, "target.model_path": settings.target.model_path})


COMMAND = Command(
    name="cache",
    summary="Tokenize conversations, mask the target's replies, choose the draft's vocabulary.",
    examples=(
        "eagle3 cache --target-model-path TARGET --train-data-path cache/dataset/train.jsonl --view-train-data 1 2",
    ),
    fields=(
        *("target.model_path", "target.adapter", "target.revision", "target.trust_remote_code"),
        *("draft.config", "draft.vocab_size"),
        *(
            "data.train_path",
            "data.eval_path",
            "data.cache_dir",
            "data.num_proc",
            "data.check_masks",
            *TOKENIZE_FIELDS,
            "cache.*",
        ),
    ),
    run=run,
    plan=planner("eagle3cli.data.tokens.plan:plan_cache"),
)
