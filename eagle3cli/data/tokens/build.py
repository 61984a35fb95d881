"""Fills the folder of a cache: every split tokenized, counted, and told where a row needs a look."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import save

from eagle3cli.data.ledger import ERRORS, Ledger
from eagle3cli.data.sources.files import format_of
from eagle3cli.data.tokens.blocks import EncoderConfig, PackedBlock
from eagle3cli.data.tokens.counts import Counts, add_counts, no_counts
from eagle3cli.data.tokens.encode import NO_SPAN
from eagle3cli.data.tokens.lengths import kept_summary, no_rows
from eagle3cli.data.tokens.rows import write_rows
from eagle3cli.data.tokens.workers import block_tokenizer, processes_for
from eagle3cli.errors import DataError
from eagle3cli.runtime.cpus import available_cpus
from eagle3cli.runtime.files import write_json
from eagle3cli.runtime.report import ProgressBar, Reporter
from eagle3cli.runtime.stop import Stop, catch_stop

SUMMARY = "summary.json"
JUDGED = "judged"
"""Key of the summary for what the judge of the masks said."""
COUNTS = "counts.safetensors"
ASIDE = 20
"""Each row of this number is counted apart, so that what a vocabulary covers can be judged by rows that did not choose
it where there is no evaluation file."""


def build(
    folder: Path,
    key: str,
    paths: Mapping[str, Path],
    config: EncoderConfig,
    num_proc: int,
    report: Reporter,
    *,
    judge: bool = False,
) -> None:
    """Write rows, counts, errors and, last, the summary of all splits below ``folder``.

    With ``judge`` a sample's masks are judged first; raises what :func:`check_masks` raises.
    """
    size = sum(path.stat().st_size for path in paths.values())
    summary: dict[str, Any] = {"model_path": config.model_path, "chat_template": config.chat_template}
    summary["max_length"] = config.max_length
    counts: dict[str, Counts] = {}
    with (
        (folder / ERRORS).open("w", encoding="utf-8") as errors,
        block_tokenizer(config, processes_for(size, num_proc or len(available_cpus()))) as tokens,
    ):
        summary["always_ids"] = tokens.always_ids
        if judge:
            summary[JUDGED] = tokens.judged(paths)
        for split, path in paths.items():
            counter = _SplitCounter(path, Ledger(errors), config.max_length)
            with report.task(f"tokenising {split}", _lines(path)) as task, catch_stop(report) as stop:
                batches = _batches(tokens.blocks(path), counter, task, stop)
                write_rows(folder / split, batches, fingerprint=f"{key}-{split}")
            summary[split] = counter.summary()
            counts |= {f"{split}_{name}": array for name, array in counter.counts.items()}
            if counter.no_span:
                text = f"({counter.no_span} of {counter.ledger.written} rows of {split}; they train nothing)"
                report.warn(f"{NO_SPAN} {text}")
    (folder / COUNTS).write_bytes(save(counts))
    summary["files"] = {str(path.relative_to(folder)): path.stat().st_size for path in _files(folder)}
    write_json(folder / SUMMARY, summary)


def damage(folder: Path, summary: Mapping[str, Any]) -> str | None:
    """What is wrong with a built folder: a file that is gone or has another size than it had; None if nothing."""
    try:
        for name, size in summary["files"].items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} bytes, not {size:,}"
    except (KeyError, TypeError, AttributeError):
        return f"{SUMMARY} is not one of a cache"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _lines(path: Path) -> int | None:
    """How many lines there are to tokenize, for the progress; None where that is not told without parsing."""
    with path.open("rb") as f:
        if format_of(path) != "lines" or f.read(4)[:2] in (b"\x1f\x8b", b"\x28\xb5"):
            return None
        f.seek(0)
        lines = 0
        last = b""
        while block := f.read(1 << 20):
            lines += block.count(b"\n")
            last = block
        return lines + (not last.endswith(b"\n"))


def _batches(
    blocks: Iterator[PackedBlock], counter: _SplitCounter, task: ProgressBar, stop: Stop
) -> Iterator[pa.RecordBatch]:
    for block in blocks:
        stop.check("nothing was kept; the cache will be built from the start")
        yield counter.take(block)
        task.advance(block.read)


class _SplitCounter:
    """Counts of one split while its blocks pass."""

    def __init__(self, path: Path, ledger: Ledger, max_length: int) -> None:
        self.path = path
        self.ledger = ledger
        self.max_length = max_length
        self.kept = no_rows()
        self.counts = {name: no_counts() for name in ("reply", "prompt", "reply_aside", "prompt_aside")}
        self.tokens = self.loss_tokens = self.truncated = self.no_span = self.longest = 0

    def take(self, block: PackedBlock) -> pa.RecordBatch:
        ids = block.batch.column("input_ids").values.to_numpy()
        trained = block.batch.column("loss_mask").values.to_numpy().astype(bool)
        lengths = np.diff(block.batch.column("input_ids").offsets.to_numpy())
        aside = np.repeat((self.ledger.written + np.arange(len(lengths))) % ASIDE == 0, lengths)
        for name, here in (("reply", trained), ("prompt", ~trained)):
            self.counts[name] = add_counts(self.counts[name], ids[here])
            self.counts[f"{name}_aside"] = add_counts(self.counts[f"{name}_aside"], ids[here & aside])
        self.tokens += len(ids)
        self.loss_tokens += int(trained.sum())
        self.truncated += block.truncated
        self.kept += block.kept
        self.no_span += len(block.no_span)
        self.longest = max([self.longest, *lengths.tolist()])
        self.ledger.read += block.read
        self.ledger.written += block.batch.num_rows
        self._record(block)
        return block.batch

    def _record(self, block: PackedBlock) -> None:
        """Rejected, repaired and idle rows to the ledger, in the order of the file."""
        entries: list[tuple[int, Callable[..., None]]] = []
        for line, name, reason in block.rejected:
            entries.append((line, partial(self.ledger.drop, "rejected", name=name, reason=reason)))
        for line, name, repairs in block.repairs:
            entries.append((line, partial(self.ledger.repair, repairs, name=name)))
        for line, name in block.no_span:
            entries.append((line, partial(self.ledger.drop, "warning", name=name, reason=NO_SPAN)))
        for line, write in sorted(entries, key=itemgetter(0)):
            write(place=f"{self.path}:{line}")

    def summary(self) -> dict[str, Any]:
        if not self.ledger.written:
            reasons = (
                "; ".join(f"{n} x {why}" for why, n in self.ledger.summary()["reasons"].items()) or "it has no rows"
            )
            raise DataError(
                "no-rows",
                f"no usable rows ({reasons})",
                where=str(self.path),
                fix="rows are made by `eagle3 prepare` and `eagle3 regenerate`",
            )
        counts = self.ledger.summary()
        for unused in ("duplicates", "filtered", "left_out"):
            del counts[unused]
        return {
            "rows": self.ledger.written,
            "tokens": self.tokens,
            "loss_tokens": self.loss_tokens,
            "longest": self.longest,
            "truncated": self.truncated,
            "kept": kept_summary(self.kept, self.max_length),
            "no_span": self.no_span,
            **counts,
        }
