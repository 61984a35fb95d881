"""eagle3 bench: acceptance and speed with and without the draft."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eagle3cli.commands.command import Command

if TYPE_CHECKING:
    from eagle3cli.console.out import Out
    from eagle3cli.settings.tables import Settings

COLUMNS = ("task", "batch", "k", "acceptance length", "accepted per position", "tokens/s", "speed-up", "identical")


def run(settings: Settings, out: Out) -> int | None:
    """Measure what is missing, show all, write the table as Markdown beside the results."""
    from eagle3cli.commands.local_target import with_local_target
    from eagle3cli.console.report import markdown_table
    from eagle3cli.runtime.files import write_text
    from eagle3cli.serving.bench import bench

    done = bench(with_local_target(settings, out), out)
    rows = [table_row(row) for row in done.table]
    out.table("Speculative decoding, greedy", COLUMNS, rows)
    markdown = done.output.with_suffix(".md")
    write_text(markdown, markdown_table(COLUMNS, rows) + "\n")
    earlier = len(done.table) - done.measured
    skipped = f" ({earlier} measured earlier)" if earlier else ""
    lines = [f"{len(done.table)} configurations{skipped} in {done.output}, the table in {markdown}"]
    differing = [row for row in done.table if row["k"] and row["identical"] < row["requests"]]
    for row in differing:
        count, ties = row["requests"] - row["identical"], row["differences_at_ties"]
        out.warn(
            f"{row['task']} {row['config']}: {count} answers differ from the baseline, {ties} of them at near ties"
        )
    if any(row["k"] for row in done.table) and not differing:
        lines.append("every answer is token by token that of plain greedy decoding")
    out.result({"output": done.output, "markdown": markdown, "configurations": done.table}, "\n".join(lines))
    return None


def table_row(row: dict[str, Any]) -> tuple[object, ...]:
    """One configuration as people read it."""
    if not row["k"]:
        return (row["task"], row["batch"], 0, None, None, row["tokens_per_s"], f"{row['speedup']:.2f}x", None)
    positions = " ".join(f"{share:.2f}" for share in row["accepted_per_position"])
    identical = f"{row['identical']}/{row['requests']}"
    numbers = (row["acceptance_length"], positions, row["tokens_per_s"], f"{row['speedup']:.2f}x", identical)
    return (row["task"], row["batch"], row["k"], *numbers)


COMMAND = Command(
    name="bench",
    summary="Measure acceptance and speed with and without the draft, on the same prompts.",
    examples=(
        "eagle3 bench --model-path MODEL --speculative-draft-model-path runs/draft --benchmark-list mtbench:8 "
        '--config-list "1,0,0,0" "1,3,1,4"',
    ),
    fields=("bench.*", "target.*", "draft.path", "draft.aux_layers", "data.chat_template", "data.cache_dir"),
    run=run,
)
