"""What a stage was made of: inputs by content, options, outputs. The same command again finds it and is done."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from eagle3cli.errors import DataError, Eagle3Error, UsageError
from eagle3cli.runtime.files import read_json, write_json

Stat = dict[str, Any]


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content; raises DataError where it cannot be read."""
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", where=str(path), fix="check the path") from error


def describe_file(path: Path, known: Mapping[str, Stat] | None = None) -> Stat:
    """Content hash of a file, with what tells cheaply that it is still the same file.

    ``known`` holds earlier descriptions by absolute path; an untouched file is not read again.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", where=str(path), fix="check the path") from error
    # The change time and inode cannot be kept by a copy over the file, unlike size and modification time.
    cheap = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns, "inode": stat.st_ino}
    before = (known or {}).get(str(path.resolve()))
    if before and all(before.get(key) == value for key, value in cheap.items()):
        return before
    return {**cheap, "sha256": digest_file(path)}


def describe(paths: Iterable[Path], known: Mapping[str, Stat] | None = None) -> dict[str, Stat]:
    """:func:`describe_file` of several files by absolute path."""
    return {str(path.resolve()): describe_file(path, known) for path in paths}


def finished(path: Path, options: Mapping[str, Any], inputs: Iterable[Path]) -> dict[str, Any] | None:
    """The manifest of a finished run with equal options and inputs whose outputs still stand, else None."""
    try:
        manifest: dict[str, Any] = read_json(path)
        before = manifest["inputs"]
        if manifest["state"] != "finished" or manifest["options"] != dict(options):
            return None
        now = describe(inputs, before)
        if {name: stat["sha256"] for name, stat in now.items()} != {
            name: stat["sha256"] for name, stat in before.items()
        }:
            return None
        outputs = manifest["outputs"]
        return manifest if all((path.parent / name).stat().st_size == size for name, size in outputs.items()) else None
    except (Eagle3Error, OSError, KeyError, TypeError, AttributeError):
        return None


def begin(path: Path, outputs: Iterable[str], *, overwrite: bool) -> None:
    """Claim the outputs beside ``path`` for a new run.

    Raises UsageError where they exist, unless the user said --overwrite or an interrupted run left them.
    """
    refuse_standing(path, outputs, overwrite=overwrite)
    remove_leftovers(path.parent)
    write_json(path, {"state": "unfinished"})


def refuse_standing(path: Path, outputs: Iterable[str], *, overwrite: bool) -> None:
    """Raise as :func:`begin` would; changes nothing."""
    interrupted = False
    with suppress(Eagle3Error, AttributeError):
        interrupted = read_json(path).get("state") == "unfinished"
    standing = next((path.parent / name for name in outputs if (path.parent / name).exists()), None)
    if standing is not None and not overwrite and not interrupted:
        fix = "choose another place, or pass --overwrite"
        raise UsageError("already exists, made from other inputs or with other options", where=str(standing), fix=fix)


def finish(
    path: Path,
    options: Mapping[str, Any],
    inputs: Mapping[str, Stat],
    outputs: Iterable[str],
    summary: Mapping[str, Any],
) -> None:
    """Record a finished run."""
    sizes = {name: (path.parent / name).stat().st_size for name in outputs}
    record = {
        "state": "finished",
        "options": dict(options),
        "inputs": dict(inputs),
        "outputs": sizes,
        "summary": dict(summary),
    }
    write_json(path, record)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders that killed runs left in ``folder``; what one had set aside comes back."""
    for path in folder.glob(".*-*"):
        found = re.fullmatch(r"\.(.+)\.(tmp|old)-(\d+)", path.name)
        if not found or _alive(int(found[3])):
            continue
        if found[2] == "old" and not (folder / found[1]).exists():  # killed between the two renames of a replacement
            path.rename(folder / found[1])
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
