"""A target with a LoRA adapter (peft's format) as one folder: W + scale * B @ A, written once, so that every stage and
every server reads the same weights.

``config.json`` there names the adapter: states, drafts and caches of the target without it are another target's.
"""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from eagle3cli.backends.target.adapter_config import WEIGHTS as ADAPTER
from eagle3cli.backends.target.adapter_config import AdapterConfig, read_adapter_config
from eagle3cli.backends.target.head import (
    EMBEDDINGS,
    HEADS,
    OTHER_PARTS,
    find_tensor,
    fingerprint,
    is_tied,
    read_config,
)
from eagle3cli.backends.target.weights.quantization import folder_quantization
from eagle3cli.data.chat.tokenizer import TOKENIZER_FILES
from eagle3cli.errors import Eagle3Error, ModelError
from eagle3cli.models.aux_layers import text_part
from eagle3cli.models.files import DAMAGED, INDEX, WEIGHTS, open_safetensors, read_weight_index
from eagle3cli.runtime.files import free_bytes, well_formed, write_folder, write_json
from eagle3cli.runtime.manifest import remove_leftovers
from eagle3cli.runtime.provenance import digest_json
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.units import size_text

MARK = "eagle3_adapter"
"""Key of a merged target's ``config.json``."""
PREFIX = "base_model.model."
LORA = re.compile(r"(?P<module>.+)\.lora_(?P<part>A\.weight|B\.weight|B\.bias|embedding_A|embedding_B)")
MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(\.weight)?")
OF_TOKENIZER = ("*token*.json", "*.model", "chat_template*", "vocab.*", "merges.txt", "*.tiktoken")
NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")


def merged_folder(model_path: str, adapter: Path, parent: Path, report: Reporter, revision: str | None = None) -> str:
    """The target with the adapter's changes in its weights, as a folder below ``parent`` that is written once.

    Weights keep their type. A target that holds this adapter already stays where it is. Raises ModelError where the
    adapter cannot be merged into this target, Eagle3Error where the disk has no room.
    """
    config = read_adapter_config(adapter)
    raw = read_config(model_path, revision=revision)
    digest = config.digest()
    mark = raw.get(MARK)
    if isinstance(mark, dict) and mark.get("sha256") == digest:
        return model_path
    if folder_quantization(raw, Path(model_path)) is not None:
        what = "its target's weights are quantised, and LoRA's sum is not: it would be another model"
        raise ModelError(
            "adapter-unusable",
            what,
            where=str(adapter),
            fix="merge it into the unquantised target, and quantise the result",
        )
    name = Path(model_path).name
    folder = _place(model_path, config, parent, revision)
    if (folder / "config.json").is_file():
        return str(folder)
    remove_leftovers(parent)
    base = _whole(model_path, revision)
    merge = _Merge(config, base, raw)
    size = sum((base / file).stat().st_size for file in set(merge.files.values()))
    if free_bytes(parent) < size:
        fix = "make space, or name another disk with --cache-dir"
        raise Eagle3Error(
            "out-of-memory", f"the target with its adapter takes {size_text(size)}", where=str(parent), fix=fix
        )
    report.info(f"merging {adapter} into {name}: {folder} (once, {size_text(size)})")
    mark = {"base_model": model_path if not Path(model_path).exists() else name, "adapter": adapter.resolve().name}
    write_folder(folder, lambda temporary: merge.write(temporary, {**mark, "sha256": digest}))
    return str(folder)


def existing_merge(model_path: str, adapter: Path, parent: Path, revision: str | None = None) -> str | None:
    """The folder that :func:`merged_folder` has written before; None where it would have to merge first."""
    with suppress(Eagle3Error):
        folder = _place(model_path, read_adapter_config(adapter), parent, revision)
        return str(folder) if (folder / "config.json").is_file() else None
    return None


def _place(model_path: str, config: AdapterConfig, parent: Path, revision: str | None) -> Path:
    key = digest_json([fingerprint(model_path, revision=revision), config.digest()])
    return parent / f"{Path(model_path).name}+{config.folder.resolve().name}-{key[:8]}"


def adapter_of(config: Mapping[str, Any] | None) -> tuple[str, str] | None:
    """Of a merged target's config the names of the target without its adapter, and of the adapter."""
    mark = (config or {}).get(MARK)
    return (str(mark.get("base_model")), str(mark.get("adapter"))) if isinstance(mark, dict) else None


@dataclass
class _Change:
    """What the adapter does to one tensor: of which module, and the names of its parts in the adapter's file."""

    module: str
    parts: dict[str, str] = field(default_factory=dict)
    """``A``, ``B``, ``bias``, ``embedding_A``, ``embedding_B``, ``magnitude``; and ``whole``, a copy."""


