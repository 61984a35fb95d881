"""Files that are either whole or absent: written under a temporary name, synced, renamed."""

from __future__ import annotations

import ctypes
import errno
import filecmp
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from eagle3cli.errors import DataError, Eagle3Error, UsageError

PATIENCE = 30.0
"""Seconds that the processes of a run that was killed get to end, before another one's folder is called taken."""
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)
"""What file systems say that know no locks, or none on a folder, which can be opened for reading alone."""


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp-{os.getpid()}")


@contextmanager
def writing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file; at the end of the block it becomes ``path``, or vanishes if the block raised.

    Raises Eagle3Error when the disk is full, naming the file and what to do.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        temporary.unlink(missing_ok=True)  # of a process that had our number; or a link that somebody put there
        new = mode.replace("w", "x")
        with temporary.open(new, encoding=None if "b" in mode else "utf-8", newline=None if "b" in mode else "\n") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
READ_ONLY = "the disk is read-only"


def disk_error(error: OSError, path: Path, flag: str | None = None) -> Eagle3Error:
    """The error people see when ``path``, which ``flag`` names, cannot be written."""
    reason = READ_ONLY if error.errno == errno.EROFS else error.strerror or str(error)
    elsewhere = f"choose another place with {flag}" if flag else "choose another folder"
    fix = f"make space (or {elsewhere}) and run the same command again; finished work is kept"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        fix = f"{elsewhere}, or make this one writable for you"
    elif error.errno == errno.ENOENT:
        fix = elsewhere
    return Eagle3Error("cannot-write", f"cannot write: {reason}", where=str(path), fix=fix)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with writing(path) as f:
        f.write(text)


def append(path: Path, text: str) -> None:
    """Add to a text file all of a text, or nothing; raises OSError."""
    with path.open("ab", buffering=0) as f:
        end = f.seek(0, os.SEEK_END)
        content = memoryview(text.encode())
        try:
            while content:
                content = content[f.write(content) :]
        except OSError:
            f.truncate(end)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; raises Eagle3Error naming the file where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Eagle3Error("no-such-path", "no such file", where=str(path)) from error
    except OSError as error:
        raise Eagle3Error("unreadable-file", f"cannot read: {error.strerror or error}", where=str(path)) from error
    except (ValueError, RecursionError) as error:  # also numbers and nesting that Python's reader does not take
        raise Eagle3Error("bad-json", f"not valid JSON: {error}", where=str(path)) from error


@contextmanager
def well_formed(path: Path, what: str, fix: str | None = None) -> Iterator[None]:
    """Within the block a value of another kind than expected, or none at all, is the fault of the file it came from."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        message = f"not {what} ({type(error).__name__}: {error})"
        raise DataError("bad-json", message, where=str(path), fix=fix) from error


def sync_tree(folder: Path) -> None:
    """Have every file below a folder on the disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as f:
                os.fsync(f.fileno())


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a temporary folder and rename it to ``folder``: a reader sees all of it or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(folder)
    remove(temporary)
    temporary.mkdir()
    try:
        fill(temporary)
        sync_tree(temporary)
        _put(temporary, folder)
        _sync_folder(folder.parent)
    except OSError as error:
        raise disk_error(error, folder) from error
    finally:
        if temporary.is_symlink():  # it stood where the folder is now
            temporary.unlink()
        shutil.rmtree(temporary, ignore_errors=True)


def _put(new: Path, place: Path) -> None:
    """Rename a folder to ``place``, in exchange for what stands there; another process may do so at the same time."""
    while True:
        try:
            new.rename(place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        else:
            return
        with suppress(FileNotFoundError):  # somebody has just taken away what stood there
            exchange(new, place)
            return


_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def exchange(new: Path, place: Path) -> None:
    """Have two paths change places at once, so that neither is missing at any moment.

    Where the system cannot, what stood at ``place`` is removed, and it is away for the time between two renames; after
    a kill there ``remove_leftovers`` brings it back.
    """
    with suppress(OSError, AttributeError):
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        if rename(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(place), _RENAME_EXCHANGE) == 0:
            return
    old = place.with_name(f".{place.name}.old-{os.getpid()}")
    place.rename(old)
    new.rename(place)
    remove(old)


def is_filled_so(folder: Path, fill: Callable[[Path], None], *, apart: Sequence[str] = ()) -> bool:
    """Whether ``fill`` would write just the files that stand in ``folder``, those named ``apart`` left out."""
    temporary = _temporary(folder)
    remove(temporary)
    temporary.mkdir()
    try:
        fill(temporary)
        pairs = [
            {path.name: path for path in place.iterdir() if path.name not in apart} for place in (temporary, folder)
        ]
        new, old = pairs
        return new.keys() == old.keys() and all(filecmp.cmp(new[name], old[name], shallow=False) for name in new)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove(path: Path) -> None:
    """Delete a file or a folder where there is one; of a link the link, not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Remove ``path`` when the user said --overwrite, else refuse to touch it.

    Raises UsageError also for a link, whose other end may be anything, and for a folder that people live in.
    """
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise UsageError(
            "already-exists", "already exists", where=str(path), fix="choose another place, or pass --overwrite"
        )
    check_removable(path)
    remove(path)


def check_removable(path: Path) -> None:
    """Raise UsageError for a link and for a folder that people live in; changes nothing."""
    if path.is_symlink():
        what = f"a link to {path.readlink()}; nothing is deleted behind a link"
        raise UsageError(
            "unsafe-overwrite", what, where=str(path), fix="name the place that it points to, or remove the link"
        )
    if path.exists() and any(path.resolve() in (place, *place.parents) for place in _inhabited()):
        what = "holds the current folder or your home, and is not deleted"
        raise UsageError("unsafe-overwrite", what, where=str(path), fix="choose a folder of its own")


def _inhabited() -> list[Path]:
    home = os.path.expanduser("~")
    return [Path.cwd(), *([Path(home).resolve()] if os.path.isabs(home) else [])]


def free_bytes(folder: Path) -> int:
    """Free space where ``folder`` is or will be."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


@contextmanager
def locked(path: Path, busy: Eagle3Error, *, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock on a folder, or on a file that is made where it is missing; raises ``busy`` if it is taken, and
    still is ``patience`` seconds later.

    A process that is killed lets go of it. A file system without locks (some of clusters) keeps nobody out.
    """
    import fcntl  # not on Windows

    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    given_up = time.monotonic() + patience
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= given_up:
                    raise busy from error
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    raise
                break
            time.sleep(0.1)
        yield
    finally:
        os.close(handle)
