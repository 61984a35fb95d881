"""Whether the rows of a run hold the target's own replies: meters at its sources, and what is told of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eagle3cli.backends.batches.batch import BatchSource
from eagle3cli.backends.batches.online import OnlineSource
from eagle3cli.backends.batches.store import StoreSource
from eagle3cli.backends.roles.source import RemoteSource
from eagle3cli.backends.target.on_policy import OnPolicyMeter
from eagle3cli.data.inspect.selection import matching_cache
from eagle3cli.data.tokens.on_policy import FEWEST_TOKENS, lines, warning
from eagle3cli.data.tokens.rows import TokenRows
from eagle3cli.errors import Eagle3Error
from eagle3cli.runtime.report import Reporter

Meters = dict[str, OnPolicyMeter]
"""By split."""


def put_meters(sources: dict[str, BatchSource | None], *, cache: Path | None, caches: Path, target: str) -> Meters:
    """A meter for each source, by split. ``cache`` holds the rows of a live target, ``caches`` those that stores may
    have been captured from; ``target`` is its fingerprint."""
    meters: Meters = {}
    for split, source in sources.items():
        if isinstance(source, OnlineSource | RemoteSource) and cache is not None:
            meters[split] = OnPolicyMeter(len(source.rows), target, source.rows.sources, cache / split)
            source.meter = meters[split]
        elif isinstance(source, StoreSource):
            meters[split] = source.meter = _store_meter(source, caches, target)
    return meters


def _store_meter(source: StoreSource, caches: Path, target: str) -> OnPolicyMeter:
    """Rows of several stores are told apart by them; those of one as its cache does, where that still is."""
    stores = source.stores.stores
    if len(stores) > 1:
        named = [str(store.folder) for store in stores for _ in range(len(store))]
        return OnPolicyMeter(len(source.lengths), target, named)
    folder = matching_cache(stores[0], caches)
    rows = None if folder is None else TokenRows.open(folder)
    if rows is None or len(rows) != len(source.lengths):
        return OnPolicyMeter(len(source.lengths), target)
    return OnPolicyMeter(len(rows), target, rows.sources, folder)


def summaries(meters: Meters) -> dict[str, Any]:
    """What is known by now, by split; splits without a judged token are left out."""
    by_split = {split: meter.summary() for split, meter in meters.items()}
    return {split: summary for split, summary in by_split.items() if summary["tokens"]}


class OnPolicyWatch:
    """Tells once, as soon as enough is known, where replies are not the target's own; at the end keeps all of it."""

    def __init__(self, meters: Meters, report: Reporter) -> None:
        self.meters = meters
        self.report = report
        self._warned: set[str] = set()
        self._next_step = 0

    def listen(self, event: str, numbers: dict[str, Any]) -> None:
        """A listener of the trainer's."""
        if event == "step" and numbers["step"] < self._next_step:
            return
        if event in ("step", "eval"):
            # Soon at first, then ever more rarely: it goes over all rows.
            self._next_step = 2 * numbers["step"]
            self._warn(summaries({split: m for split, m in self.meters.items() if split not in self._warned}))

    def _warn(self, known: dict[str, Any]) -> None:
        for split, summary in known.items():
            if split in self._warned or summary["tokens"] < FEWEST_TOKENS:
                continue
            if text := warning(summary, split):
                self._warned.add(split)
                self.report.warn(text)

    def finish(self) -> None:
        """Say it for people, and keep it beside the rows; what cannot be written stops nothing."""
        known = summaries(self.meters)
        self._warn(known)
        for split, summary in known.items():
            for line in lines(summary):
                self.report.info(f"{split}, {line.strip()}")
        for meter in self.meters.values():
            try:
                meter.save()
            except Eagle3Error as error:
                self.report.warn(f"how far replies are the target's own was not kept: {error}")