class _Merge:
    """An adapter, a target's files, and which tensor of them each part of the adapter changes."""

    def __init__(self, config: AdapterConfig, base: Path, raw: dict[str, Any]) -> None:
        self.config = config
        self.base = base
        self.raw = raw
        self.files = _files_of(base)
        self.embedding = find_tensor(self.files, EMBEDDINGS)
        self.head = find_tensor(self.files, HEADS)
        self.changes: dict[str, _Change] = {}
        with open_safetensors(config.folder / ADAPTER) as file:
            for module, parts in _modules(file.keys()).items():
                self._add(module, parts)
        if not self.changes:
            raise ModelError(
                "adapter-unusable", "it changes nothing: no LoRA weights", where=str(config.folder / ADAPTER)
            )

    def _add(self, module: str, parts: dict[str, str]) -> None:
        of_bias = {"bias": "bias", "whole bias": "whole"}
        weight = {part: key for part, key in parts.items() if part not in of_bias}
        bias = {of_bias[part]: key for part, key in parts.items() if part in of_bias}
        for kind, own in (("weight", weight), ("bias", bias)):
            if own:
                self.changes[self._name(f"{module}.{kind}")] = _Change(module, own)

    def _name(self, name: str) -> str:
        """The target's tensor that an adapter's name means; its head may be the embedding under another name."""
        words = name.split(".")
        last = max((at for at, word in enumerate(words) if word in ("layers", "h", "blocks")), default=len(words) - 2)
        for first in range(last + 1):
            ending = ".".join(words[first:])
            matches = [other for other in self.files if other == ending or other.endswith(f".{ending}")]
            own = [other for other in matches if not any(part in other for part in OTHER_PARTS)] or matches
            if len(own) == 1:
                return own[0]
        if name.endswith(HEADS) and self.head is None:
            return HEADS[0]
        what = f"changes {name}, which {self.base.name} has not"
        raise ModelError(
            "adapter-unusable", what, where=str(self.config.folder), fix="give the target that it was trained on"
        )

    def write(self, folder: Path, mark: dict[str, Any]) -> None:
        """Write the whole model into ``folder``."""
        extra = self._untied()
        raw = dict(self.raw)
        new_names = dict(self.files)
        for file in sorted(set(self.files.values())):
            with open_safetensors(self.base / file) as shard:
                kept = [name for name in shard.keys() if name not in extra]  # noqa: SIM118
                tensors = {name: self._merged(name, shard.get_tensor(name)) for name in kept}
            if self.embedding is not None and self.files[self.embedding] == file:
                tensors |= extra
                new_names |= dict.fromkeys(extra, file)
                raw = _with_vocabulary(raw, len(tensors[self.embedding]))
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file, {"format": "pt"})
        if (self.base / INDEX).is_file():
            write_json(folder / INDEX, {"metadata": {}, "weight_map": new_names})
        if extra:
            raw = _with(raw, "tie_word_embeddings", False)
        self._copy(folder)
        write_json(folder / "config.json", {**raw, MARK: mark})

    def _untied(self) -> dict[str, Tensor]:
        """The head of a target whose head was its embedding, where the adapter has made two of them; empty if not."""
        if self.embedding is None or not (is_tied(self.raw) or self.head is None):
            return {}
        head = self.head or HEADS[0]
        if self.config.keeps_tied or not {self.embedding, head} & self.changes.keys():
            return {}
        with open_safetensors(self.base / self.files[self.embedding]) as shard:
            shared = shard.get_tensor(self.embedding)
        new: Tensor = self._merged(head, shared.clone())
        return {} if torch.equal(new, self._merged(self.embedding, shared)) else {head: new}

    def _merged(self, name: str, weight: Tensor) -> Tensor:
        """A tensor of the target with the adapter's change, in its own type."""
        change = self.changes.get(name)
        if change is None:
            return weight
        if not weight.is_floating_point() or weight.element_size() == 1:
            raise ModelError(
                "adapter-unusable",
                f"{name} of the target is quantised",
                where=str(self.config.folder),
                fix="see --help",
            )
        path = self.config.folder / ADAPTER
        with well_formed(path, "LoRA weights of this target", "copy it again, or give the target it was trained on"):
            parts = self._read(change)
            own = parts.pop(
                "whole", weight.float()
            )  # beside LoRA's parts it is the weight that those were trained with
            return (self._sum(change, parts, own) if parts else own).to(weight.dtype)

    def _read(self, change: _Change) -> dict[str, Tensor]:
        """The parts of a change, in float32."""
        path = self.config.folder / ADAPTER
        try:
            with open_safetensors(path) as file:
                return {part: file.get_tensor(key).float() for part, key in change.parts.items()}
        except SafetensorError as error:
            raise ModelError("damaged-file", f"cannot be read: {error}", where=str(path), fix=DAMAGED) from error

    def _sum(self, change: _Change, parts: dict[str, Tensor], weight: Tensor) -> Tensor:
        """W + scale * B @ A; with DoRA's magnitudes its rows have those as their norms."""
        if "bias" in parts:
            with open_safetensors(self.config.folder / ADAPTER) as file:
                rank = file.get_slice(change.parts["bias"].replace("lora_B.bias", "lora_A.weight")).get_shape()[0]
            return weight + self.config.scale(change.module, rank) * parts["bias"]
        embeds = "embedding_A" in parts
        try:
            a, b = (parts[f"embedding_{side}"] if embeds else parts[side] for side in "AB")
        except KeyError as error:
            raise ModelError(
                "adapter-unusable", f"{change.module} lacks its LoRA {error}", where=str(self.config.folder)
            ) from error
        change_OI = self.config.scale(change.module, len(a)) * (b @ a)
        transposed = embeds or self.config.transposed
        if change_OI.shape != (weight.T if transposed else weight).shape:
            what = f"the change of {change.module} is {list(change_OI.shape)}, the target's weight {list(weight.shape)}"
            raise ModelError(
                "adapter-unusable", what, where=str(self.config.folder), fix="give the target that it was trained on"
            )
        new_OI = (weight.T if transposed else weight) + change_OI
        if "magnitude" in parts:
            if embeds:
                raise ModelError(
                    "adapter-unusable", "DoRA of an embedding is not known here", where=str(self.config.folder)
                )
            new_OI *= (parts["magnitude"].flatten() / torch.linalg.vector_norm(new_OI, dim=1))[:, None]
        return new_OI.T if transposed else new_OI

    def _copy(self, folder: Path) -> None:
        """The files beside the weights; those of the tokenizer are the adapter's, where it has one."""
        own = any((self.config.folder / name).is_file() for name in TOKENIZER_FILES)
        for path in self.base.iterdir():
            replaced = own and any(path.match(pattern) for pattern in OF_TOKENIZER)
            if path.is_file() and not path.name.endswith(NOT_COPIED) and not path.name.startswith(".") and not replaced:
                shutil.copyfile(path, folder / path.name)
        for pattern in OF_TOKENIZER if own else ():
            for path in self.config.folder.glob(pattern):
                if path.is_file():
                    shutil.copyfile(path, folder / path.name)


