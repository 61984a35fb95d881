"""What something was made of, and what has changed since: digests of files and settings, told and refused alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle3cli.errors import DataError, UsageError

FileStat = dict[str, Any]
"""Size, times and inode of a file, and its ``sha256``."""


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content; raises DataError where it cannot be read."""
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def describe_file(path: Path, earlier: Mapping[str, FileStat] | None = None) -> FileStat:
    """Content hash of a file, with what tells cheaply that it is still the same file.

    ``earlier`` holds descriptions by absolute path; an untouched file is not read again.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    # The change time and inode cannot be kept by a copy over the file, unlike size and modification time.
    cheap = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns, "inode": stat.st_ino}
    before = (earlier or {}).get(str(path.resolve()))
    if before and all(before.get(key) == value for key, value in cheap.items()):
        return before
    return {**cheap, "sha256": digest_file(path)}


def describe_files(paths: Iterable[Path], earlier: Mapping[str, FileStat] | None = None) -> dict[str, FileStat]:
    """:func:`describe_file` of several files by absolute path."""
    return {str(path.resolve()): describe_file(path, earlier) for path in paths}


def digest_json(value: Any, *, sort_keys: bool = True) -> str:
    """The first 16 hex digits of the SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=sort_keys).encode()).hexdigest()[:16]


def json_value(value: Any) -> Any:
    """A value as it will be when it is read back from a JSON file."""
    return json.loads(json.dumps(value))


def changes(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    keys: Iterable[str] | None = None,
    absent: Any = None,
    text: str = "{key} was {was!r}, is {now!r}",
) -> list[str]:
    """A ``text`` for each of ``keys`` (all, sorted, unless given) whose values differ; what is absent counts as None.

    ``absent`` is shown in the place of a value that is not there.

    >>> changes({"seed": 1, "lr": 0.1}, {"seed": 2, "lr": 0.1})
    ['seed was 1, is 2']
    """
    compared = sorted(before.keys() | now.keys()) if keys is None else keys
    return [
        text.format(key=key, was=before.get(key, absent), now=now.get(key, absent))
        for key in compared
        if before.get(key) != now.get(key)
    ]


@dataclass(frozen=True)
class Change:
    """A value that is not what it was."""

    key: str
    was: Any
    now: Any


def compared(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What differs among the keys that both have, in their order."""
    return [Change(key, before[key], now[key]) for key in before if key in now and before[key] != now[key]]


def changes_table(changed: Sequence[Change]) -> str:
    """Key, was and is of each change as a small table of text, which begins a new line."""
    rows = [("key", "was", "is"), *((c.key, _shown(c.was), _shown(c.now)) for c in changed)]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "".join(f"\n  {key:<{widths[0]}}  {was:<{widths[1]}}  {now}" for key, was, now in rows)


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)


def refuse_changes(
    changed: Sequence[str], where: str, fix: str, *, what: str = "made with other settings", joint: str = ", "
) -> None:
    """Raise UsageError where there are :func:`changes`."""
    if changed:
        raise UsageError("made-differently", f"{what}: {joint.join(changed)}", where=where, fix=fix)


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError("unreadable-file", f"cannot read: {error.strerror}", where=str(path), fix="check the path")
