"""Files of a model folder: JSON, safetensors, and the index of weights that are spread over several of them."""

from __future__ import annotations

import json
from pathlib import Path, PurePath
from typing import Any

from safetensors import SafetensorError, safe_open

from eagle3cli.errors import ModelError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DAMAGED = "the file is damaged; copy it again"


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model. Raises ModelError where it holds none."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError("bad-json", f"not valid JSON: {error}", where=str(path)) from error
    if not isinstance(raw, dict):
        raise ModelError("bad-json", "not a JSON object", where=str(path))
    return raw


def open_safetensors(path: Path) -> Any:
    """A safetensors file, for ``with``. Raises ModelError where it is damaged."""
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise ModelError("damaged-file", f"cannot be read: {error}", where=str(path), fix=DAMAGED) from error


def read_weight_index(path: Path) -> dict[str, str]:
    """The file of every tensor, by the tensor's name. Raises ModelError where a file is not one beside the index."""
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError("damaged-file", f"not an index of safetensors: {error}", where=str(path)) from error
    elsewhere = sorted({file for file in files.values() if file != PurePath(file).name or file in ("", "..")})
    if elsewhere:
        fix = "do not use this model; its index was made to read other files of this machine"
        raise ModelError(
            "damaged-file", f"names {elsewhere[0]!r}, which is not a file beside it", where=str(path), fix=fix
        )
    return files
