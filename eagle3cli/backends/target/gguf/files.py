"""What llama.cpp is given: the target's own .gguf file or one written of its folder, and the draft's.

A folder is written once, tensor by tensor, for the plain Llama-like classes; other classes need a file that llama.cpp's
own converter wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eagle3cli.backends.target.gguf.folder import find_gguf
from eagle3cli.backends.target.gguf.vocabulary import pre_tokenizer, read_vocabulary
from eagle3cli.backends.target.head import fingerprint, read_config
from eagle3cli.backends.target.weights.quantization import quantization_of
from eagle3cli.data.chat.tokenizer import load_tokenizer
from eagle3cli.errors import Eagle3Error, ModelError
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import rope_frequencies
from eagle3cli.models.engines import target_class
from eagle3cli.models.files import open_safetensors
from eagle3cli.models.gguf.draft import FREQUENCIES, pairs
from eagle3cli.models.gguf.file import Entry, Field, Outtype, require_gguf, write_gguf
from eagle3cli.models.rope import read_rope
from eagle3cli.runtime.files import read_json, write_folder, write_json
from eagle3cli.runtime.report import Reporter

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""Classes that are written here, and llama.cpp's name for them."""
SOURCE_FILE = "source.json"
CONVERT = (
    "give the target as a .gguf file: a published one, or what llama.cpp's convert_hf_to_gguf.py FOLDER --outtype bf16 "
    "writes"
)


def target_gguf(
    model_path: str, parent: Path, report: Reporter, *, outtype: Outtype = "bf16", trust_remote_code: bool = False
) -> Path:
    """The target's .gguf file, or for a folder the file below ``parent`` that it is written to, once.

    Raises ModelError for a target that is not written here, with the way out.
    """
    own = find_gguf(model_path)
    if own is not None:
        return own
    folder = Path(model_path).expanduser()
    if not folder.is_dir():
        raise ModelError(
            "no-gguf", "llama.cpp reads no model of the hub by its name alone", where=model_path, fix=CONVERT
        )
    require_gguf("--engine llama.cpp")
    file = f"{folder.name}-{outtype.upper()}.gguf"
    place = parent / file.removesuffix(".gguf")
    source = {"weights": fingerprint(str(folder)), "outtype": outtype}
    if _source(place) == source:
        return place / file
    report.info(f"writing {folder.name} as {place / file} for llama.cpp (once)")

    def fill(temporary: Path) -> None:
        _write(folder, temporary / file, outtype, trust_remote_code=trust_remote_code)
        write_json(temporary / SOURCE_FILE, source)

    write_folder(place, fill)
    return place / file


def _source(place: Path) -> object:
    try:
        return read_json(place / SOURCE_FILE)
    except Eagle3Error:
        return None


def _write(folder: Path, path: Path, outtype: Outtype, *, trust_remote_code: bool) -> None:
    import gguf

    raw = read_config(str(folder))
    architecture = ARCHITECTURES.get(target_class(raw) or "")
    problems = _problems(raw, architecture, folder)
    if problems or architecture is None:
        raise ModelError("no-gguf", f"cannot be written for llama.cpp here: {problems}", where=str(folder), fix=CONVERT)
    shape = DraftConfig.from_target(raw)
    layers = int(raw["num_hidden_layers"])
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, layers)
    vocabulary = read_vocabulary(str(folder), int(raw["vocab_size"]), trust_remote_code=trust_remote_code)
    fields = [*_fields(raw, shape, architecture, folder.name), *vocabulary]
    write_gguf(path, architecture, fields, _entries(folder, raw, shape, names, architecture), outtype)


def _problems(raw: Mapping[str, Any], architecture: str | None, folder: Path) -> str:
    if architecture is None:
        return f"it is a {target_class(raw) or 'model of no known class'}"
    kind = (read_rope(raw)[1] or {}).get("rope_type")
    static = ("linear", "llama3", "yarn") if architecture == "llama" else ()
    if kind is not None and kind not in static:
        return f"its RoPE is {kind}"
    if quantization_of(raw) is not None:
        return "its weights are quantised"
    if raw.get("sliding_window") and raw.get("use_sliding_window", architecture == "llama"):
        return "its attention has a sliding window"
    tokenizer = json.loads(load_tokenizer(str(folder)).backend_tokenizer.to_str())
    if "ByteLevel" in json.dumps(tokenizer.get("pre_tokenizer")) and pre_tokenizer(tokenizer) is None:
        return "its tokenizer splits texts in a way that is not known here"
    return ""


def _fields(raw: Mapping[str, Any], shape: DraftConfig, architecture: str, name: str) -> Iterator[Field]:
    numbers = {
        "vocab_size": shape.vocab_size,
        "context_length": shape.max_position_embeddings,
        "embedding_length": shape.hidden_size,
        "block_count": int(raw["num_hidden_layers"]),
        "feed_forward_length": int(raw["intermediate_size"]),
        "rope.dimension_count": shape.head_dim,
        "attention.head_count": int(raw["num_attention_heads"]),
        "attention.head_count_kv": int(raw.get("num_key_value_heads") or raw["num_attention_heads"]),
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
    }
    _, factor = rope_frequencies(shape)
    yield Field("general.type", "model", "STRING")
    yield Field("general.name", name, "STRING")
    for key, value in numbers.items():
        yield Field(f"{architecture}.{key}", value, "UINT32")
    yield Field(f"{architecture}.attention.layer_norm_rms_epsilon", shape.rms_norm_eps, "FLOAT32")
    yield Field(f"{architecture}.rope.freq_base", shape.rope_theta, "FLOAT32")
    if factor != 1.0:
        yield Field(f"{architecture}.rope.scaling.attn_factor", factor, "FLOAT32")


def _entries(
    folder: Path, raw: Mapping[str, Any], shape: DraftConfig, names: Any, architecture: str
) -> Iterator[Entry]:
    """Every tensor, read when it is written."""
    if shape.rope_scaling is not None:
        plain, _ = rope_frequencies(replace(shape, rope_scaling=None))
        yield Entry.of(FREQUENCIES, plain / rope_frequencies(shape)[0])
    for path in sorted(folder.glob("*.safetensors")):
        with open_safetensors(path) as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        for name, size in shapes.items():
            if name == "lm_head.weight" and raw.get("tie_word_embeddings"):
                continue
            theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if theirs is None:
                if name.endswith("rotary_emb.inv_freq"):
                    continue
                raise ModelError("no-gguf", f"llama.cpp has no tensor for {name}", where=str(path), fix=CONVERT)
            rotated = architecture == "llama" and (".q_proj." in name or ".k_proj." in name)
            yield Entry(theirs, size, _loader(path, name, shape.head_dim if rotated else None))


def _loader(path: Path, name: str, head_dim: int | None) -> Any:
    def load() -> Tensor:
        with open_safetensors(path) as file:
            tensor: Tensor = file.get_tensor(name)
        tensor = tensor.to(torch.float32) if tensor.dtype != torch.bfloat16 else tensor
        return tensor if head_dim is None else pairs(tensor, head_dim)

    return load
