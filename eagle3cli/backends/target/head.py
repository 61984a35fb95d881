"""The target's embedding and head, read straight from its safetensors: offline training loads nothing else of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from eagle3cli.backends.target.logits import Head, make_head
from eagle3cli.backends.target.weights.checkpoint import Checkpoint
from eagle3cli.backends.target.weights.files import model_file, tensor_files
from eagle3cli.errors import ModelError
from eagle3cli.models.aux_layers import text_part
from eagle3cli.models.files import read_json_object

EMBEDDINGS = (
    *("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight"),
    "embeddings.weight",
)
HEADS = ("lm_head.weight", "embed_out.weight", "output.weight", "head.weight", "output_projection.weight")
BIASES = ("lm_head.bias", "embed_out.bias")
FINAL_NORMS = (
    *("language_model.norm.weight", "model.norm.weight", "norm_f.weight", "norm.weight", "final_layernorm.weight"),
    *("final_layer_norm.weight", "ln_f.weight", "biogpt.layer_norm.weight", "model.layer_norm.weight"),
)
MLP_NORMS = ("pre_feedforward_layernorm", "post_attention_layernorm")
"""Names of the norm before a layer's MLP, the surest first."""
SAMPLED = (*EMBEDDINGS[:5], *HEADS[:3])
"""Endings of the tensors whose files a fingerprint samples. It stands in stores and drafts: one more would change it
for targets that have a tensor of that ending beside their own head (DeepSeek-V3's ``shared_head.head.weight``)."""
OTHER_PARTS = ("vision", "visual", "audio", "mtp", "shared_head", "encoder", "projector")
"""Parts of a model whose tensors are never its text embedding or head."""
UNIT_OFFSET_NORMS = (
    *("gemma", "gemma2", "gemma3", "minimax_m3", "nemotron", "qwen3_next", "qwen3_5", "recurrent_gemma", "vaultgemma"),
)
"""Beginnings of the model types whose norms multiply by one more than their weight."""
NOT_UNIT_OFFSET = ("gemma3n", "gemma4", "nemotron_h")
BARE_NORMS = ("nanochat", "olmo")
"""Model types whose norms have no weight."""
SAMPLES = 16
SAMPLE_BYTES = 4096


def read_embedding_and_head(model_path: str, *, revision: str | None = None) -> tuple[Tensor, Tensor]:
    """Embedding and head of a target, both ``[V, H]`` in the checkpoint's type; one tensor where they are tied.

    ``model_path`` is a folder or a hub id (its local cache first, and only the files needed). Raises ModelError where
    a tensor is missing or does not fit the config.
    """
    config = read_config(model_path, revision=revision)
    files = Checkpoint(model_path, config, revision=revision)
    name = find_tensor(files, EMBEDDINGS)
    if name is None:
        raise ModelError(
            "missing-tensor",
            f"no input embedding among {len(files)} tensors",
            where=model_path,
            fix=_looked_for(EMBEDDINGS),
        )
    embedding = files[name]
    head_name = find_tensor([name for name in files if ".layers." not in name], HEADS)
    tied = is_tied(config)
    if tied or (head_name is None and (tied is None or "text_config" in config)):
        head = embedding
    elif head_name is None:
        raise ModelError(
            "missing-tensor",
            "tie_word_embeddings is false but there is no head",
            where=model_path,
            fix=_looked_for(HEADS),
        )
    else:
        head = files[head_name]
    text = text_part(config)
    shape = (text.get("vocab_size"), text.get("hidden_size"))
    for tensor, what in ((embedding, name), (head, head_name or name)):
        if None not in shape and tuple(tensor.shape) != shape:
            raise ModelError(
                "tensor-shape", f"{what} is {list(tensor.shape)}; the config says {list(shape)}", where=model_path
            )
    return embedding, head


