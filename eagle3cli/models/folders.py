"""Folders of models looked at without torch: where a draft lies, whether its weights are whole, whose draft it is."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eagle3cli.errors import ModelError
from eagle3cli.models.aux_layers import text_part
from eagle3cli.models.config import named_aux_layers
from eagle3cli.models.files import DAMAGED, INDEX, WEIGHTS, read_weight_index

LARGEST_HEAD = 100_000_000
"""Bytes; what the reader of safetensors takes at most."""
LFS_POINTER = b"version https://git-lfs"


def find_draft(path: Path) -> Path:
    """The draft folder that ``path`` means: itself, or a run's ``best/``, or a run's newest checkpoint."""
    if (path / "config.json").is_file():
        return path
    if (path / "best" / "config.json").is_file():
        return path / "best"
    checkpoints = [p for p in path.glob("checkpoints/epoch_*_step_*") if p.name.rpartition("_")[2].isdigit()]
    if checkpoints:
        return max(checkpoints, key=lambda p: int(p.name.rpartition("_")[2]))
    what = "no trained draft here" if path.exists() else "no such folder"
    fix = "run eagle3 train first, or give a training run or a folder with config.json and model.safetensors"
    raise ModelError("draft-format", what, where=str(path), fix=fix)


def gguf_draft(path: Path) -> Path | None:
    """The GGUF file that ``path`` means: itself, or the only one of a folder; None where there is none."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    files = [] if (path / "config.json").is_file() else sorted(path.glob("*.gguf"))
    return files[0] if len(files) == 1 else None


def draft_files(path: Path) -> list[Path]:
    """The files of weights of the draft that ``path`` means."""
    own = gguf_draft(path)
    return [own] if own is not None else sorted(find_draft(path).glob("*.safetensors"))


def check_weight_files(folder: Path) -> bool:
    """Whether the folder holds safetensors files. Raises ModelError where one that should be there is missing or cut
    short; their numbers are not read.
    """
    if (folder / INDEX).is_file():
        names = sorted(set(read_weight_index(folder / INDEX).values()))
    elif (folder / WEIGHTS).is_file():
        names = [WEIGHTS]
    else:
        return False
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        what = f"{missing[0]}{more} of {len(names)} weight files is not there; {INDEX} names them"
        raise ModelError(
            "damaged-file", what, where=str(folder), fix="the download is not complete: copy or download the rest"
        )
    for name in names:
        check_whole(folder / name)
    return True


def check_whole(path: Path) -> None:
    """Raise ModelError where a safetensors file is shorter or longer than its head says, or is none."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if LFS_POINTER.startswith(start) and len(start) == 8:
            what = "a pointer of Git LFS, not the weights themselves"
            raise ModelError(
                "damaged-file", what, where=str(path), fix="fetch them: git lfs pull, or download the file"
            )
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length < LARGEST_HEAD:
            raise ModelError("damaged-file", "cannot be read: not a safetensors file", where=str(path), fix=DAMAGED)
        head = file.read(length)
    try:
        tensors = [value for name, value in json.loads(head).items() if name != "__metadata__"]
        end = 8 + length + max((int(tensor["data_offsets"][1]) for tensor in tensors), default=0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        cut = size < 8 + length
        what = "its head is cut short" if cut else f"its head is no list of tensors ({type(error).__name__})"
        raise ModelError("damaged-file", f"cannot be read: {what}", where=str(path), fix=DAMAGED) from error
    if size != end:
        what = f"cannot be read: {size:,} bytes of {end:,} are there" if size < end else "cannot be read: too long"
        raise ModelError("damaged-file", what, where=str(path), fix=DAMAGED)


def other_target(draft: Mapping[str, Any], target: Mapping[str, Any]) -> str | None:
    """Why a draft's config cannot be one for the target's: its sizes are another's. None where it may be.

    What the draft's config leaves out, or says in another program's way, is not compared.
    """
    text = text_part(target)
    width = draft.get("target_hidden_size") or draft.get("hidden_size")
    pairs = (
        ("vocab_size", draft.get("vocab_size"), text.get("vocab_size")),
        ("hidden_size", width, text.get("hidden_size")),
    )
    different = [
        f"its {name} is {own} but the target has {its}"
        for name, own, its in pairs
        if _is_size(own) and _is_size(its) and own != its
    ]
    if different:
        return f"a draft of another target: {', '.join(different)}"
    layers = text.get("num_hidden_layers")
    try:
        aux = named_aux_layers(draft) or ()
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
    if isinstance(layers, int) and aux and max(aux) >= layers:
        return (
            f"a draft of another target: it reads layers {', '.join(map(str, aux))} but the target has {layers} layers"
        )
    return None


def check_made_for(folder: Path, draft: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    """Raise ModelError where the draft in ``folder`` is one of another target."""
    reason = other_target(draft, target)
    if reason:
        raise ModelError("other-target", reason, where=str(folder), fix=FITTING)


FITTING = "give the target it was made for, or a draft of this one"


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
