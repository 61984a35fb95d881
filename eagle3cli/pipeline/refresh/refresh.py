"""``eagle3 refresh``: logs to rows, rows to a new draft, and a decision that the ledger keeps."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eagle3cli.cli.preflight.target import check_target
from eagle3cli.console.out import Out
from eagle3cli.data.ledger import ERRORS, Ledger
from eagle3cli.data.sources.lines import read_raw_lines
from eagle3cli.data.traffic.exchange import short_name
from eagle3cli.data.traffic.logs import read_logs
from eagle3cli.data.traffic.select import Traffic, select
from eagle3cli.errors import UsageError
from eagle3cli.pipeline.refresh.budget import Budget
from eagle3cli.pipeline.refresh.decision import (
    EARLIER,
    OLD,
    TRAFFIC,
    Acceptance,
    best_before,
    choice,
    furthest,
    why_foreign,
    why_not,
)
from eagle3cli.pipeline.refresh.old_data import EVAL, TRAIN, draw, find_run, keep_old_data, with_run_settings
from eagle3cli.pipeline.refresh.rows import FOREIGN, REGENERATED, UNJUDGED, Sorted, sort_rows, write_shard
from eagle3cli.pipeline.refresh.stages import Work
from eagle3cli.pipeline.refresh.versions import REFRESH, Entry, Versions
from eagle3cli.pipeline.stages import StageOut
from eagle3cli.runtime.files import read_json, remove, write_json, writing
from eagle3cli.runtime.provenance import digest_file, digest_json
from eagle3cli.runtime.stop import Stop, catch_stop
from eagle3cli.runtime.units import parse_duration

if TYPE_CHECKING:
    from eagle3cli.settings.tables import Settings

KEY = "key.json"
NEW = "new.jsonl"


@dataclass
class Refreshed:
    """What came of one call: a line of the ledger where something was decided, else why nothing was."""

    entry: Entry | None
    state: str
    rows: dict[str, Any]
    errors: Path | None = None
    target: str = ""

    @property
    def promoted(self) -> bool:
        """Whether the new draft is served now."""
        return self.entry is not None and bool(self.entry.get("promoted"))


def refresh(settings: Settings, draft: Path, out: Out) -> Refreshed:
    """Train the served draft on with what is new in the logs, and promote what comes out if it is better.

    Raises UsageError where another refresh holds the draft, or where what it was trained on is not known.
    """
    versions = Versions(draft)
    with versions.held(), catch_stop(out) as stop:
        parent = versions.begin()
        logs = {str(path): digest_file(path) for path in settings.refresh.logs}
        known = {digest for entry in versions.entries() for digest in (entry.get("logs") or {}).values()}
        new = [path for path in settings.refresh.logs if logs[str(path)] not in known]
        if not new:
            remove(versions.folder / "work")
            return Refreshed(None, "nothing new: earlier refreshes have read these logs", {})
        kept = versions.data(versions.ancestors(parent)[-1])
        run, places = find_run(settings, draft, kept)
        if run is not None:
            settings = with_run_settings(settings, run)
        if not settings.target.model_path:
            fix = f"give --target-model-path, or one of these files: {', '.join(places)}"
            raise UsageError("missing-target", "the target of this draft is not known", where=str(draft), fix=fix)
        check_target(settings, weights=True, tokenizer=True)
        keep_old_data(settings, run, places, kept, out)
        return _Refresh(versions, settings, parent, out, stop).run(new, {str(path): logs[str(path)] for path in new})


class _Refresh:
    """One refresh of a draft whose versions are held."""

    def __init__(self, versions: Versions, settings: Settings, parent: int, out: Out, stop: Stop) -> None:
        self.versions = versions
        self.settings = settings
        self.parent = parent
        self.version = versions.next_version()
        self.out = out
        self.stop = stop
        self.folder = versions.folder / "work"
        self.ancestors = versions.ancestors(parent)
        self.kept = versions.data(self.ancestors[-1])
        self.served = versions.draft.resolve()
        self.budget = Budget(parse_duration(settings.refresh.time_budget))

    def run(self, paths: list[Path], logs: dict[str, str]) -> Refreshed:
        """From new logs to a decision."""
        options = self.settings.refresh
        traffic, rows = self._read(paths)
        entry: Entry = {"version": self.version, "event": REFRESH, "parent": self.parent, "logs": logs, "rows": rows}
        if traffic.rows < options.min_rows:
            state = f"waiting: {traffic.rows} new rows of at least {options.min_rows} (--min-rows)"
            return Refreshed(None, state, rows, self.folder / ERRORS)
        work = self._work()
        judged = self._judge(work)
        counts = judged.counts
        rows |= {"judged": dict(counts), "best_share": judged.best_share}
        foreign = why_foreign(counts.total() - counts[UNJUDGED], counts[FOREIGN], options)
        if foreign:
            return self._decide(entry, f"the logs are not trusted: {foreign}", None, {}, traffic)
        usable = self._usable(work, counts[REGENERATED], rows)
        if usable < options.min_rows:
            return self._decide(entry, f"{usable} usable rows of at least {options.min_rows}", None, {}, traffic)
        train, held_out = work.split(min(options.held_out_rows, usable // 5))
        self.stop.check(f"the work so far is in {self.folder}")
        trained = self._train(work, train, held_out, rows)
        self.stop.check(f"the work so far is in {self.folder}")
        tried: dict[float, Acceptance] = {}
        share, acceptance = furthest(self._measures(work, trained, held_out, tried), options)
        entry |= {"k": self.settings.run.k, "share": share, "acceptance": acceptance}
        entry |= {"tried": {f"{part:g}": measured for part, measured in tried.items()}}
        reason = why_not(acceptance, options)
        candidate = work.path("draft")
        files = {TRAIN: train, EVAL: held_out} if not reason else {}
        return self._decide(entry, reason, None if reason else candidate, files, traffic)

    def _read(self, paths: list[Path]) -> tuple[Traffic, dict[str, Any]]:
        """The new rows of the logs, in :data:`NEW`, and how many lines had which fate."""
        options = self.settings.refresh
        own_names = (self.settings.target.model_path, *options.model_names)
        self.folder.mkdir(exist_ok=True)
        with writing(self.folder / ERRORS) as errors:
            ledger = Ledger(errors)
            traffic = select(
                read_logs(paths),
                self.folder / NEW,
                ledger,
                seen=self.versions.seen(),
                names=frozenset(map(short_name, own_names)),
                sample_size=options.sample_size,
                client_share=options.client_share,
            )
        summary = ledger.summary()
        return traffic, {**summary, "origins": dict(traffic.origins), "clients": traffic.clients}

    def _work(self) -> Work:
        """The work folder of the new rows: what a killed refresh of the same ones, and of the same target, left there
        is used."""
        from eagle3cli.backends.target.head import fingerprint
        from eagle3cli.cli.local_target import with_local_target
        from eagle3cli.models.checkpoint import load_draft

        settings = self.settings.updated("refresh", logs=())
        values = settings.model_dump(mode="json")
        settings = settings.updated("data", cache_dir=self.versions.folder / "cache")
        settings = with_local_target(settings, self.out)
        target = fingerprint(settings.target.model_path, revision=settings.target.revision)
        key = digest_json([self.parent, digest_file(self.folder / NEW), target, values])
        if not (self.folder / KEY).is_file() or read_json(self.folder / KEY) != key:
            for path in self.folder.iterdir():
                if path.name not in (NEW, ERRORS):
                    remove(path)
            write_json(self.folder / KEY, key)
        (self.folder / NEW).replace(self.folder / "traffic.jsonl")
        config, _ = load_draft(self.served)
        return Work(self.folder, settings, self.served, config, StageOut(json_wanted=self.out.json_wanted))

    def _judge(self, work: Work) -> Sorted:
        """Whose the replies are, by one pass of the target."""
        from eagle3cli.training.eval.own_replies import judge_replies

        traffic = work.path("traffic.jsonl")
        began = time.monotonic()
        store = work.read_traffic()
        judged = judge_replies(work.rows_settings(traffic), work.config, self.out, self.stop, store)
        pace = work.path("pace.json")
        if pace.is_file():  # a killed refresh has judged them, and these seconds tell nothing
            self.budget.pace = read_json(pace)
        else:
            self.budget.told(traffic.stat().st_size, time.monotonic() - began)
            write_json(pace, self.budget.pace)
        return sort_rows(traffic, judged, work.config.vocab_size, self.folder)

    def _usable(self, work: Work, off_policy: int, rows: dict[str, Any]) -> int:
        """Have the target write what it did not, and put all of its rows into one shard; how many there are."""
        sources = [work.path("own.jsonl")]
        if off_policy and self.settings.refresh.off_policy == "regenerate":
            sources += sorted(work.regenerate().glob("shard_*.jsonl"))
        counts = write_shard(sources, work.path("shards", "shard_0-0.jsonl"))
        rows["usable"] = dict(counts)
        return counts["usable"]

    def _train(self, work: Work, train: Path, held_out: Path, rows: dict[str, Any]) -> Path:
        """Train on the rows of the logs and on old ones, as many as there is time for: the folder of the draft."""
        count = sum(1 for _ in read_raw_lines(train))
        measured = sum(path.stat().st_size for path in self._held_out_sets(held_out).values())
        path = self.folder / "rehearsed.jsonl"
        if not path.exists():  # else a killed refresh has chosen them, and their states may be there
            old = self._rehearsed(count)
            enough = self.budget.old_rows(old, measured)
            if enough < len(old):
                self.out.info(f"time for {enough:,} of {len(old):,} old rows (--time-budget)")
            old = old[:enough]
            with writing(path, "wb") as file:
                file.writelines(raw.rstrip(b"\r\n") + b"\n" for raw in old)
        rows |= {"trained_on": count, "rehearsed": sum(1 for _ in read_raw_lines(path))}
        return work.train(train, path, lambda: self.budget.training(measured))

    def _rehearsed(self, logs: int) -> list[bytes]:
        """For each row of the logs some of the old data and of earlier logs."""
        earlier = [self.versions.data(version) / TRAIN for version in self.ancestors]
        return draw(earlier, round(self.settings.refresh.rehearsal * logs), str(self.version))

    def _measures(
        self, work: Work, trained: Path, held_out: Path, tried: dict[float, Acceptance]
    ) -> Callable[[float], Acceptance]:
        """Writes the draft at a share of the way to the trained one, and measures it beside the served one; ``tried``
        gets what was measured."""
        sets = self._held_out_sets(held_out)
        before = self._acceptance(work, self.served, sets, "before")
        best = best_before(self.versions.entries(), self.ancestors, self.settings.run.k, before[OLD])

        def measure(share: float) -> Acceptance:
            candidate = work.export(work.part_of_the_way(trained, share))
            after = self._acceptance(work, candidate, sets, "after" if share == 1 else f"after {share:.0%} of the way")
            acceptance = {name: {"before": before[name], "after": after[name]} for name in sets}
            acceptance[OLD]["best"] = best
            tried[share] = acceptance
            return acceptance

        return measure

    def _held_out_sets(self, held_out: Path) -> dict[str, Path]:
        """The held-out rows of the logs, of the old data and of earlier logs."""
        sets = {TRAFFIC: held_out, OLD: self.kept / EVAL}
        logs_before = [self.versions.data(version) / EVAL for version in self.ancestors[:-1]]
        earlier = draw(logs_before, self.settings.refresh.held_out_rows, "eval")
        if earlier:
            sets[EARLIER] = self.folder / "earlier.jsonl"
            sets[EARLIER].write_bytes(b"".join(earlier))
        return sets

    def _acceptance(self, work: Work, draft: Path, sets: dict[str, Path], when: str) -> dict[str, float]:
        """Acceptance of a draft by set."""
        lengths = {}
        for name, rows in sets.items():
            self.stop.check(f"the work so far is in {self.folder}")
            self.out.info(f"acceptance on the {name} data {when}:")
            lengths[name] = round(work.acceptance(draft, rows, name, whole=name == OLD), 4)
        return lengths

    def _decide(
        self, entry: Entry, reason: str, candidate: Path | None, files: dict[str, Path], traffic: Traffic
    ) -> Refreshed:
        """Keep the decision, and have the new draft served where there is one."""
        entry |= {"promoted": candidate is not None, "reason": reason}
        self.versions.commit(entry, candidate, {**files, ERRORS: self.folder / ERRORS}, traffic.prompts)
        shutil.rmtree(self.folder, ignore_errors=True)
        gone = self.versions.prune(self.settings.refresh.keep_versions) if candidate is not None else []
        if gone:
            self.out.info(f"removed versions {', '.join(map(str, gone))} (--keep-versions)")
        state = f"version {self.version} is served" if candidate is not None else f"not promoted: {reason}"
        state += choice([float(part) for part in entry.get("tried", ())], promoted=candidate is not None)
        errors = self.versions.data(self.version) / ERRORS
        return Refreshed(entry, state, entry["rows"], errors, self.settings.target.model_path)
