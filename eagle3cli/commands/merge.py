"""eagle3 merge: shards to a training and an evaluation file."""

from __future__ import annotations

from eagle3cli.cli.command import Command
from eagle3cli.cli.dry_run import planner
from eagle3cli.console.out import Out
from eagle3cli.errors import SOME_ROWS_FAILED
from eagle3cli.settings.tables import Settings


def run(settings: Settings, out: Out) -> int | None:
    """Merge the shards and say where every row went."""
    from eagle3cli.cli.preflight.preflight import preflight

    preflight(COMMAND, settings, out)
    from eagle3cli.cli.chain import settings_of_shards
    from eagle3cli.console.dispositions import dispositions, has_entries, remarks
    from eagle3cli.data.ledger import ERRORS
    from eagle3cli.data.prepare.merge import merge

    done = merge(settings.merge, out)
    counts = done.summary
    state = "already done" if done.already else "merged"
    lines = [
        f"{state}: {counts['train_rows']:,} training and {counts['eval_rows']:,} held-out rows",
        f"read {counts['read']:,} of {counts['shards']} shards: {dispositions(counts)}",
    ]
    lines += remarks(counts, told_earlier=done.already)
    if counts["failed_rows"]:
        lines.append(
            f"{counts['failed_rows']:,} rows in error files were left aside (eagle3 regenerate --retry-errors)"
        )
    if has_entries(counts):
        lines.append(f"each with its place and reason: {done.folder / ERRORS}")
    train = done.folder / "train.jsonl"
    held_out = done.folder / "eval.jsonl"
    lines.append(f"result: {train} and {held_out}")
    files: dict[str, object] = {
        "data.train_path": train,
        **({"data.eval_path": held_out} if counts["eval_rows"] else {}),
    }
    out.next("cache", {**settings_of_shards(settings.merge.input_dir), **files})
    out.result({"folder": done.folder, "already_done": done.already, **counts}, "\n".join(lines))
    return SOME_ROWS_FAILED if counts["rejected"] and not done.already else None


COMMAND = Command(
    name="merge",
    summary="Shards of regenerated replies to a training and an evaluation file.",
    examples=("eagle3 merge --input-dir cache/regenerated --output-dir cache/dataset --eval-size 1000",),
    fields=("merge.*",),
    run=run,
    plan=planner("eagle3cli.data.prepare.plan:plan_merge"),
)
