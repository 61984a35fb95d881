"""Paths that are read or written: whether they are there, are of the right kind, and can be written."""

from __future__ import annotations

import difflib
import errno
import os
import tempfile
from pathlib import Path

from eagle3cli.errors import DataError, Eagle3Error
from eagle3cli.runtime.files import disk_error


def similar_path(path: Path) -> Path | None:
    """The path that somebody who mistyped ``path`` meant: each part that is not there, by its likest neighbour."""
    nearest = Path(path.anchor)
    for part in path.parts[1 if path.anchor else 0 :]:
        if (nearest / part).exists():
            nearest = nearest / part
            continue
        try:
            neighbours = [entry.name for entry in nearest.iterdir() if not entry.name.startswith(".")]
        except OSError:
            return None
        close = difflib.get_close_matches(part, neighbours, n=1, cutoff=0.7)
        if not close:
            return None
        nearest = nearest / close[0]
    return nearest if nearest != path else None


def fix_for(path: Path, otherwise: str) -> str:
    """How to fix a path that is not there: the one that was meant, else ``otherwise``."""
    similar = similar_path(path)
    return f"did you mean {similar}? else {otherwise}" if similar is not None else otherwise


def check_file(path: Path, flag: str, *, may_be_empty: bool = False) -> None:
    """Raise DataError where ``path`` is no file with something in it that can be read."""
    if path.is_dir():
        files = sorted(file.name for file in path.iterdir() if file.suffix in (".jsonl", ".json", ".parquet"))
        fix = f"give one of its files, e.g. {flag} {path / files[0]}" if files else f"give a file: check {flag}"
        raise DataError("not-a-file", "is a folder, not a file", where=str(path), fix=fix)
    if not path.exists():
        raise DataError("no-such-path", "no such file", where=str(path), fix=fix_for(path, f"check {flag}"))
    if path.is_file() and path.stat().st_size == 0 and not may_be_empty:
        raise DataError("no-rows", "the file is empty", where=str(path), fix=f"give a file with rows: check {flag}")
    _check_readable(path)


def check_folder(path: Path, flag: str) -> None:
    """Raise DataError where ``path`` is no folder that can be read."""
    if not path.exists():
        raise DataError("no-such-path", "no such folder", where=str(path), fix=fix_for(path, f"check {flag}"))
    if not path.is_dir():
        raise DataError(
            "not-a-file",
            "is a file, not a folder",
            where=str(path),
            fix=f"give the folder that it lies in: check {flag}",
        )
    _check_readable(path)


def check_input(path: Path, flag: str) -> None:
    """Raise DataError where ``path`` is neither a file nor a folder that can be read."""
    if not path.exists():
        raise DataError("no-such-path", "no such file or folder", where=str(path), fix=fix_for(path, f"check {flag}"))
    _check_readable(path)


def _check_readable(path: Path) -> None:
    if not os.access(path, os.R_OK):
        raise DataError(
            "unreadable-file", "cannot be read: permission denied", where=str(path), fix=f"allow it: chmod u+r {path}"
        )


def check_output(path: Path, flag: str, *, folder: bool) -> None:
    """Raise Eagle3Error where a file or a folder cannot be written at ``path``; nothing is left there."""
    parent = path if path.exists() else next(p for p in path.absolute().parents if p.exists() or p.is_symlink())
    if path.exists() and path.is_dir() != folder:
        kind = "a folder, not a file" if path.is_dir() else "a file, not a folder"
        raise Eagle3Error("not-a-file", f"is {kind}", where=str(path), fix=f"choose another place with {flag}")
    if not path.exists() and not parent.is_dir():
        what = f"cannot be made: {parent} is a file, not a folder"
        raise Eagle3Error("cannot-write", what, where=str(path), fix=f"choose another place with {flag}")
    try:
        if path.exists():
            _ask_to_write(path)
        else:
            os.rmdir(tempfile.mkdtemp(prefix=".eagle3-", dir=parent))
    except OSError as error:
        if error.errno == errno.ENOENT:  # a file system that is none, such as /proc
            error.strerror = f"nothing can be made in {parent}"
        raise disk_error(error, path, flag) from error


def _ask_to_write(path: Path) -> None:
    """Raise OSError where ``path``, which exists, cannot be changed; nothing is written."""
    if os.access(path, os.W_OK):
        return
    read_only = hasattr(os, "ST_RDONLY") and os.statvfs(path).f_flag & os.ST_RDONLY
    number = errno.EROFS if read_only else errno.EACCES
    raise OSError(number, os.strerror(number), str(path))
