"""The target: a folder that holds a whole model, a .gguf file, or a hub id that can be had."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from eagle3cli.backends.target.adapter_config import read_adapter_config
from eagle3cli.backends.target.gguf.folder import PACKAGES, existing_conversion, find_gguf
from eagle3cli.backends.target.gguf.header import check_header
from eagle3cli.backends.target.weights.quantization import check_known, folder_quantization
from eagle3cli.cli.preflight.paths import fix_for, similar_path
from eagle3cli.data.chat.tokenizer import TOKENIZER_FILES
from eagle3cli.errors import ModelError
from eagle3cli.models.files import read_json_object
from eagle3cli.models.folders import check_weight_files
from eagle3cli.runtime.hub import HUB_ID, go_offline_unless_reached
from eagle3cli.settings.tables import Settings

FLAG = "--target-model-path"
HERE = "the name of a model on the hub (OWNER/NAME), a folder, or a .gguf file"


def check_target(settings: Settings, *, weights: bool, tokenizer: bool) -> dict[str, Any] | None:
    """The target's config where it lies in a folder; None where it is elsewhere, or still inside a .gguf file.

    ``weights``, ``tokenizer``: they are read, too. Raises ModelError where it cannot be loaded.
    """
    name = settings.target.model_path
    if settings.target.adapter is not None:
        read_adapter_config(settings.target.adapter)
    if not name:
        return None
    path = Path(name).expanduser()
    if name in PACKAGES or (name.endswith(".gguf") and not path.is_dir()):
        return _gguf_config(name, path, settings.data.cache_dir / "models")
    if path.is_dir():
        return _folder_config(path, weights=weights, tokenizer=tokenizer)
    if path.exists():
        raise ModelError("not-a-model", "a file, not a model", where=name, fix=f"give {HERE}")
    _check_hub_id(name, path)
    return None


def _gguf_config(name: str, path: Path, converted: Path) -> dict[str, Any] | None:
    if name not in PACKAGES and not path.exists():
        raise ModelError("no-such-path", "no such file", where=name, fix=fix_for(path, f"give {HERE}"))
    file = find_gguf(name)
    assert file is not None
    check_header(file)
    folder = existing_conversion(name, converted)
    return None if folder is None else read_json_object(Path(folder) / "config.json")


def _folder_config(folder: Path, *, weights: bool, tokenizer: bool) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        ggufs = sorted(file.name for file in folder.glob("*.gguf"))
        inner = sorted(inner.parent.name for inner in folder.glob("*/config.json"))
        fix = "give a transformers model folder"
        if ggufs:
            fix = f"give the file itself: {FLAG} {folder / ggufs[0]}"
        elif inner:
            fix = f"did you mean {folder / inner[0]}?"
        what = "this folder holds no model: no config.json"
        raise ModelError(
            "not-a-model",
            f"{what} (the folder is empty)" if not any(folder.iterdir()) else what,
            where=str(folder),
            fix=fix,
        )
    config = read_json_object(folder / "config.json")
    if "model_type" not in config:
        fix = "give a transformers model folder, or copy its config.json again"
        raise ModelError("not-a-model", "config.json names no model_type: not a model's", where=str(folder), fix=fix)
    quantization = folder_quantization(config, folder) if weights else None
    if quantization is not None and quantization.method:
        check_known(quantization, str(folder))
    if tokenizer and not any((folder / file).is_file() for file in TOKENIZER_FILES):
        fix = "download the tokenizer's files (tokenizer.json, tokenizer_config.json) into it"
        raise ModelError("no-tokenizer", "the folder has no tokenizer", where=str(folder), fix=fix)
    if weights and not check_weight_files(folder) and not any(folder.glob("*.safetensors")):
        others = sorted(file.name for file in folder.glob("*") if file.suffix in (".bin", ".pt", ".pth", ".gguf"))
        what = f"no safetensors weights; {others[0]} is not read" if others else "no weights: no model.safetensors"
        fix = "download the model's safetensors, or convert it: load it with transformers and save_pretrained()"
        raise ModelError("not-a-model", what, where=str(folder), fix=fix)
    return config


def _check_hub_id(name: str, path: Path) -> None:
    """Raise ModelError for what is neither here nor a name that the hub, or what was downloaded of it, may know."""
    if name.startswith((".", "/", "~")) or HUB_ID.fullmatch(name) is None:
        raise ModelError("no-such-path", "no such folder", where=name, fix=fix_for(path, f"check {FLAG}"))
    if _is_downloaded(name):
        return
    why = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else go_offline_unless_reached(name)
    if why is None:
        return
    similar = similar_path(path)
    meant = f"did you mean {similar}? else " if similar is not None else ""
    fix = f"{meant}check the name; without network, give a local folder or put the model into the hub cache first"
    what = f"no such folder; and cannot be found on the hub or in its cache ({why})"
    raise ModelError("not-a-model", what, where=name, fix=fix)


def _is_downloaded(name: str) -> bool:
    """Whether something of the model is in the hub's cache."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    return (cache / f"models--{name.replace('/', '--')}").is_dir()
