"""A target's tensors by the names that unquantised weights have: quantised ones are dequantised when they are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from eagle3cli.backends.target.weights import awq, compressed, fp8, gptq, mxfp4
from eagle3cli.backends.target.weights.files import model_file, tensor_files
from eagle3cli.backends.target.weights.quantization import (
    ANOTHER,
    Quantization,
    check_all_read,
    check_known,
    folder_quantization,
)
from eagle3cli.backends.target.weights.recipe import Recipe
from eagle3cli.errors import ModelError
from eagle3cli.models.files import open_safetensors
from eagle3cli.runtime.files import well_formed

FORMATS: dict[str, Callable[[Collection[str], Quantization], dict[str, Recipe]]] = {
    "awq": awq.recipes,
    "compressed-tensors": compressed.recipes,
    "fp8": fp8.recipes,
    "gptq": gptq.recipes,
    "modelopt": fp8.recipes,
    "mxfp4": mxfp4.recipes,
    "mxfp8": fp8.recipes,
}
NOT_OF_WEIGHTS = ("input_scale", "activation_scale", "k_scale", "v_scale", "q_scale", "output_scale")
"""Scales of what a server rounds while it runs: no weight has them."""


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a target; each is read, and dequantised to float32 where it is quantised, when it is asked for."""

    def __init__(self, model_path: str, config: Mapping[str, Any], *, revision: str | None = None) -> None:
        """``config`` is the target's. Raises ModelError where its weights cannot be dequantised here."""
        self.model_path = model_path
        self.revision = revision
        self.files = tensor_files(model_path, revision)
        self.quantization = folder_quantization(config, Path(model_path).expanduser())
        self.recipes: dict[str, Recipe] = {}
        check_known(self.quantization, model_path)
        if self.quantization is not None and self.quantization.is_known:
            with well_formed(Path(model_path) / "config.json", f"what {self.quantization} weights need", ANOTHER):
                self.recipes = FORMATS[self.quantization.method](self.files, self.quantization)
        consumed = {name for recipe in self.recipes.values() for name in recipe.parts.values()}
        apart = NOT_OF_WEIGHTS if self.recipes else ()
        self.plain = {name for name in self.files if name not in consumed and not name.endswith(apart)}
        if not self.needs_package:
            check_all_read(self.plain, self.quantization, model_path)
        self._open: dict[str, Any] = {}

    @property
    def needs_package(self) -> bool:
        """Whether its quantised weights mean nothing without a package that transformers runs them with."""
        return self.quantization is not None and not self.quantization.is_known

    def __iter__(self) -> Iterator[str]:
        yield from self.plain
        yield from self.recipes

    def __len__(self) -> int:
        return len(self.plain) + len(self.recipes)

    def __contains__(self, name: object) -> bool:
        return name in self.recipes or name in self.plain

    def __getitem__(self, name: str) -> Tensor:
        recipe = self.recipes.get(name)
        if recipe is None:
            tensor = self._stored(name)
            if tensor.dtype in (torch.int8, torch.uint8) or "float8" in str(tensor.dtype):
                what = f"{name} is stored as {str(tensor.dtype).removeprefix('torch.')}, without scales that are known"
                raise ModelError("unsupported-quantization", what, where=self.model_path, fix=ANOTHER)
            return tensor
        try:
            weight = recipe.decode({part: self._stored(stored) for part, stored in recipe.parts.items()})
        except (ValueError, LookupError, TypeError, RuntimeError) as error:
            what = f"{name} is not what {self.quantization} stores: {error}"
            raise ModelError("damaged-file", what, where=self.model_path, fix="copy the model again") from error
        if not bool(torch.isfinite(weight).all()):
            what = f"{name} has numbers that are not finite: its scales or zeros are damaged"
            raise ModelError("damaged-file", what, where=self.model_path, fix="copy the model again")
        return weight

    def _stored(self, name: str) -> Tensor:
        path = model_file(self.model_path, self.files[name], self.revision)
        try:
            if path.name not in self._open:
                self._open[path.name] = open_safetensors(path)
            tensor: Tensor = self._open[path.name].get_tensor(name)
        except SafetensorError as error:
            raise ModelError("damaged-file", f"{name} cannot be read: {error}", where=str(path)) from error
        return tensor

    def lazily(self) -> dict[str, Any]:
        """The same as transformers reads files: by name something that becomes a tensor where it is indexed."""
        return {name: _Lazy(self, name) for name in self}


class _Lazy:
    """A tensor that is read when it is indexed, as a slice of a safetensors file is."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self.checkpoint = checkpoint
        self.name = name

    def __getitem__(self, index: Any) -> Tensor:
        return self.checkpoint[self.name][index]

    def get_shape(self) -> list[int]:
        """Sizes of the tensor."""
        return list(self.checkpoint[self.name].shape)