def read_target_tensors(
    model_path: str, last_layer: int | None = None, *, revision: str | None = None
) -> dict[str, Tensor]:
    """What training reads of a target: ``embedding``, ``head`` and its ``head_bias`` where it has one.

    With ``last_layer`` also ``final_norm`` and, where the target has them, that layer's ``gate_proj``, ``up_proj`` and
    ``norm`` (the one before its MLP); norms are what they multiply by.
    """
    embedding, head = read_embedding_and_head(model_path, revision=revision)
    tensors = {"embedding": embedding, "head": head}
    config = read_config(model_path, revision=revision)
    files = Checkpoint(model_path, config, revision=revision)
    bias = find_tensor(files, BIASES)
    if bias is not None:
        tensors["head_bias"] = files[bias]
    if last_layer is None:
        return tensors
    layer = f"layers.{last_layer}"
    endings = {
        "final_norm": FINAL_NORMS,
        "gate_proj": (f"{layer}.mlp.gate_proj.weight",),
        "up_proj": (f"{layer}.mlp.up_proj.weight",),
        "gate_up": (f"{layer}.mlp.gate_up_proj.weight",),
        "norm": tuple(f"{layer}.{norm}.weight" for norm in MLP_NORMS),
    }
    for key, names in endings.items():
        name = find_tensor(files, names)
        # Projections that only a package can read are left out; the draft can start without them.
        with suppress(ModelError) if files.needs_package else nullcontext():
            if name is not None:
                tensors[key] = files[name]
    kind = str(text_part(config).get("model_type"))
    if kind in BARE_NORMS:
        tensors["final_norm"] = torch.ones(embedding.shape[1])
    if "final_norm" not in tensors:
        raise ModelError(
            "missing-tensor", "no norm before the head", where=model_path, fix="start with --draft-init random"
        )
    if "gate_up" in tensors:
        tensors["gate_proj"], tensors["up_proj"] = tensors.pop("gate_up").chunk(2)
    if kind.startswith(UNIT_OFFSET_NORMS) and not kind.startswith(NOT_UNIT_OFFSET):
        tensors |= {key: tensors[key].float() + 1 for key in ("final_norm", "norm") if key in tensors}
    return tensors


def read_head(model_path: str, config: Mapping[str, Any], *, revision: str | None = None) -> Head:
    """A target's head as its family applies it; ``config`` is the target's, with its family's defaults."""
    tensors = read_target_tensors(model_path, revision=revision)
    return make_head(config, tensors["head"], tensors.get("head_bias"))


def read_config(model_path: str, *, revision: str | None = None) -> dict[str, Any]:
    """A target's ``config.json``, from a folder or from the hub."""
    return read_json_object(model_file(model_path, "config.json", revision))


def fingerprint(model_path: str, *, revision: str | None = None) -> str:
    """Tells one target from another: its config, and size and a few samples of the weight files that training reads.

    Those hold the embedding, the head and the last layer, so that offline training fetches no others. Reads some 64 kB
    of each file. Two fine-tunes of one model differ; a copy of a folder does not.
    """
    digest = blake2b(digest_size=16)
    config = read_config(model_path, revision=revision)
    digest.update(json.dumps({k: v for k, v in config.items() if not k.startswith("_")}, sort_keys=True).encode())
    files = tensor_files(model_path, revision)
    last_layer = f"layers.{text_part(config).get('num_hidden_layers', 0) - 1}."
    read = {file for name, file in files.items() if last_layer in name or name.endswith(SAMPLED)}
    for name in sorted(read or set(files.values())):
        path = model_file(model_path, name, revision)
        size = path.stat().st_size
        digest.update(f"{name} {size}".encode())
        with path.open("rb") as f:
            for sample in range(SAMPLES):
                f.seek(size * sample // SAMPLES)
                digest.update(f.read(SAMPLE_BYTES))
    return digest.hexdigest()


def find_tensor(names: Collection[str], endings: Sequence[str]) -> str | None:
    """The tensor whose name ends in one of ``endings``; the shortest, where a model has several parts."""
    for ending in endings:
        matches = [n for n in names if n == ending or n.endswith(f".{ending}")]
        matches = [n for n in matches if not any(part in n for part in OTHER_PARTS)]
        if matches:
            return min(matches, key=lambda n: (n.count("."), n))
    return None


def is_tied(config: dict[str, Any]) -> bool | None:
    """Whether the head is the embedding; None where the config leaves it to what the weights hold.

    A wrapper and its text part may disagree: then the weights decide, too.
    """
    parts = (config, config.get("text_config") or {})
    named = {bool(part["tie_word_embeddings"]) for part in parts if part.get("tie_word_embeddings") is not None}
    return named.pop() if len(named) == 1 else None


def _looked_for(endings: Sequence[str]) -> str:
    return f"looked for names ending in {', '.join(endings)}"
