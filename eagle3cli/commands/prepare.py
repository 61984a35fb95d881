"""eagle3 prepare: any sources of conversations to one layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eagle3cli.cli.command import LOCAL_TARGET_FIELDS, Command
from eagle3cli.cli.dry_run import planner
from eagle3cli.console.out import Out
from eagle3cli.errors import SOME_ROWS_FAILED
from eagle3cli.settings.tables import Settings

if TYPE_CHECKING:
    from eagle3cli.data.prepare.prepare import Author


def run(settings: Settings, out: Out) -> int | None:
    """Prepare the sources and say where every row went."""
    from eagle3cli.cli.preflight.preflight import preflight

    preflight(COMMAND, settings, out)
    from eagle3cli.console.dispositions import dispositions, has_entries, remarks
    from eagle3cli.data.ledger import ERRORS
    from eagle3cli.data.prepare.prepare import prepare

    done = prepare(settings.prepare, out, _author(settings, out))
    counts = done.summary
    state = "already done" if done.already else "prepared"
    held_out = f", {counts['eval_rows']:,} evaluation rows" if counts["eval_rows"] else ""
    lines = [
        f"{state}: {counts['train_rows']:,} training rows{held_out}",
        f"read {counts['read']:,}: {dispositions(counts)}",
    ]
    lines += [f"  {count:,} rows of {name}" for name, count in counts.get("sources", {}).items()]
    lines += remarks(counts, told_earlier=done.already)
    if has_entries(counts):
        lines.append(f"each with its place and reason: {done.folder / ERRORS}")
    train = done.folder / "train.jsonl"
    lines.append(f"result: {train}")
    out.next("regenerate", {"regenerate.input_path": train})
    out.result({"folder": done.folder, "already_done": done.already, **counts}, "\n".join(lines))
    return SOME_ROWS_FAILED if counts["rejected"] and not done.already else None


def _author(settings: Settings, out: Out) -> Author | None:
    """The target, where it is to write prompts."""
    from eagle3cli.data.sources.dataset_specs import split_weight
    from eagle3cli.data.sources.presets import SELF

    if all(split_weight(word)[0] != SELF for word in settings.prepare.source):
        return None
    from eagle3cli.cli.local_target import with_local_target
    from eagle3cli.serving.regenerate.self_prompts import self_author

    return self_author(with_local_target(settings, out), out)


COMMAND = Command(
    name="prepare",
    summary="Conversations from presets, hub data sets, local files or the target itself, in one layout.",
    examples=(
        "eagle3 prepare sharegpt --sample-size 1000 --split-eval",
        "eagle3 prepare questions.parquet --map user=question assistant=answer",
        "eagle3 prepare ultrachat:0.7 my.jsonl:0.3 --sample-size 10000",
        "eagle3 prepare self --model-path MODEL --sample-size 1000",
    ),
    fields=("prepare.*", *LOCAL_TARGET_FIELDS, "data.chat_template", "data.cache_dir"),
    arguments=("prepare.source",),
    run=run,
    plan=planner("eagle3cli.data.prepare.plan:plan_prepare"),
)
