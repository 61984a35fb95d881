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
from eagle3cli.data.tokens.plan import planned_judgement
from eagle3cli.data.tokens.rows import TokenRows
from eagle3cli.models.config import DraftConfig, read_draft_config
from eagle3cli.runtime.files import free_bytes
from eagle3cli.runtime.plan import Plan
from eagle3cli.runtime.units import size_text
from eagle3cli.settings.tables import Settings


def plan_capture(settings: Settings) -> Plan:
    """The stores of the wanted splits. Raises as the command would for missing data and models."""
    draft = settings.draft
    config = read_draft_config(
        draft.config,
        read_target_config(settings.target),
        draft_vocab_size=draft.vocab_size,
        aux_layers=draft.aux_layers,
    )
    cache = find_cache(settings)
    judged = planned_judgement(settings, cache)
    paths = data_paths(settings)
    split = settings.hidden_states.split
    splits = [name for name in paths if split in ("both", name)]
    if cache is None:
        where = ", ".join(str(paths[name]) for name in splits)
        each = (len(config.aux_layers) + 1) * config.target_hidden_size * 2
        return Plan(
            "hidden-states",
            reads=(f"{where}, which is not tokenized yet: sizes are known after eagle3 cache",),
            does=(f"tokenize, then capture at most {size_text(each)} a token (bf16)",),
            writes=tuple(str(settings.hidden_states.output_path / name) for name in splits),
            numbers={"rows_known": False, "bytes_per_token_at_most": each, **judged},
        )
    plans = {name: _split(settings, config, name, cache / name) for name in splits}
    parts = list(plans.values())
    needed = sum(plan.numbers["disk_bytes_left"] for plan in parts)
    free = free_bytes(settings.hidden_states.output_path)
    short = f"{size_text(needed)} to write, {size_text(free)} free at {settings.hidden_states.output_path}"
    return Plan(
        "hidden-states",
        reads=tuple(line for plan in parts for line in plan.reads),
        done=tuple(line for plan in parts for line in plan.done),
        does=tuple(line for plan in parts for line in plan.does),
        writes=tuple(line for plan in parts for line in plan.writes),
        warnings=(short,) if needed > free else (),
        numbers={"rows_known": True, "splits": {name: plan.numbers for name, plan in plans.items()}},
    )


def _split(settings: Settings, config: DraftConfig, name: str, cached: Path) -> Plan:
    """The plan of one store."""
    requested = settings.hidden_states
    shape = {"layers": len(config.aux_layers), "hidden": config.target_hidden_size}
    rows = TokenRows.open(cached)
    folder = requested.output_path / name
    count = len(rows) if requested.sample_size is None else min(len(rows), requested.sample_size)
    counts = count_rows(rows[index] for index in range(count))
    encoding = choose_quantization("bf16" if name == "eval" else requested.encoding, counts, folder, **shape)
    layout = plan_layout(counts, empty_codec(encoding, **shape), requested.shard_mb)
    present = [] if requested.overwrite else [s for s in range(layout.shards) if (folder / shard_name(s)).is_file()]
    left = [shard for shard in range(layout.shards) if shard not in present]
    lengths = counts.counts_N3[:, TOKENS].tolist()
    passes = 0
    for shard in left:
        numbers = layout.rows(shard)
        part = lengths[numbers.start : numbers.stop]
        passes += sum(1 for _ in length_batches(numbers, part, requested.batch_tokens, requested.batch_size))
    size = sum(layout.bytes(shard) for shard in left)
    done = (f"{len(present)} of {layout.shards} shards in {folder}",) if present else ()
    does = (f"{name}: {passes:,} passes of at most {requested.batch_tokens:,} tokens",) if passes else ()
    return Plan(
        "hidden-states",
        reads=(f"{cached}: {count:,} rows, {counts.tokens:,} tokens",),
        done=done,
        does=does,
        writes=(f"{folder}: {layout.shards} shards, {encoding}, {size_text(layout.total)}",) if left else (),
        numbers={
            "rows": count,
            "tokens": counts.tokens,
            "shards": layout.shards,
            "shards_left": len(left),
            "passes": passes,
            "disk_bytes": layout.total,
            "disk_bytes_left": size,
        },
    )
