"""What prepare and merge would do, from the files that are there."""

from __future__ import annotations

from pathlib import Path

from eagle3cli.data.prepare import merge as merging
from eagle3cli.data.prepare import prepare as preparing
from eagle3cli.data.prepare.latest import MANIFEST, TRAIN
from eagle3cli.data.prepare.write import EVAL
from eagle3cli.data.sources.dataset_specs import DatasetSpec
from eagle3cli.data.sources.files import lines_in
from eagle3cli.runtime import manifest
from eagle3cli.runtime.plan import Plan
from eagle3cli.runtime.units import size_text
from eagle3cli.settings.tables import Settings


def plan_prepare(settings: Settings) -> Plan:
    """What ``eagle3 prepare`` would read and write. Raises as it would, for sources and for a result that stands."""
    options = settings.prepare
    specs, folder = preparing.settle(options)
    files = [path for spec in specs for path in spec.files]
    written = any(spec.endless for spec in specs)  # by the target: what it says is not known before
    chosen = preparing.options_that_count(options, specs, None)
    place = folder / MANIFEST
    outputs = preparing.outputs_of(options)
    before = None if options.overwrite or written else manifest.finished(place, chosen, files)
    if before is not None:
        counts = before["summary"]
        result = f"{folder}: {counts['train_rows']:,} training and {counts['eval_rows']:,} evaluation rows"
        return Plan("prepare", done=(result,), numbers={"already_done": True, "folder": str(folder), **counts})
    manifest.refuse_standing(place, outputs, overwrite=options.overwrite or written)
    counted = [lines_in(path) for path in files]
    rows = sum(n or 0 for n in counted) if all(n is not None for n in counted) and files else None
    size = sum(path.stat().st_size for path in files if path.is_file())
    most = min(n for n in (rows, options.sample_size) if n is not None) if rows or options.sample_size else None
    does = ["bring the rows to one layout, drop duplicates" + (", split off an evaluation file" * options.split_eval)]
    if options.sample_size:
        does.append(f"keep at most {options.sample_size:,} rows, drawn with seed {options.seed}")
    is_whole = size > 0 and options.sample_size is None and not any(spec.hub for spec in specs)
    at_most = f"at most {most:,} rows" if most is not None else "as many rows as the sources have"
    return Plan(
        "prepare",
        reads=tuple(line for spec in specs for line in _source(spec)),
        does=tuple(does),
        writes=(f"{folder}: {', '.join(outputs)}; {at_most}" + (f", about {size_text(size)}" if is_whole else ""),),
        numbers={"already_done": False, "folder": str(folder), "rows": rows, "rows_at_most": most, "disk_bytes": size},
    )


def _source(spec: DatasetSpec) -> list[str]:
    if spec.endless:
        return [f"{spec.name}: the target writes the prompts"]
    files = [f"{path}, {size_text(path.stat().st_size)}{_rows_of(path)}" for path in spec.files if path.is_file()]
    return files + [f"{source.name} ({source.split}), streamed from the hub" for source in spec.hub]


def _rows_of(path: Path) -> str:
    rows = lines_in(path)
    return "" if rows is None else f", {rows:,} rows"


def plan_merge(settings: Settings) -> Plan:
    """What ``eagle3 merge`` would do. Raises as it would for a folder without shards or a result that stands."""
    options = settings.merge
    shards, errors = merging.shards_of(options.input_dir)
    folder = options.output_dir
    chosen = merging.options_that_count(options)
    before = None if options.overwrite else manifest.finished(folder / merging.MANIFEST, chosen, [*shards, *errors])
    if before is not None:
        counts = before["summary"]
        result = f"{folder}: {counts['train_rows']:,} training and {counts['eval_rows']:,} held-out rows"
        return Plan("merge", done=(result,), numbers={"already_done": True, "folder": str(folder), **counts})
    outputs = (TRAIN, EVAL)
    manifest.refuse_standing(folder / merging.MANIFEST, outputs, overwrite=options.overwrite)
    rows, failed = (sum(lines_in(path) or 0 for path in paths) for paths in (shards, errors))
    size = sum(path.stat().st_size for path in shards)
    is_set = "eval_size" in options.model_fields_set
    held = options.eval_size if is_set else min(options.eval_size, rows // merging.EVAL_SHARE)
    train = min(rows - held, options.train_size or rows)
    return Plan(
        "merge",
        reads=(f"{options.input_dir}: {len(shards)} shards, {rows:,} rows, {size_text(size)}",),
        does=(f"hold out {held:,} rows, leave {failed:,} failed rows aside, drop duplicates",),
        writes=(f"{folder}: at most {train:,} training and {held:,} held-out rows, about {size_text(size)}",),
        numbers={
            "already_done": False,
            "folder": str(folder),
            "shards": len(shards),
            "rows": rows,
            "failed_rows": failed,
            "train_rows_at_most": train,
            "eval_rows": held,
            "disk_bytes": size,
        },
    )
