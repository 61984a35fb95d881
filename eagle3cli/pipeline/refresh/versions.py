"""The versions of a served draft: one folder each, a link to the one that is served, and a ledger of what was tried.

    DRAFT                      a link to DRAFT.versions/vN; the folder itself until the first version is promoted
    DRAFT.versions/vN/         a draft folder, whole or absent
    DRAFT.versions/data/N/     the rows of refresh N, the hashes of its prompts, and its line of the ledger; of a first
                               version what it was trained on
    DRAFT.versions/ledger.jsonl

Servers read DRAFT when they start; it names a whole folder at every moment. The order of a promotion is: the version's
folder, its data (from here on the decision stands), the link, the ledger's line. A later start finishes what a kill
left between two of them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eagle3cli.errors import UsageError
from eagle3cli.runtime.files import append, disk_error, exchange, locked, remove, sync_tree, write_folder, write_json
from eagle3cli.runtime.manifest import remove_leftovers
from eagle3cli.runtime.provenance import digest_file, digest_json

LEDGER = "ledger.jsonl"
ENTRY = "entry.json"
PROMPTS = "prompts.txt"
BASE, REFRESH, ROLLBACK = "base", "refresh", "rollback"

Entry = dict[str, Any]
"""A line of the ledger: ``version``, ``event``, ``date``, ``parent``, and what its event knows besides."""


class Versions:
    """The versions of the draft that servers read at ``draft``. Change them only within :meth:`held`."""

    def __init__(self, draft: Path) -> None:
        self.draft = Path(os.path.abspath(draft))  # absolute, and a link stays one
        self.folder = self.draft.with_name(f"{self.draft.name}.versions")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep a second refresh out, and finish what a killed one had decided.

        Raises UsageError where another process holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        fix = "wait for it to end; cron starts the next one"
        busy = UsageError("locked", "another refresh of this draft is under way", where=str(self.folder), fix=fix)
        with locked(self.folder / ".lock", busy):
            for folder in (self.folder, self.folder / "data"):
                remove_leftovers(folder)
            self._tidy()
            self._finish()
            yield

    def entries(self) -> list[Entry]:
        """The lines of the ledger; one that a kill cut short is not there."""
        try:
            lines = (self.folder / LEDGER).read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        entries = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            with suppress(ValueError, RecursionError):
                entry = json.loads(line)
                if _is_entry(entry):
                    entries.append(entry)
                    continue
            if number < len(lines):
                fix = "remove the line, or put the ledger's last whole copy there"
                raise UsageError(
                    "damaged-file", "not a line of a ledger", where=f"{self.folder / LEDGER}:{number}", fix=fix
                )
        return entries

    def current(self) -> int | None:
        """The version that is served; None for a folder that no refresh has seen."""
        linked = self._linked()
        if linked is not None:
            return linked
        weights = weights_digest(self.draft)
        known = [entry for entry in self.entries() if entry["event"] == BASE and entry.get("weights") == weights]
        return int(known[-1]["version"]) if known else None

    def begin(self) -> int:
        """The version that is served; a folder that is new here gets a number and a line in the ledger."""
        version = self.current()
        if version is None:
            version = self.next_version()
            self.tell({"version": version, "event": BASE, "parent": None, "weights": weights_digest(self.draft)})
        return version

    def next_version(self) -> int:
        """A number that no version has had."""
        used = [int(entry["version"]) for entry in self.entries()]
        used += [int(path.name) for path in (self.folder / "data").glob("*") if path.name.isdecimal()]
        return max(used, default=-1) + 1

    def path(self, version: int) -> Path:
        """The folder of a version."""
        return self.folder / f"v{version}"

    def data(self, version: int) -> Path:
        """The folder of what a refresh learned from."""
        return self.folder / "data" / str(version)

    def seen(self) -> set[str]:
        """Hashes of the prompts that earlier refreshes have read, used or not."""
        texts = (path.read_text(encoding="ascii", errors="replace") for path in self.folder.glob(f"data/*/{PROMPTS}"))
        return {line for text in texts for line in text.split()}

    def ancestors(self, version: int) -> list[int]:
        """The version and those it was trained on from, newest first."""
        parents = {int(entry["version"]): entry.get("parent") for entry in self.entries() if entry["event"] != ROLLBACK}
        found: list[int] = []
        at: int | None = version
        while at is not None and at not in found:
            found.append(at)
            at = parents.get(at)
        return found

    def commit(self, entry: Entry, candidate: Path | None, files: Mapping[str, Path], prompts: list[str]) -> None:
        """Keep a decision: with ``candidate``, a draft folder that is moved here, the version is promoted.

        ``files`` are the rows to keep, by name.
        """
        version = int(entry["version"])
        dated = _dated(entry)
        if candidate is not None:
            remove(self.path(version))
            sync_tree(candidate)
            candidate.rename(self.path(version))

        def fill(folder: Path) -> None:
            for name, path in files.items():
                shutil.copyfile(path, folder / name)
            (folder / PROMPTS).write_text("".join(f"{key}\n" for key in prompts), encoding="ascii")
            write_json(folder / ENTRY, dated)

        write_folder(self.data(version), fill)
        if candidate is not None:
            self.serve(version)
        self._append(dated)

    def serve(self, version: int) -> None:
        """Have DRAFT be this version from now on; a server sees the one before or this one, whole.

        A folder that stands there becomes a version of its own first. Raises UsageError where there is no such version.
        """
        if not (self.path(version) / "config.json").is_file():
            there = sorted(int(path.name[1:]) for path in self.folder.glob("v*") if path.name[1:].isdecimal())
            have = ", ".join(map(str, there)) or "none: no version was promoted yet"
            what = f"version {version} is not there (there are: {have})"
            raise UsageError("unknown-name", what, where=str(self.folder), fix="name one of them")
        if self._linked() is None:  # a folder, or somebody's link to one
            base = self.begin()
            if not self.path(base).exists():
                write_folder(self.path(base), self._copy)
        link = self.draft.with_name(f".{self.draft.name}.tmp-{os.getpid()}")
        remove(link)
        try:
            link.symlink_to(Path(self.folder.name) / f"v{version}", target_is_directory=True)
            if self.draft.is_symlink():
                link.replace(self.draft)
            else:
                exchange(link, self.draft)
                remove(link)  # the folder that was there: it is a version now
        except OSError as error:
            raise disk_error(error, self.draft) from error

    def rollback(self, wanted: str) -> Entry:
        """Serve an earlier version again: ``wanted`` is its number, or ``parent`` for what was served before this one.

        Raises UsageError where there is none.
        """
        current = self.current()
        if current is None:
            raise UsageError(
                "unknown-name",
                "no version was promoted yet",
                where=str(self.draft),
                fix="there is nothing to go back to",
            )
        parents = self.ancestors(current)[1:]
        number = wanted.removeprefix("v")
        if wanted == "parent" and not parents:
            raise UsageError(
                "unknown-name", f"version {current} is the first one", where="--rollback", fix="name a version"
            )
        if wanted != "parent" and not number.isdecimal():
            raise UsageError(
                "unknown-name", f"{wanted!r} is no version", where="--rollback", fix="give its number, or nothing"
            )
        version = parents[0] if wanted == "parent" else int(number)
        if version != current:
            self.serve(version)
            self.tell({"version": version, "event": ROLLBACK, "from": current})
        return {"version": version, "from": current}

    def prune(self, keep: int) -> list[int]:
        """Remove all but the newest ``keep`` versions, the first, the served one and its parent; those removed."""
        there = sorted(int(path.name[1:]) for path in self.folder.glob("v*") if path.name[1:].isdecimal())
        stay = {*there[:1], *there[-keep:], *self.ancestors(self.begin())[:2]}
        gone = [version for version in there if version not in stay]
        for version in gone:
            remove(self.path(version))
        return gone

    def tell(self, entry: Entry) -> None:
        """Add a line to the ledger."""
        self._append(_dated(entry))

    def _append(self, dated: Entry) -> None:
        path = self.folder / LEDGER
        try:
            text = path.read_bytes() if path.exists() else b""
            if not text.endswith(b"\n"):  # a kill cut the last line off, and what it would have said is told again
                with path.open("ab") as file:
                    file.truncate(text.rfind(b"\n") + 1)
            append(path, json.dumps(dated, ensure_ascii=False) + "\n")
        except OSError as error:
            raise disk_error(error, path) from error

    def _copy(self, folder: Path) -> None:
        shutil.copytree(self.draft, folder, dirs_exist_ok=True)

    def _linked(self) -> int | None:
        """The version that DRAFT is a link to; None where it is something else."""
        if not self.draft.is_symlink():
            return None
        place = self.draft.readlink()
        named = self.draft.parent / place
        known = named.parent == self.folder and named.name[:1] == "v" and named.name[1:].isdecimal()
        return int(named.name[1:]) if known else None

    def _tidy(self) -> None:
        """Bring back a folder that a kill left between two renames, and remove the links of killed promotions."""
        for old in self.draft.parent.glob(f".{self.draft.name}.old-*"):
            if self.draft.exists() or self.draft.is_symlink():
                remove(old)
            else:
                old.rename(self.draft)
        for link in self.draft.parent.glob(f".{self.draft.name}.tmp-*"):
            remove(link)

    def _finish(self) -> None:
        """Do what is left of decisions that a kill came between: the link, then the ledger's line."""
        told = {int(entry["version"]) for entry in self.entries() if entry["event"] == REFRESH}
        for place in sorted((self.folder / "data").glob(f"*/{ENTRY}"), key=lambda path: path.parent.name.zfill(9)):
            version = int(place.parent.name) if place.parent.name.isdecimal() else -1
            if version in told:
                continue
            entry: Any = None
            with suppress(ValueError, RecursionError):
                entry = json.loads(place.read_bytes())
            if not _is_entry(entry) or entry["version"] != version:
                fix = f"remove {place.parent}: the ledger has no line of it"
                raise UsageError("damaged-file", "not the decision of a refresh", where=str(place), fix=fix)
            if entry.get("promoted"):
                self.serve(version)
            self._append(entry)


def weights_digest(folder: Path) -> str:
    """16 hex digits that tell one draft from another by the content of its weight files."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    return digest_json([[path.name, digest_file(path)] for path in files])


def _is_entry(value: Any) -> bool:
    """Whether a JSON value is a line of a ledger."""
    return isinstance(value, dict) and type(value.get("version")) is int and isinstance(value.get("event"), str)


def _dated(entry: Entry) -> Entry:
    head = {"version": entry["version"], "event": entry["event"]}
    return {**head, "date": datetime.now(UTC).isoformat(timespec="seconds"), **entry}
