"""The files of a target on this machine, and which of them holds a tensor."""

from __future__ import annotations

from pathlib import Path

from eagle3cli.errors import ModelError
from eagle3cli.models.files import INDEX, WEIGHTS, open_safetensors, read_weight_index


def model_file(model_path: str, name: str, revision: str | None) -> Path:
    """A file of the model on this machine, fetched from the hub where ``model_path`` is no folder."""
    folder = Path(model_path).expanduser()
    if folder.is_dir():
        if not (folder / name).is_file():
            raise ModelError(
                "no-weights", f"no {name}", where=model_path, fix="give the folder of a model with safetensors weights"
            )
        return folder / name
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        cached = try_to_load_from_cache(model_path, name, revision=revision)
        return Path(cached) if isinstance(cached, str) else Path(hf_hub_download(model_path, name, revision=revision))
    except HFValidationError as error:
        raise ModelError(
            "no-such-path", "no such folder, and no hub id", where=model_path, fix="check --target-model-path"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        fix = "check the name; without network, give a local folder"
        raise ModelError(
            "hub-unreachable", f"{name} cannot be fetched from the hub: {reason}", where=model_path, fix=fix
        ) from error


def tensor_files(model_path: str, revision: str | None) -> dict[str, str]:
    """Name of every tensor, and the file that holds it."""
    try:
        path = model_file(model_path, INDEX, revision)
    except ModelError:
        path = model_file(model_path, WEIGHTS, revision)
        with open_safetensors(path) as f:
            return dict.fromkeys(f.keys(), WEIGHTS)
    return read_weight_index(path)
