"""eagle3 prepare: any source of conversations to one layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eagle3cli.commands.command import Command
from eagle3cli.errors import SOME_ROWS_FAILED

if TYPE_CHECKING:
    from eagle3cli.console.out import Out
    from eagle3cli.settings.tables import Settings

FATES = ("written", "rejected", "duplicates", "filtered", "left_out")


def run(settings: Settings, out: Out) -> int | None:
    """Prepare the source and say where every row went."""
    from eagle3cli.data.ledger import ERRORS
    from eagle3cli.data.prepare import prepare

    done = prepare(settings.prepare, out)
    counts = done.summary
    made = "already done" if done.already else "prepared"
    held_out = f", {counts['eval_rows']:,} evaluation rows" if counts["eval_rows"] else ""
    fates = ", ".join(f"{name.replace('_', ' ')} {counts[name]:,}" for name in FATES)
    lines = [f"{made}: {counts['train_rows']:,} training rows{held_out}", f"read {counts['read']:,}: {fates}"]
    lines += [f"  {count:,} x {reason}" for reason, count in counts["reasons"].items()]
    lines += [f"  {count:,} repaired: {repair}" for repair, count in counts["repaired"].items()]
    if counts["rejected"] or counts["duplicates"] or counts["filtered"]:
        lines.append(f"each with its place and reason: {done.folder / ERRORS}")
    lines += [
        f"result: {done.folder / 'train.jsonl'}",
        f"next: eagle3 regenerate --input-path {done.folder / 'train.jsonl'}",
    ]
    out.result({"folder": done.folder, "already_done": done.already, **counts}, "\n".join(lines))
    # A preset's dirt is known and counted; in the user's own data a rejected row is something to look at.
    return SOME_ROWS_FAILED if done.own_data and counts["rejected"] else None


COMMAND = Command(
    name="prepare",
    summary="Conversations from a preset, a hub data set or local files, in one layout.",
    examples=(
        "eagle3 prepare sharegpt --sample-size 1000 --split-eval",
        "eagle3 prepare questions.parquet --map user=question assistant=answer",
    ),
    fields=("prepare.*",),
    arguments=("prepare.source",),
    run=run,
)
