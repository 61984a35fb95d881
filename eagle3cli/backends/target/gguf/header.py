"""Whether the head of a .gguf file is whole: a reader believes its counts, and would follow a damaged one for days."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO

from eagle3cli.errors import ModelError

TEXT = 8
LIST = 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type."""
MOST_DIMENSIONS = 8
NEEDED = (".block_count", ".embedding_length", ".attention.head_count", "tokenizer.ggml.tokens")


def check_header(path: Path) -> None:
    """Walk over the metadata and the list of tensors; raises ModelError where they do not fit into the file, and where
    that says too little of a model: transformers would build the largest one of its kind in its place.
    """
    try:
        with path.open("rb") as file:
            magic, version, tensors, values = struct.unpack("<4sIQQ", _take(file, 24))
            if magic != b"GGUF":
                raise ValueError("it does not begin with GGUF")
            if version not in (2, 3):
                raise ValueError(f"version {version} of the format")
            keys = set[bytes]()
            for _ in range(values):
                keys.add(_text(file))
                _skip_value(file, _number(file, "<I"))
            for _ in range(tensors):
                _text(file)
                dimensions = _number(file, "<I")
                if dimensions > MOST_DIMENSIONS:
                    raise ValueError(f"a tensor of {dimensions} dimensions")
                _take(file, 8 * dimensions + 4 + 8)
            lacking = [end for end in NEEDED if not any(key.endswith(end.encode()) for key in keys)]
            if lacking or not tensors:
                raise ValueError(f"no {', '.join(lacking) or 'tensors'} in it")
    except (OSError, ValueError) as error:
        raise ModelError(
            "damaged-file", f"not a whole GGUF file: {error}", where=str(path), fix="download it again"
        ) from error


def _take(file: IO[bytes], count: int) -> bytes:
    content = file.read(count) if count < 1 << 31 else b""
    if len(content) < count:
        raise ValueError("it ends within its own head")
    return content


def _number(file: IO[bytes], form: str) -> int:
    return int(struct.unpack(form, _take(file, struct.calcsize(form)))[0])


def _text(file: IO[bytes]) -> bytes:
    return _take(file, _number(file, "<Q"))


def _skip_value(file: IO[bytes], kind: int, depth: int = 0) -> None:
    if kind == TEXT:
        _text(file)
    elif kind == LIST:
        inner = _number(file, "<I")
        count = _number(file, "<Q")
        if inner in SIZES:
            _take(file, SIZES[inner] * count)
        elif depth > 1:
            raise ValueError("lists in lists in lists")
        else:
            for _ in range(count):
                _skip_value(file, inner, depth + 1)
    elif kind in SIZES:
        _take(file, SIZES[kind])
    else:
        raise ValueError(f"a value of type {kind}")
