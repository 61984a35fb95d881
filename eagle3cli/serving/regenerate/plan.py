"""What regenerate would do: rows and requests that are left, by which engine, and what is there already."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from eagle3cli.data.conversations.conversation import to_conversation
from eagle3cli.data.sources.lines import parse_line, read_raw_lines
from eagle3cli.errors import DataError
from eagle3cli.runtime.plan import Plan
from eagle3cli.serving.engine import ENGINES, resolve_engine
from eagle3cli.serving.regenerate.pending import open_conversation
from eagle3cli.serving.regenerate.regenerate import input_path_of, made_with_of, range_of, shards_in, survey
from eagle3cli.serving.regenerate.shards import ShardFolder
from eagle3cli.settings.tables import Settings


def plan_regenerate(settings: Settings) -> Plan:
    """The rows without an outcome and the replies that they ask for; ``recorded`` ones may save some of these.

    Raises as the command would for its input, and for shards that were made with other settings.
    """
    config = settings.regenerate
    path = input_path_of(config)
    total, digest = survey(path)
    first, end = range_of(config.sample_range, total)
    shards = shards_in(config, first, end)
    folder = ShardFolder(config.output_dir)
    engine = resolve_engine(config.engine, settings.server)
    failed = 0
    if not config.overwrite:
        is_named = engine != "running" or bool(settings.target.model_path)  # else only the servers know
        folder.read_manifest(made_with_of(settings, digest) if is_named else {})
        failed = sum((folder.summary(shard) or {}).get("errors", 0) for shard in shards)
    if config.overwrite:
        left = set(range(first, end))
    else:
        left = {row for shard in shards for row in folder.rows_left(shard)}
    replies, rejected = _count_requests(settings, path, first, end, left)
    retried = failed if config.retry_errors else 0
    rows = end - first
    notes = [f"about {retried:,} failed rows once more"] if retried else []
    if config.recorded and left:
        notes.append(f"replies of {config.recorded} are used where they match, the others are generated")
    return Plan(
        "regenerate",
        reads=(f"{path}: rows {first:,} to {end:,} of {total:,}",),
        done=(f"{rows - len(left):,} rows in {config.output_dir}",) if len(left) < rows else (),
        does=(
            f"{replies:,} replies for {len(left):,} rows, each of at most {config.max_tokens:,} tokens",
            f"by {ENGINES[engine]}",
            *([f"{rejected:,} rows cannot be used and go to the error files"] if rejected else []),
            *notes,
        ),
        writes=(f"{config.output_dir}: {len(shards)} shards of {config.num_per_shard:,} rows",),
        numbers={
            "rows": rows,
            "rows_left": len(left),
            "requests": replies,
            "tokens_at_most": replies * config.max_tokens,
            "rows_rejected": rejected,
            "rows_failed_before": failed,
            "shards": len(shards),
            "engine": engine,
        },
    )


def _count_requests(settings: Settings, path: Path, first: int, end: int, left: set[int]) -> tuple[int, int]:
    """Replies that the target would write for these rows, and rows that are no conversation."""
    replies = rejected = 0
    for row, (number, raw) in enumerate(islice(read_raw_lines(path), first, end), first):
        if row not in left:
            continue
        value = parse_line(number, raw, str(path)).value
        try:
            if value is None:
                raise DataError("row-messages", "not a row")
            replies += open_conversation(row, to_conversation(value), settings.regenerate.turns).pending.count(None)
        except DataError:
            rejected += 1
    return replies, rejected
