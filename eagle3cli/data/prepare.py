"""eagle3 prepare: rows of any source to one layout, every one accounted for."""

from __future__ import annotations

import hashlib
import json
import os
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from eagle3cli.data import manifest
from eagle3cli.data.conversations import (
    Conversation,
    cut_turns,
    first_prompt,
    join_runs,
    to_conversation,
)
from eagle3cli.data.layouts import parse_mapping
from eagle3cli.data.ledger import ERRORS, Ledger
from eagle3cli.data.presets import Origin, resolve
from eagle3cli.data.sources import Line, files_of, read_file, read_hub
from eagle3cli.errors import DataError, UsageError
from eagle3cli.runtime.files import writing
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import catch_stop
from eagle3cli.settings.tables import Prepare

MANIFEST, TRAIN, EVAL = "prepare.json", "train.jsonl", "eval.jsonl"
EVAL_SHARE, EVAL_MOST = 0.05, 1000


@dataclass(frozen=True)
class Prepared:
    """The folder that holds the result, its counts, and whether an earlier run had made it."""

    folder: Path
    summary: dict[str, Any]
    already: bool
    own_data: bool
    """The rows are the user's, not a preset's whose dirt is known."""


def prepare(options: Prepare, report: Reporter) -> Prepared:
    """Read the source and write train.jsonl, eval.jsonl (with split_eval) and errors.jsonl.

    Raises UsageError for options or an existing result, DataError where nothing usable is found.
    """
    split = options.split if "split" in options.model_fields_set else None
    origin = resolve(options.source, data_path=options.data_path, split=split)
    if origin.remark:
        report.info(origin.remark)
    folder = options.output_path or Path("cache/dataset") / origin.name
    if folder.suffix in (".jsonl", ".json"):
        raise UsageError(
            "names a file, but the result is a folder",
            where=f"--output-path {folder}",
            fix=f"pass {folder.with_suffix('')}",
        )
    inputs = files_of(origin.path) if origin.path is not None else []
    chosen = _options_that_count(options, origin)
    before = None if options.overwrite else manifest.finished(folder / MANIFEST, chosen, inputs)
    if before is not None:
        return Prepared(folder, before["summary"], already=True, own_data=origin.preset is None)
    described = manifest.describe(inputs)
    outputs = [TRAIN, *([EVAL] if options.split_eval else []), ERRORS]
    manifest.begin(folder / MANIFEST, outputs, overwrite=options.overwrite)
    summary = _write(folder, origin, inputs, options, report)
    manifest.finish(folder / MANIFEST, chosen, described, outputs, summary)
    return Prepared(folder, summary, already=False, own_data=origin.preset is None)


def _options_that_count(options: Prepare, origin: Origin) -> dict[str, Any]:
    kept = options.model_dump(mode="json", exclude={"source", "output_path", "data_path", "overwrite", "split"})
    return {**kept, "origin": origin.name, "hub": origin.hub, "split": origin.split}


def _write(folder: Path, origin: Origin, inputs: Sequence[Path], options: Prepare, report: Reporter) -> dict[str, Any]:
    with writing(folder / ERRORS) as errors:
        ledger = Ledger(errors)
        spool = folder / f".rows.tmp-{os.getpid()}"
        try:
            with spool.open("w+b") as rows:
                offsets = _spool(rows, _accepted(origin, inputs, options, ledger, report))
                train, held_out = _draw(len(offsets) - 1, options, ledger)
                if not train:
                    ledger.errors.flush()
                    raise DataError(
                        f"no usable rows ({ledger.read} read; {_top(ledger)})",
                        where=origin.hub or str(origin.path),
                        fix="check the layout; columns are named with --map role=column",
                    )
                _copy(rows, offsets, train, folder / TRAIN)
                if options.split_eval:
                    _copy(rows, offsets, held_out, folder / EVAL)
        finally:
            spool.unlink(missing_ok=True)
        ledger.written = len(train) + len(held_out)
    return {**ledger.summary(), "train_rows": len(train), "eval_rows": len(held_out)}


def _top(ledger: Ledger) -> str:
    summary = ledger.summary()["reasons"]
    return "; ".join(f"{count} x {reason}" for reason, count in list(summary.items())[:3]) or "the source has no rows"


def _accepted(
    origin: Origin, inputs: Sequence[Path], options: Prepare, ledger: Ledger, report: Reporter
) -> Iterator[Conversation]:
    """The rows that are kept, with ids made unique; the others go to the ledger."""
    mapping = {**(origin.preset.mapping if origin.preset else {}), **parse_mapping(options.map)}
    wanted = origin.preset.choose() if origin.preset and origin.preset.choose else None
    seen = Seen()
    with report.task(f"reading {origin.name}") as task, catch_stop(report) as stop:
        for line in _lines(origin, inputs, options):
            ledger.read += 1
            if ledger.read % 256 == 0:
                stop.check("nothing was written")
                task.advance(256)
            conversation = _convert(line, mapping, options, wanted, ledger, origin)
            if conversation is None:
                continue
            if (first := seen.content(conversation, line.place)) is not None:
                ledger.drop("duplicate", line.place, conversation.id, f"duplicate of {first}")
                continue
            named = seen.unique_id(conversation, f"{origin.name}-{ledger.read}")
            ledger.repair(named.repairs)
            yield named
            if origin.hub and options.sample_size and len(seen.digests) >= options.sample_size:
                break  # a hub stream is shuffled already, so the first rows are the sample
        task.advance(ledger.read % 256)


