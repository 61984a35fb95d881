"""The index of weights that are spread over several safetensors files."""

from __future__ import annotations

import json
from pathlib import Path, PurePath

from eagle3cli.errors import ModelError


def read_weight_index(path: Path) -> dict[str, str]:
    """The file of every tensor, by the tensor's name. Raises ModelError where a file is not one beside the index."""
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        found = {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"not an index of safetensors: {error}", where=str(path)) from error
    elsewhere = sorted({file for file in found.values() if file != PurePath(file).name or file in ("", "..")})
    if elsewhere:
        fix = "do not use this model; its index was made to read other files of this machine"
        raise ModelError(f"names {elsewhere[0]!r}, which is not a file beside it", where=str(path), fix=fix)
    return found
