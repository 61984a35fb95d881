"""What a stage was made of: inputs by content, options, outputs. The same command again finds it and is done."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
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
        now = describe_files(inputs, before)
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
    inputs: Mapping[str, FileStat],
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
