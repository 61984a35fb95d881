"""eagle3 merge: the shards of `regenerate` to a training and an evaluation file.

The shards are read twice, once for the facts and once to copy; memory does not grow with the rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle3cli.data.conversations.conversation import to_conversation
from eagle3cli.data.conversations.filters import Unwanted, unwanted_kinds, unwanted_reply
from eagle3cli.data.ledger import ERRORS, Ledger
from eagle3cli.data.prepare.duplicates import mark_duplicates
from eagle3cli.data.prepare.latest import TRAIN
from eagle3cli.data.prepare.row_table import APART, HELD_OUT, KEPT, LEFT_OUT, RowTable, work_folder
from eagle3cli.data.prepare.split import hold_out, sample
from eagle3cli.data.prepare.write import EQUAL_PROMPT, EVAL, written_rows
from eagle3cli.data.sources.lines import SourceRow, parse_line, read_raw_lines, with_json_numbers
from eagle3cli.errors import DataError, UsageError
from eagle3cli.runtime import manifest
from eagle3cli.runtime.files import writing
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import catch_stop
from eagle3cli.settings.data import MergeSettings

MANIFEST = "merge.json"
BEYOND_SIZES = "more than the sizes asked for"
EVAL_SHARE = 10
"""A tenth of the rows is held out at most, unless a size is asked for."""


@dataclass(frozen=True)
class Merged:
    """The folder with the result, its counts, and whether an earlier run had made it."""

    folder: Path
    summary: dict[str, Any]
    already: bool


def merge(options: MergeSettings, report: Reporter) -> Merged:
    """Write train.jsonl, eval.jsonl and errors.jsonl from the shards of a folder.

    Raises UsageError where the wished sizes cannot be had or the result exists, DataError where there are no shards.
    """
    shards, error_files = shards_of(options.input_dir)
    inputs = [*shards, *error_files]
    chosen = options_that_count(options)
    folder = options.output_dir

    def make() -> dict[str, Any]:
        failed_rows = sum(1 for file in error_files for _ in read_raw_lines(file))
        return {**_write(folder, shards, options, report), "shards": len(shards), "failed_rows": failed_rows}

    outputs = (TRAIN, EVAL, ERRORS)
    made = manifest.make_once(folder / MANIFEST, chosen, inputs, outputs, make, overwrite=options.overwrite)
    return Merged(folder, *made)


def options_that_count(options: MergeSettings) -> dict[str, Any]:
    """What decides a result, besides the content of the shards."""
    chosen = options.model_dump(mode="json", exclude={"input_dir", "output_dir", "overwrite"})
    return {**chosen, "eval_size_set": "eval_size" in options.model_fields_set}


def shards_of(folder: Path) -> tuple[list[Path], list[Path]]:
    """The shard files and the error files of a folder, in the order of their rows."""
    if not folder.is_dir():
        raise DataError(
            "no-such-path",
            "no such folder",
            where=str(folder),
            fix="pass --input-dir, or run `eagle3 regenerate` first",
        )

    def files_of(kind: str) -> list[Path]:
        pattern = f"{kind}_*-*.jsonl"
        return sorted((p for p in folder.glob(pattern) if p.is_file()), key=lambda p: (_first_row(p), p.name))

    shards = files_of("shard")
    if not shards:
        raise DataError(
            "no-data-files",
            "no shard_A-B.jsonl files in the folder",
            where=str(folder),
            fix="run `eagle3 regenerate` first",
        )
    return shards, files_of("error")


def _first_row(path: Path) -> int:
    first = path.stem.partition("_")[2].partition("-")[0]
    return int(first) if first.isdigit() else 0


def _write(folder: Path, shards: Sequence[Path], options: MergeSettings, report: Reporter) -> dict[str, Any]:
    with (
        writing(folder / ERRORS) as errors,
        work_folder(folder) as work,
        RowTable(work, options.seed) as rows,
    ):
        ledger = Ledger(errors)
        _scan(shards, options, ledger, rows, report)
        mark_duplicates(rows)
        split(rows, options)
        sizes = {"train_rows": rows.count(KEPT), "eval_rows": rows.count(HELD_OUT)}
        ledger.written = sum(sizes.values())
        ledger.left_out += Counter({BEYOND_SIZES: rows.count(LEFT_OUT), EQUAL_PROMPT: rows.count(APART)})
        _copy(shards, rows, ledger, folder, report)
    return {**ledger.summary(), **sizes}


def _scan(shards: Sequence[Path], options: MergeSettings, ledger: Ledger, rows: RowTable, report: Reporter) -> None:
    kinds = unwanted_kinds(options.drop_truncated, options.drop_loops, options.drop_refusals)
    with report.task("reading shards") as task, catch_stop(report) as stop:
        for shard, path in enumerate(shards):
            for number, raw in read_raw_lines(path):
                ledger.read += 1
                if ledger.read % 256 == 0:
                    stop.check("nothing was written")
                    task.advance(256)
                _take(shard, with_json_numbers(parse_line(number, raw, str(path)), raw), kinds, ledger, rows)
        task.advance(ledger.read % 256)


def _take(shard: int, line: SourceRow, kinds: Sequence[Unwanted], ledger: Ledger, rows: RowTable) -> None:
    """Note the facts of a row, or tell the ledger why it is not in the result."""
    try:
        conversation = to_conversation(line.parsed()).with_images(Path(line.path).parent)
        reason = unwanted_reply(conversation, kinds)
        if reason:
            ledger.drop("filtered", line.place, conversation.id, reason)
            return
        rows.add(conversation, conversation.id or line.place, shard, line.number, repaired=bool(line.repairs))
    except (DataError, RecursionError) as error:
        reason = error.message if isinstance(error, DataError) else "nested too deeply"
        ledger.drop("rejected", line.place, line.id, reason)


def split(rows: RowTable, options: MergeSettings) -> None:
    """Mark the rows that are held out and those beyond the sizes asked for; the others are for training.

    Sizes are exact. Raises UsageError where they cannot be had.
    """
    total = rows.count(KEPT)
    is_set = "eval_size" in options.model_fields_set
    eval_size = options.eval_size if is_set else min(options.eval_size, total // EVAL_SHARE)
    held = hold_out(rows, eval_size) if eval_size else 0
    left = rows.count(KEPT)
    train_size = max(1, options.train_size or 0)
    if held < eval_size or left < train_size:
        least = f"{eval_size:,} for evaluation and {train_size:,} for training"
        where = "merge.train_size" if options.train_size is not None else "merge.eval_size"
        what = f"{options.input_dir}: {total:,} different rows are too few for {least}"
        fix = "ask for fewer with --eval-size and --train-size (rows with an equal prompt or id stay on one side)"
        raise UsageError("made-differently", what, where=where, fix=fix)
    if options.train_size is not None:
        sample(rows, options.train_size, options.seed)


def _copy(shards: Sequence[Path], rows: RowTable, ledger: Ledger, folder: Path, report: Reporter) -> None:
    def place_of(shard: int, line: int) -> str:
        return f"{shards[shard]}:{line}"

    with (
        writing(folder / TRAIN, "wb") as train,
        writing(folder / EVAL, "wb") as held_out,
        report.task("writing", total=ledger.written) as task,
    ):
        lines = _lines(shards, rows, ledger)
        for disposition, line in written_rows(lines, rows, ledger, place_of):
            (held_out if disposition == HELD_OUT else train).write(line)
            task.advance()


def _lines(shards: Sequence[Path], rows: RowTable, ledger: Ledger) -> Iterator[bytes]:
    """The lines of exactly these rows; only those that were repaired to be read are parsed again."""
    places = rows.run("SELECT file, line, repaired FROM rows ORDER BY row")
    place = next(places, None)
    for shard, path in enumerate(shards):
        for number, raw in read_raw_lines(path):
            if place is None or place[:2] != (shard, number):
                continue
            if place[2]:
                line = with_json_numbers(parse_line(number, raw, str(path)), raw)
                ledger.repair(line.repairs, line.place, line.id)
                raw = json.dumps(line.value, ensure_ascii=False).encode()
            yield raw.rstrip(b"\r\n") + b"\n"
            place = next(places, None)