def _lines(origin: Origin, inputs: Sequence[Path], options: Prepare) -> Iterator[Line]:
    if origin.hub:
        yield from read_hub(origin.hub, origin.split, shuffle_seed=options.seed if options.sample_size else None)
    for path in inputs:
        yield from read_file(path)


def _convert(
    line: Line,
    mapping: dict[str, str],
    options: Prepare,
    wanted: Callable[[Conversation], bool] | None,
    ledger: Ledger,
    origin: Origin,
) -> Conversation | None:
    """The row as it is kept, or None after telling the ledger why not."""
    if line.value is None:
        ledger.drop("rejected", line.place, "", line.problem or "")
        return None
    # A preset's mapping names its id column; a local file of the same layout may lack it.
    present = {role: column for role, column in mapping.items() if role != "id" or column in line.value}
    try:
        conversation = to_conversation(line.value, present)
    except DataError as error:
        ledger.drop("rejected", line.place, str(line.value.get("id") or ""), error.what)
        return None
    if wanted is not None and (not wanted(conversation) or conversation.repairs):
        ledger.left_out["not chosen by the preset"] += 1
        return None
    conversation = replace(conversation, repairs=(*line.repairs, *conversation.repairs))
    prompts_only = options.prompts_only or (origin.preset is not None and origin.preset.prompts_only)
    reason = _unwanted(conversation, options)
    if reason:
        ledger.drop("filtered", line.place, conversation.id, reason)
        return None
    if prompts_only:
        return first_prompt(conversation)
    return join_runs(cut_turns(conversation, options.max_turns) if options.max_turns else conversation)


def _unwanted(conversation: Conversation, options: Prepare) -> str:
    if conversation.user_turns < options.min_turns:
        return f"fewer than {options.min_turns} user turns"
    if options.max_prompt_words and len(conversation.prompt.split()) > options.max_prompt_words:
        return f"first user message longer than {options.max_prompt_words} words"
    return ""


@dataclass
class Seen:
    """Contents and ids so far, as digests: some hundred bytes a row whatever the row's size."""

    digests: dict[bytes, str] = field(default_factory=dict)
    ids: set[bytes] = field(default_factory=set)

    def content(self, conversation: Conversation, place: str) -> str | None:
        """Where equal messages stood before, if they did."""
        digest = conversation.digest()
        first = self.digests.get(digest)
        if first is None:
            self.digests[digest] = place
        return first

    def unique_id(self, conversation: Conversation, fallback: str) -> Conversation:
        """The conversation under an id that no earlier row has."""
        name, number = conversation.id or fallback, 1
        while (digest := hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=12).digest()) in self.ids:
            number += 1
            name = f"{conversation.id or fallback}~{number}"
        self.ids.add(digest)
        repairs = (*conversation.repairs, *(("id made unique",) if number > 1 else ()))
        return replace(conversation, id=name, repairs=repairs)


def _spool(rows: IO[bytes], conversations: Iterator[Conversation]) -> array[int]:
    """Write rows one after the other; returns where each begins, and the end."""
    offsets = array("Q", [0])
    for conversation in conversations:
        encoded = json.dumps(conversation.to_row(), ensure_ascii=False).encode() + b"\n"
        rows.write(encoded)
        offsets.append(offsets[-1] + len(encoded))
    return offsets


def _draw(count: int, options: Prepare, ledger: Ledger) -> tuple[list[int], list[int]]:
    """Row numbers for training and evaluation, each in the source's order."""
    rng = random.Random(options.seed)
    kept: Sequence[int] = range(count)
    if options.sample_size is not None and options.sample_size < count:
        kept = sorted(rng.sample(range(count), options.sample_size))
        ledger.left_out["not sampled"] = count - len(kept)
    if not options.split_eval or len(kept) < 2:
        return list(kept), []
    held_out = set(rng.sample(kept, min(EVAL_MOST, max(1, round(EVAL_SHARE * len(kept))))))
    return [row for row in kept if row not in held_out], sorted(held_out)


def _copy(rows: IO[bytes], offsets: array[int], chosen: Sequence[int], path: Path) -> None:
    with writing(path, "wb") as f:
        for row in chosen:
            rows.seek(offsets[row])
            f.write(rows.read(offsets[row + 1] - offsets[row]))
