"""What a stage was made of: inputs by content, options, outputs. The same command again finds it and is done."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from eagle3cli.errors import Eagle3Error, UsageError
from eagle3cli.runtime.files import read_json, write_json
from eagle3cli.runtime.provenance import FileStat, describe_files


def finished(path: Path, options: Mapping[str, Any], inputs: Iterable[Path]) -> dict[str, Any] | None:
    """The manifest of a finished run with equal options and inputs whose outputs still stand, else None."""
    try:
        manifest: dict[str, Any] = read_json(path)
        before = manifest["inputs"]
        if manifest["state"] != "finished" or manifest["options"] != dict(options):
            return None
        if _digests(describe_files(inputs, before)) != _digests(before):
            return None
        outputs = manifest["outputs"]
        return manifest if all((path.parent / name).stat().st_size == size for name, size in outputs.items()) else None
    except (Eagle3Error, OSError, KeyError, TypeError, AttributeError):
        return None


def _digests(files: Mapping[str, FileStat]) -> dict[str, str]:
    return {name: stat["sha256"] for name, stat in files.items()}


def make_once(
    path: Path,
    options: Mapping[str, Any],
    inputs: Iterable[Path],
    outputs: Iterable[str],
    make: Callable[[], dict[str, Any]],
    *,
    overwrite: bool,
) -> tuple[dict[str, Any], bool]:
    """Have ``make`` write the outputs beside ``path``, unless a finished run did; its summary, and whether one did.

    Raises UsageError where outputs of something else exist, unless the user said --overwrite or an interrupted run
    left them.
    """
    earlier = None if overwrite else finished(path, options, inputs)
    if earlier is not None:
        return earlier["summary"], True
    files = describe_files(inputs)
    refuse_standing(path, outputs, overwrite=overwrite)
    remove_leftovers(path.parent)
    write_json(path, {"state": "unfinished"})
    summary = make()
    record = {
        "state": "finished",
        "options": dict(options),
        "inputs": files,
        "outputs": {name: (path.parent / name).stat().st_size for name in outputs},
        "summary": summary,
    }
    write_json(path, record)
    return summary, False


def refuse_standing(path: Path, outputs: Iterable[str], *, overwrite: bool) -> None:
    """Raise as :func:`make_once` would; changes nothing."""
    interrupted = False
    with suppress(Eagle3Error, AttributeError):
        interrupted = read_json(path).get("state") == "unfinished"
    standing = next((path.parent / name for name in outputs if (path.parent / name).exists()), None)
    if standing is not None and not overwrite and not interrupted:
        fix = "choose another place, or pass --overwrite"
        raise UsageError(
            "made-differently",
            "already exists, made from other inputs or with other options",
            where=str(standing),
            fix=fix,
        )


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders that killed runs left in ``folder``; what one had set aside comes back."""
    for path in folder.glob(".*-*"):
        match = re.fullmatch(r"\.(.+)\.(tmp|old)-(\d+)", path.name)
        if not match or _alive(int(match[3])):
            continue
        if match[2] == "old" and not (folder / match[1]).exists():  # killed between the two renames of a replacement
            with suppress(OSError):  # another process has just done so
                path.rename(folder / match[1])
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
        pass
    return True
