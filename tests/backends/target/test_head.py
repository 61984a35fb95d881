"""Embedding and head from a target's files: with or without an index, tied or not, under any common name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from eagle3cli.backends.target.head import fingerprint, read_embedding_and_head
from tests.failing import fails

EMBEDDING, HEAD = torch.randn(10, 4), torch.randn(10, 4)


def write(folder: Path, tensors: dict[str, Tensor], files: int = 0, **config: Any) -> Path:
    """A target folder with these tensors, in one file or, with an index, in several."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"vocab_size": 10, "hidden_size": 4, **config}))
    tensors = {name: value.clone() for name, value in tensors.items()}
    if not files:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {}
    for number in range(files):
        part = {name: value for i, (name, value) in enumerate(tensors.items()) if i % files == number}
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        save_file(part, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("files", [0, 2])
@pytest.mark.parametrize("prefix", ["model.", "", "language_model.model.", "model.language_model."])
def test_untied(tmp_path: Path, files: int, prefix: str) -> None:
    other = {f"{part}.embed_tokens.weight": torch.zeros(10, 4) for part in ("model.vision_tower", "mtp.0")}
    tensors = {f"{prefix}embed_tokens.weight": EMBEDDING, "lm_head.weight": HEAD, **other}
    embedding, head = read_embedding_and_head(str(write(tmp_path, tensors, files, tie_word_embeddings=False)))
    assert torch.equal(embedding, EMBEDDING)
    assert torch.equal(head, HEAD)


@pytest.mark.parametrize("config", [{"tie_word_embeddings": True}, {}, {"text_config": {"tie_word_embeddings": True}}])
def test_tied(tmp_path: Path, config: dict[str, Any]) -> None:
    embedding, head = read_embedding_and_head(str(write(tmp_path, {"model.embed_tokens.weight": EMBEDDING}, **config)))
    assert head is embedding
    assert torch.equal(embedding, EMBEDDING)


@pytest.mark.parametrize("name", ["embed_out.weight", "output_projection.weight"])
def test_other_names(tmp_path: Path, name: str) -> None:
    other = {"transformer.layers.0.output_projection.weight": EMBEDDING}  # an attention's
    tensors = {"transformer.wte.weight": EMBEDDING, name: HEAD, **other}
    folder = write(tmp_path, tensors, tie_word_embeddings=False)
    embedding, head = read_embedding_and_head(str(folder))
    assert torch.equal(embedding, EMBEDDING)
    assert torch.equal(head, HEAD)


def test_the_tiny_target(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny)
    embedding, head = read_embedding_and_head(str(tiny))
    assert torch.equal(embedding, model.get_input_embeddings().weight)
    assert torch.equal(head, model.get_output_embeddings().weight)


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with fails("no-weights"):
        read_embedding_and_head(str(tmp_path))
    folder = str(write(tmp_path, {"model.embed_tokens.weight": EMBEDDING}, tie_word_embeddings=False))
    with fails("missing-tensor", "tie_word_embeddings"):
        read_embedding_and_head(folder)
    write(tmp_path, {"lm_head.weight": EMBEDDING})
    with fails("missing-tensor"):
        read_embedding_and_head(folder)
    write(tmp_path, {"model.embed_tokens.weight": EMBEDDING[:9]})
    with fails("tensor-shape", "9", "4", "10"):
        read_embedding_and_head(folder)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with fails("damaged-file"):
        read_embedding_and_head(folder)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with fails("damaged-file"):
        read_embedding_and_head(folder)
    with fails("no-such-path"):
        read_embedding_and_head("/no/such/folder")


def test_fingerprint_tells_targets_apart(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": EMBEDDING, "lm_head.weight": HEAD}
    first = fingerprint(str(write(tmp_path / "a", tensors)))
    assert fingerprint(str(write(tmp_path / "copy", tensors))) == first
    assert fingerprint(str(write(tmp_path / "b", {**tensors, "lm_head.weight": HEAD + 1}))) != first
    assert fingerprint(str(write(tmp_path / "c", tensors, rope_theta=5.0))) != first


def test_fingerprint_needs_only_the_files_that_training_reads(tmp_path: Path) -> None:
    tensors = {f"model.layers.{n}.mlp.up_proj.weight": torch.full((8, 4), float(n)) for n in range(4)}
    tensors = {"model.embed_tokens.weight": EMBEDDING, **tensors, "lm_head.weight": HEAD}
    folder = write(tmp_path / "a", tensors, 6, num_hidden_layers=4, tie_word_embeddings=False)
    first = fingerprint(str(folder))
    for number in (2, 3, 4):  # layers 0 to 2
        (folder / f"model-{number:05d}-of-00006.safetensors").unlink()
    assert fingerprint(str(folder)) == first
    tuned = {**tensors, "model.layers.3.mlp.up_proj.weight": torch.full((8, 4), 9.0)}
    assert fingerprint(str(write(tmp_path / "b", tuned, 6, num_hidden_layers=4, tie_word_embeddings=False))) != first


def test_the_head_of_multi_token_prediction_is_neither_the_targets_nor_in_its_fingerprint(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": EMBEDDING, "model.layers.1.shared_head.head.weight": HEAD}
    first, other = (tmp_path / name for name in ("first", "other"))
    for folder, file in ((first, tensors), (other, {**tensors, "model.layers.1.shared_head.head.weight": HEAD + 1})):
        write(folder, file, 2, num_hidden_layers=1, text_config={})
    assert torch.equal(read_embedding_and_head(str(first))[1], EMBEDDING)
    assert fingerprint(str(first)) == fingerprint(str(other))
