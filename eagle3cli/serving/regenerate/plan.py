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
from eagle3cli.serving.regenerate.shards import Shard, ShardFolder
from eagle3cli.settings.tables import Settings


def plan_regenerate(settings: Settings) -> Plan:
    """The rows without an outcome and the replies that they ask for; ``recorded`` ones may save some of these.

    Raises as the command would for its input, and for shards that were made with other settings.
    """
    wanted = settings.regenerate
    path = input_path_of(wanted)
    total, digest = survey(path)
    first, end = range_of(wanted.sample_range, total)
    shards, folder = shards_in(wanted, first, end), ShardFolder(wanted.output_dir)
    engine = resolve_engine(wanted.engine, settings.server)
    failed = 0
    if not wanted.overwrite:
        named = engine != "running" or bool(settings.target.model_path)  # else only the servers know
        folder.look(made_with_of(settings, digest) if named else {})
        failed = sum((folder.summary(shard) or {}).get("errors", 0) for shard in shards)
    left = set(range(first, end)) if wanted.overwrite else _left(folder, shards)
    replies, rejected = _replies(settings, path, first, end, left)
    again = failed if wanted.retry_errors else 0
    rows = end - first
    notes = [f"about {again:,} failed rows once more"] if again else []
    if wanted.recorded and left:
        notes.append(f"replies of {wanted.recorded} are used where they match, the others are generated")
    return Plan(
        "regenerate",
        reads=(f"{path}: rows {first:,} to {end:,} of {total:,}",),
        done=(f"{rows - len(left):,} rows in {wanted.output_dir}",) if len(left) < rows else (),
        does=(
            f"{replies:,} replies for {len(left):,} rows, each of at most {wanted.max_tokens:,} tokens",
            f"by {ENGINES[engine]}",
            *([f"{rejected:,} rows cannot be used and go to the error files"] if rejected else []),
            *notes,
        ),
        writes=(f"{wanted.output_dir}: {len(shards)} shards of {wanted.num_per_shard:,} rows",),
        numbers={
            "rows": rows,
            "rows_left": len(left),
            "requests": replies,
            "tokens_at_most": replies * wanted.max_tokens,
            "rows_rejected": rejected,
            "rows_failed_before": failed,
            "shards": len(shards),
            "engine": engine,
        },
    )


def _left(folder: ShardFolder, shards: list[Shard]) -> set[int]:
    return {row for shard in shards for row in folder.rows_left(shard)}


def _replies(settings: Settings, path: Path, first: int, end: int, left: set[int]) -> tuple[int, int]:
    """Replies that the target would write for these rows, and rows that are no conversation."""
    replies = rejected = 0
    for row, (number, raw) in enumerate(islice(read_raw_lines(path), first, end), first):
        if row not in left:
            continue
        value = parse_line(number, raw, str(path)).value
        try:
            if value is None:
                raise DataError("not a row")
            replies += open_conversation(row, to_conversation(value), settings.regenerate.turns).pending.count(None)
        except DataError:
            rejected += 1
    return replies, rejected
