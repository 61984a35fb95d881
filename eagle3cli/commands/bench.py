"""eagle3 bench: acceptance and speed with and without the draft."""

from __future__ import annotations

from pathlib import Path

from eagle3cli.cli.command import Command
from eagle3cli.cli.dry_run import planner
from eagle3cli.console.out import Out
from eagle3cli.errors import FAILED, SOME_ROWS_FAILED
from eagle3cli.settings.tables import Settings


def run(settings: Settings, out: Out) -> int | None:
    """Measure what is missing, show all, write the table and the page beside the results.

    A draft never changes greedy answers but at near ties: where one does, the run has failed.
    """
    from eagle3cli.cli.preflight.preflight import preflight

    preflight(COMMAND, settings, out)
    from eagle3cli.cli.local_target import with_local_target
    from eagle3cli.console.benchmark import COLUMNS, PART_COLUMNS, part_rows, table_row, warnings_of, write_pages
    from eagle3cli.serving.bench.bench import bench
    from eagle3cli.serving.bench.search import search

    reads_gguf = settings.bench.engine == "llama.cpp" and settings.target.adapter is None
    if settings.target.model_path and not reads_gguf:
        settings = with_local_target(settings, out)
    result, searches = search(settings, out) if settings.bench.search else (bench(settings, out), [])
    out.table("Speculative decoding", COLUMNS, [table_row(row) for row in result.table])
    if parts := part_rows(result.table):
        out.table("By category and by length of the prompt", PART_COLUMNS, parts)
    pages = write_pages(result.table, result.output, result.engine, Path(result.target).name)
    earlier = len(result.table) - result.measured
    skipped = f" ({earlier} measured earlier)" if earlier else ""
    lines = [f"{len(result.table)} configurations{skipped} in {result.output}; {', '.join(map(str, pages))}"]
    lines += [f"not measured: {name}: {why}" for name, why in result.failed.items()]
    for text in warnings_of(result.table):
        out.warn(text)
    drafts = [row for row in result.table if row.get("compared")]
    if drafts and all(row["identical"] == row["compared"] for row in drafts):
        lines.append("every greedy answer is token by token that of plain decoding")
    lines += [line for best in searches for line in best.lines()]
    data = {"output": result.output, "markdown": pages[0], "html": pages[1], "configurations": result.table}
    best_of = {"search": [best.as_dict() for best in searches]} if settings.bench.search else {}
    out.result({**data, "failed": result.failed, **best_of}, "\n".join(lines))
    if not result.table or any(row.get("differences_beyond_ties") for row in result.table):
        return FAILED
    return SOME_ROWS_FAILED if result.failed else None


COMMAND = Command(
    name="bench",
    summary="Measure acceptance and speed with and without the draft, on the same prompts.",
    examples=(
        "eagle3 bench --model-path MODEL --speculative-draft-model-path runs/draft --benchmark-list mtbench:8 "
        '--config-list "1,0,0,0" "1,3,1,4"',
        "eagle3 bench --engine sglang --model-path MODEL --speculative-draft-model-path runs/draft --search "
        '--config-list "8,0,0,0" --benchmark-list mtbench:16 gsm8k@gsm8k.jsonl:16',
    ),
    fields=(
        *("bench.*", "target.model_path", "target.adapter", "target.revision", "target.dtype", "target.device"),
        *("target.threads", "target.trust_remote_code", "draft.path", "draft.aux_layers"),
        *("data.chat_template", "data.chat_template_kwargs", "data.cache_dir"),
        *("server.address_port", "server.python", "server.llama_server", "server.args", "server.tp_size"),
        *("server.mem_fraction_static", "server.port", "server.request_timeout", "server.dist_timeout"),
    ),
    run=run,
    loads_torch=True,
    plan=planner("eagle3cli.serving.bench.plan:plan_bench"),
)
