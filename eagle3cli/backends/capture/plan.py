"""What hidden-states would capture: rows, passes of the target, bytes on disk, and what is there already."""

from __future__ import annotations

from pathlib import Path

from eagle3cli.backends.capture.passes import length_batches
from eagle3cli.backends.target.hf import read_target_config
from eagle3cli.data.hidden_states.forecast import choose_quantization
from eagle3cli.data.hidden_states.rows import TOKENS, count_rows, empty_codec
from eagle3cli.data.hidden_states.shard import shard_name
from eagle3cli.data.hidden_states.writer import plan_layout
from eagle3cli.data.tokens.cache import data_paths, find_cache
from eagle3cli.data.tokens.rows import TokenRows
from eagle3cli.models.config import DraftConfig, read_draft_config
from eagle3cli.runtime.files import free_bytes
from eagle3cli.runtime.plan import Plan
from eagle3cli.runtime.units import size_text
from eagle3cli.settings.tables import Settings

USUAL_LENGTH = 0.5
"""Of the longest allowed that a row has, where rows are not tokenised yet: for a rough size."""


def plan_capture(settings: Settings) -> Plan:
    """The stores of the wanted splits. Raises as the command would for missing data and models."""
    draft = settings.draft
    config = read_draft_config(
        draft.config,
        read_target_config(settings.target),
        draft_vocab_size=draft.vocab_size,
        aux_layers=draft.aux_layers,
    )
    cache, paths = find_cache(settings), data_paths(settings)
    wanted = settings.hidden_states.split
    splits = [name for name in paths if wanted in ("both", name)]
    if cache is None:
        where = ", ".join(str(paths[name]) for name in splits)
        each = (len(config.aux_layers) + 1) * config.target_hidden_size * 2
        return Plan(
            "hidden-states",
            reads=(f"{where}, which is not tokenised yet: sizes are known after eagle3 cache",),
            does=(f"tokenise, then capture at most {size_text(each)} a token (bf16)",),
            writes=tuple(str(settings.hidden_states.output_path / name) for name in splits),
            numbers={"rows_known": False, "bytes_per_token_at_most": each},
        )
    found = {name: _split(settings, config, name, cache / name) for name in splits}
    needed = sum(numbers["disk_bytes_left"] for _, numbers in found.values())
    free = free_bytes(settings.hidden_states.output_path)
    parts = [plan for plan, _ in found.values()]
    short = f"{size_text(needed)} to write, {size_text(free)} free at {settings.hidden_states.output_path}"
    return Plan(
        "hidden-states",
        reads=tuple(line for plan in parts for line in plan.reads),
        done=tuple(line for plan in parts for line in plan.done),
        does=tuple(line for plan in parts for line in plan.does),
        writes=tuple(line for plan in parts for line in plan.writes),
        warnings=(short,) if needed > free else (),
        numbers={"rows_known": True, "splits": {name: numbers for name, (_, numbers) in found.items()}},
    )


def _split(settings: Settings, config: DraftConfig, name: str, cached: Path) -> tuple[Plan, dict[str, int]]:
    """Plan and numbers of one store."""
    wanted, shape = settings.hidden_states, {"layers": len(config.aux_layers), "hidden": config.target_hidden_size}
    rows, folder = TokenRows.open(cached), wanted.output_path / name
    count = len(rows) if wanted.sample_size is None else min(len(rows), wanted.sample_size)
    counts = count_rows(rows[index] for index in range(count))
    encoding = choose_quantization("bf16" if name == "eval" else wanted.encoding, counts, folder, **shape)
    plan = plan_layout(counts, empty_codec(encoding, **shape), wanted.shard_mb)
    standing = [] if wanted.overwrite else [s for s in range(plan.shards) if (folder / shard_name(s)).is_file()]
    left = [shard for shard in range(plan.shards) if shard not in standing]
    lengths = counts.counts_N3[:, TOKENS].tolist()
    passes = 0
    for shard in left:
        numbers = plan.rows(shard)
        part = lengths[numbers.start : numbers.stop]
        passes += sum(1 for _ in length_batches(numbers, part, wanted.batch_tokens, wanted.batch_size))
    size = sum(plan.bytes(shard) for shard in left)
    told = {
        "rows": count,
        "tokens": counts.tokens,
        "shards": plan.shards,
        "shards_left": len(left),
        "passes": passes,
        "disk_bytes": plan.total,
        "disk_bytes_left": size,
    }
    done = (f"{len(standing)} of {plan.shards} shards in {folder}",) if standing else ()
    does = (f"{name}: {passes:,} passes of at most {wanted.batch_tokens:,} tokens",) if passes else ()
    return Plan(
        "hidden-states",
        reads=(f"{cached}: {count:,} rows, {counts.tokens:,} tokens",),
        done=done,
        does=does,
        writes=(f"{folder}: {plan.shards} shards, {encoding}, {size_text(plan.total)}",) if left else (),
    ), told
