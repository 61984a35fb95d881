"""eagle3 prepare: rows of any sources to one layout, every one accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from eagle3cli.data.ledger import ERRORS, Ledger
from eagle3cli.data.prepare.latest import MANIFEST, RESULTS, TRAIN, mark_as_latest
from eagle3cli.data.prepare.reader import Reader
from eagle3cli.data.prepare.row_table import APART, HELD_OUT, KEPT, LEFT_OUT, work_folder
from eagle3cli.data.prepare.split import hold_out, sample
from eagle3cli.data.prepare.write import EQUAL_PROMPT, EVAL, written_rows
from eagle3cli.data.sources.dataset_specs import DatasetSpec, read_rows, resolve
from eagle3cli.data.sources.lines import SourceRow
from eagle3cli.data.sources.mixture import interleave, quotas, streamed_rows
from eagle3cli.errors import DataError, UsageError
from eagle3cli.runtime import manifest
from eagle3cli.runtime.files import writing
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import Stop, catch_stop
from eagle3cli.settings.data import PrepareSettings

EVAL_SHARE = 0.05
EVAL_MOST = 1000
NOT_SAMPLED = "not sampled"
SELF_TRIES = 4
"""Prompts that the target writes for each requested one, at most."""


@dataclass(frozen=True)
class Author:
    """The target as a source: what decides its prompts, and an endless stream of them for a result in a folder."""

    made_with: dict[str, Any]
    lines: Callable[[Path], Iterator[SourceRow]]
    finish: Callable[[Path], None]
    """Called when the result in the folder is whole."""


@dataclass(frozen=True)
class Prepared:
    """The folder that holds the result, its counts, and whether an earlier run had made it."""

    folder: Path
    summary: dict[str, Any]
    already: bool


def prepare(options: PrepareSettings, report: Reporter, author: Author | None = None) -> Prepared:
    """Read the sources and write train.jsonl, eval.jsonl (with split_eval) and errors.jsonl.

    Raises UsageError for options or an existing result, DataError where nothing usable is found.
    """
    specs, folder = settle(options)
    for remark in filter(None, (spec.remark for spec in specs)):
        report.info(remark)
    inputs = [path for spec in specs for path in spec.files]
    chosen = options_that_count(options, specs, author)
    summary, already = manifest.make_once(
        folder / MANIFEST,
        chosen,
        inputs,
        outputs_of(options),
        lambda: _write(folder, specs, options, author, report),
        overwrite=options.overwrite,
    )
    if author is not None and not already:
        author.finish(folder)
    if already:
        mark_as_latest(folder)
    return Prepared(folder, summary, already)


def settle(options: PrepareSettings) -> tuple[list[DatasetSpec], Path]:
    """The sources and the folder that these options mean."""
    split = options.split if "split" in options.model_fields_set else None
    specs = resolve(options.source, data_path=options.data_path, split=split, subset=options.subset)
    folder = options.output_path or RESULTS / "+".join(spec.name for spec in specs)[:80]
    if folder.suffix in (".jsonl", ".json"):
        fix = f"pass {folder.with_suffix('')}"
        raise UsageError(
            "not-a-file", "names a file, but the result is a folder", where=f"--output-path {folder}", fix=fix
        )
    return [_checked(spec, len(specs) > 1, folder, options) for spec in specs], folder


def outputs_of(options: PrepareSettings) -> list[str]:
    """The files of a result."""
    return [TRAIN, *([EVAL] if options.split_eval else []), ERRORS]


def _checked(spec: DatasetSpec, several: bool, folder: Path, options: PrepareSettings) -> DatasetSpec:
    """The data set without the files of an earlier result, where that lies below it; raises UsageError without any."""
    if spec.endless and several and not (spec.weight and options.sample_size):
        fix = "e.g. eagle3 prepare self:0.5 ultrachat:0.5 --sample-size 10000"
        raise UsageError(
            "conflicting-options",
            f"{spec.name} beside others needs weights and a size",
            where="prepare.source",
            fix=fix,
        )
    files = tuple(path for path in spec.files if folder.resolve() not in path.resolve().parents)
    if spec.files and not files:
        fix = "choose another --output-path"
        raise UsageError(
            "conflicting-options", "the result would replace what it is made of", where=str(folder), fix=fix
        )
    return replace(spec, files=files)


def options_that_count(options: PrepareSettings, specs: list[DatasetSpec], author: Author | None) -> dict[str, Any]:
    """What decides a result, besides the content of its files."""
    chosen = options.model_dump(mode="json", exclude={"source", "output_path", "data_path", "overwrite", "split"})
    hub = [vars(source) for spec in specs for source in spec.hub]
    chosen |= {"origins": [[spec.name, spec.weight] for spec in specs], "hub": hub}
    return chosen | ({"target": author.made_with} if author else {})


def _write(
    folder: Path, specs: list[DatasetSpec], options: PrepareSettings, author: Author | None, report: Reporter
) -> dict[str, Any]:
    with (
        writing(folder / ERRORS) as errors,
        work_folder(folder) as work,
        catch_stop(report) as stop,
        Reader(work, options, Ledger(errors)) as reader,
    ):
        for spec, requested_rows in zip(specs, streamed_rows(specs, options.sample_size), strict=True):
            lines = author.lines(folder) if author and spec.endless else _lines(spec, options)
            _read(reader, spec, lines, requested_rows, len(specs) > 1, report, stop)
        reader.find_duplicates()
        _choose(reader, report)
        stop.check("nothing was written")
        ledger = reader.ledger
        rows = reader.rows
        sizes = {"train_rows": rows.count(KEPT), "eval_rows": rows.count(HELD_OUT)}
        ledger.written = sum(sizes.values())
        ledger.left_out += Counter({NOT_SAMPLED: rows.count(LEFT_OUT), EQUAL_PROMPT: rows.count(APART)})
        if ledger.written:
            _copy(reader, folder)
        sources = {source.spec.name: source.written(rows) for source in reader.sources}
    if not ledger.written:
        where = ", ".join(str(spec.path or spec.name) for spec in specs)
        fix = f"each row's reason is in {folder / ERRORS}; columns are named with --map role=column"
        raise DataError("no-rows", f"no usable rows ({ledger.read} read; {_top(ledger)})", where=where, fix=fix)
    return {**ledger.summary(), **sizes, **({"sources": sources} if len(sources) > 1 else {})}


def _lines(spec: DatasetSpec, options: PrepareSettings) -> Iterator[SourceRow]:
    # A hub stream is shuffled, so its first rows are the sample.
    return read_rows(spec, shuffle_seed=options.seed if options.sample_size else None)


def _read(
    reader: Reader,
    spec: DatasetSpec,
    lines: Iterator[SourceRow],
    requested_rows: int | None,
    several: bool,
    report: Reporter,
    stop: Stop,
) -> None:
    """Take in a source: all of it, or of a stream until ``requested_rows`` different rows are there."""
    source = reader.begin(spec, several=several)
    missing = requested_rows
    with report.task(f"reading {spec.name}") as task:
        for line in lines:
            kept = reader.take(line)
            if source.read % 256 == 0:
                stop.check("nothing was written")
                task.advance(256)
            if missing is None or requested_rows is None:
                continue
            missing -= kept
            if missing <= 0:
                reader.find_duplicates()
                missing = requested_rows - reader.rows.count(KEPT, first=source.first)
                if missing <= 0:
                    break
            if spec.endless and source.read >= SELF_TRIES * requested_rows:
                usable = f"{requested_rows - missing} usable rows of {requested_rows}"
                report.warn(f"{spec.name}: {source.read} tries gave {usable}")
                break
        task.advance(source.read % 256)


def _top(ledger: Ledger) -> str:
    summary = ledger.summary()["reasons"]
    return "; ".join(f"{count} x {reason}" for reason, count in list(summary.items())[:3]) or "the source has no rows"


def _choose(reader: Reader, report: Reporter) -> None:
    """Draw the rows of the result, then those that are held out, then see that ids differ."""
    options = reader.options
    sources = reader.sources
    rows = reader.rows
    available = [rows.count(KEPT, first=source.first, end=source.end) for source in sources]
    if len(sources) > 1 and all(source.spec.weight for source in sources):
        weights = [source.spec.weight or 0.0 for source in sources]
        sizes = quotas(available, weights, options.sample_size)
        for source, size, have in zip(sources, sizes, available, strict=True):
            sample(rows, size, options.seed, source.first, source.end)
            if size == have and options.sample_size and sum(sizes) < options.sample_size:
                message = f"{source.spec.name} has {have:,} usable rows, so {sum(sizes):,} rows keep the weights"
                report.warn(f"{message} (instead of {options.sample_size:,})")
    elif options.sample_size is not None:
        sample(rows, options.sample_size, options.seed)
    total = rows.count(KEPT)
    if options.split_eval and total > 1:
        size = min(EVAL_MOST, max(1, round(EVAL_SHARE * total)))
        hold_out(rows, size)
        if not rows.count(KEPT):
            rows.run(f"UPDATE rows SET disposition = {KEPT} WHERE disposition IN ({HELD_OUT}, {APART})")
            report.warn("all rows begin with the same prompt: none is held out")
    rows.mark_repeated_names()


def _copy(reader: Reader, folder: Path) -> None:
    """Write train.jsonl and, where it is wanted, eval.jsonl; weighted sources are mixed row by row."""
    streams = [
        written_rows(reader.lines(source), reader.rows, reader.ledger, reader.place_of, source.first, source.end)
        for source in reader.sources
    ]
    with ExitStack() as stack:
        files = {KEPT: stack.enter_context(writing(folder / TRAIN, "wb"))}
        if reader.options.split_eval:
            files[HELD_OUT] = stack.enter_context(writing(folder / EVAL, "wb"))
        rows: Iterator[tuple[int, bytes]] = chain(*streams)
        if all(source.spec.weight for source in reader.sources):
            rows = interleave(streams, [source.written(reader.rows) for source in reader.sources], reader.options.seed)
        for disposition, line in rows:
            files[disposition].write(line)
        for _ in chain(*streams):
            pass  # what follows the last row of the result is told to the ledger
