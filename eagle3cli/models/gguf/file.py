"""GGUF files: values and tensors written with the ``gguf`` package, and read back. Knows nothing of any model."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from eagle3cli.errors import ModelError, UsageError
from eagle3cli.runtime import demo

Outtype = Literal["f32", "bf16", "f16", "q8_0"]
"""Types of weights, as llama.cpp's own converter calls them."""
OUTTYPES: dict[torch.dtype, Outtype] = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
FILE_TYPES: dict[Outtype, int] = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
"""llama.cpp's numbers for a file whose matrices have this type."""
BLOCK = 32
"""Weights of a row that ``q8_0`` rounds together; a matrix whose rows are no multiple stays ``f16``."""


@dataclass(frozen=True)
class Field:
    """One value of a file's head; ``kind`` and ``of`` (the kind of an array's members) are GGUF's names of types."""

    key: str
    value: Any
    kind: str
    of: str = ""


def require_gguf(where: str) -> None:
    """Raise UsageError where the package that writes and reads these files is missing; ``where`` wanted it."""
    if importlib.util.find_spec("gguf") is None:
        what = "GGUF files are written with the package gguf, which is not installed"
        raise UsageError("missing-package", what, where=where, fix=f"pip install '{demo.EXTRA}'")


@dataclass(frozen=True)
class Entry:
    """A tensor to write; ``load`` reads it when its turn comes."""

    name: str
    shape: tuple[int, ...]
    load: Callable[[], Tensor]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Entry:
        """One that is there."""
        return cls(name, tuple(tensor.shape), lambda: tensor)


def kind_of(shape: Sequence[int], outtype: Outtype) -> Any:
    """GGUF's type for weights of this shape: ``outtype`` for matrices, f32 for vectors."""
    from gguf import GGMLQuantizationType as Kind

    if len(shape) < 2 or outtype == "f32":
        return Kind.F32
    if outtype == "q8_0":
        return Kind.Q8_0 if shape[-1] % BLOCK == 0 else Kind.F16
    return Kind.BF16 if outtype == "bf16" else Kind.F16


def encoded(tensor: Tensor, kind: Any) -> Any:
    """A tensor as the numpy array of a GGUF type. Raises ModelError where a value does not fit it."""
    import gguf
    from gguf import GGMLQuantizationType as Kind

    tensor = tensor.detach().to("cpu").contiguous()
    if kind == Kind.I64:
        return tensor.long().numpy()
    if kind == Kind.F32:
        return tensor.float().numpy()
    if kind == Kind.BF16:
        return tensor.to(torch.bfloat16).view(torch.int16).numpy()
    if kind == Kind.Q8_0:
        return gguf.quants.quantize(tensor.float().numpy(), Kind.Q8_0)
    half = tensor.to(torch.float16)
    if not bool(torch.isfinite(half).all()):
        raise ModelError(
            "weights-not-finite",
            f"{int((~torch.isfinite(half)).sum())} values are not finite as f16",
            fix="use --outtype bf16",
        )
    return half.numpy()


def write_gguf(
    path: Path, architecture: str, fields: Iterable[Field], entries: Iterable[Entry], outtype: Outtype
) -> None:
    """Write a file, one tensor after the other; nothing in it depends on when or where it was written.

    A tensor called ``d2t`` holds whole numbers.
    """
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_file_type(FILE_TYPES[outtype])
    if outtype == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for field in fields:
        of = gguf.GGUFValueType[field.of] if field.of else None
        writer.add_key_value(field.key, field.value, gguf.GGUFValueType[field.kind], of)
    listed = list(entries)
    kinds = [
        gguf.GGMLQuantizationType.I64 if entry.name == "d2t" else kind_of(entry.shape, outtype) for entry in listed
    ]
    for entry, kind in zip(listed, kinds, strict=True):
        block, size = gguf.GGML_QUANT_SIZES[kind]
        count = math.prod(entry.shape) // block * size
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), count, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry, kind in zip(listed, kinds, strict=True):
        writer.write_tensor_data(encoded(entry.load(), kind))
    writer.close()


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Values and tensors of a file; matrices in fp32, whatever their type. Raises ModelError where it is none."""
    import gguf

    try:
        reader = gguf.GGUFReader(str(path))
        values = {key: field.contents() for key, field in reader.fields.items()}
        tensors = {str(tensor.name): decoded(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    except Exception as error:  # whatever the package stumbles over
        raise ModelError(
            "damaged-file", f"not a GGUF file: {error}", where=str(path), fix="the file is damaged; copy it again"
        ) from error
    return values, tensors


def fields_of(path: Path, prefix: str) -> list[Field]:
    """The values of a file whose keys begin with ``prefix``, as they stand there."""
    import gguf

    selected = []
    for key, field in gguf.GGUFReader(str(path)).fields.items():
        if not key.startswith(prefix):
            continue
        of = field.types[-1].name if len(field.types) > 1 else ""
        selected.append(Field(key, field.contents(), field.types[0].name, of))
    return selected


def decoded(array: Any, kind: Any) -> Tensor:
    """The tensor in an array of a GGUF type: fp32, or int64."""
    import gguf

    if kind == gguf.GGMLQuantizationType.I64:
        return torch.from_numpy(array.copy())
    if kind == gguf.GGMLQuantizationType.BF16:
        array = array.view("uint8")
    return torch.from_numpy(gguf.dequantize(array, kind).copy())
