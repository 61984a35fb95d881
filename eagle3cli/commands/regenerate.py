"""eagle3 regenerate: replies rewritten by the target."""

from __future__ import annotations

from eagle3cli.cli.command import LOCAL_TARGET_FIELDS, Command
from eagle3cli.cli.dry_run import planner
from eagle3cli.console.out import Out
from eagle3cli.errors import FAILED, SOME_ROWS_FAILED
from eagle3cli.settings.tables import Settings


def run(settings: Settings, out: Out) -> int | None:
    """Write the shards and say where every row went."""
    from eagle3cli.cli.preflight.preflight import preflight

    preflight(COMMAND, settings, out)
    from eagle3cli.cli.local_target import with_target_folder
    from eagle3cli.serving.engine import resolve_engine
    from eagle3cli.serving.regenerate.regenerate import regenerate

    reads_gguf = settings.regenerate.engine == "llama.cpp" and settings.target.adapter is None
    if resolve_engine(settings.regenerate.engine, settings.server) != "running" and not reads_gguf:
        settings = with_target_folder(settings, out)
    elif settings.target.adapter is not None and not reads_gguf:
        out.info("--target-adapter is not used: the servers hold their own model")
    done = regenerate(settings, out)
    speed = f", {done.tokens_now / done.seconds:.0f} reply tokens/s" if done.tokens_now else ""
    lines = [
        f"{done.rows:,} rows in {done.shards} shards: {done.generated:,} generated ({done.tokens:,} reply tokens), "
        f"{done.recorded:,} recorded, {done.errors:,} failed",
        f"this run: {done.rows_now:,} rows in {done.seconds:.0f} s{speed}",
        *(f"  {count:,} x {reason}" for reason, count in done.reasons.most_common()),
    ]
    if done.errors:
        lines.append(f"each failed row with its reason: {done.folder}/error_*.jsonl")
    if done.errors and done.nothing_new:
        lines.append(
            f"the {done.errors:,} failed rows were told earlier; nothing is new (--retry-errors tries them again)"
        )
    lines.append(f"result: {done.folder}")
    if done.errors < done.rows:
        out.next("merge", {"merge.input_dir": done.folder})
    out.result(vars(done), "\n".join(lines))
    if done.errors == done.rows:
        return FAILED
    return SOME_ROWS_FAILED if done.errors and not done.nothing_new else None


CHAT = ("data.chat_template", "data.chat_template_kwargs")

COMMAND = Command(
    name="regenerate",
    summary="Rewrite the replies with the target, so that the draft learns the target's own words.",
    examples=(
        "eagle3 regenerate --model-path MODEL --input-path cache/dataset/sharegpt/train.jsonl --turns all",
        "eagle3 regenerate --server-address-port 10.0.0.1:30000 10.0.0.2:30000 "
        "--input-path cache/dataset/sharegpt/train.jsonl",
        "eagle3 regenerate --model-path MODEL --input-path cache/dataset/sharegpt/train.jsonl --retry-errors",
    ),
    fields=("regenerate.*", "server.*", *LOCAL_TARGET_FIELDS, *CHAT, "data.cache_dir"),
    run=run,
    plan=planner("eagle3cli.serving.regenerate.plan:plan_regenerate"),
)