def _modules(keys: list[str]) -> dict[str, dict[str, str]]:
    """The adapter's tensors by module and part. Raises ModelError for one that no LoRA has."""
    tensors: dict[str, dict[str, str]] = defaultdict(dict)
    for key in keys:
        name = key.removeprefix(PREFIX).replace(".modules_to_save.", ".").replace(".default", "")
        if match := LORA.fullmatch(name):
            part = match["part"].removesuffix(".weight")
            tensors[match["module"]]["bias" if part == "B.bias" else part] = key
        elif match := MAGNITUDE.fullmatch(name):
            tensors[match["module"]]["magnitude"] = key
        elif "lora_" not in name and name.endswith((".weight", ".bias")):
            module, _, kind = name.replace(".base_layer.", ".").rpartition(".")
            tensors[module]["whole" if kind == "weight" else "whole bias"] = key
        else:
            raise ModelError(
                "adapter-unusable", f"{key}: no part of a LoRA adapter", where=ADAPTER, fix="merge it with peft"
            )
    return tensors


def _whole(model_path: str, revision: str | None) -> Path:
    """The folder of a target with all of its files, fetched from the hub where it is a name there."""
    folder = Path(model_path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    unread = [f"*{ending}" for ending in NOT_COPIED if ending not in (".safetensors", ".index.json")]
    return Path(snapshot_download(model_path, revision=revision, ignore_patterns=unread))


def _files_of(folder: Path) -> dict[str, str]:
    if (folder / INDEX).is_file():
        return read_weight_index(folder / INDEX)
    with open_safetensors(folder / WEIGHTS) as file:
        return dict.fromkeys(file.keys(), WEIGHTS)


def _with(raw: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A model's config with another value, in its text part too."""
    text = raw.get("text_config")
    return {**raw, key: value, **({"text_config": {**text, key: value}} if isinstance(text, dict) else {})}


def _with_vocabulary(raw: dict[str, Any], size: int) -> dict[str, Any]:
    """A model's config for an embedding of ``size`` rows: training may have added tokens."""
    if int(text_part(raw).get("vocab_size", size)) == size:
        return raw
    text = raw.get("text_config")
    return {**raw, "text_config": {**text, "vocab_size": size}} if text else {**raw, "vocab_size": size}
