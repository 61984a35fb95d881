"""RoPE that a .gguf file stretches is stretched in its folder, too: transformers reads the base alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from eagle3cli.backends.target.gguf.files import target_gguf
from eagle3cli.backends.target.gguf.folder import (
    SOURCE_FILE,
    STRETCH_FILE,
    existing_conversion,
    local_folder,
    source_of,
)
from eagle3cli.backends.target.gguf.rope import read_scaling, scaling_of_factors
from eagle3cli.runtime.report import Silent
from tests.backends.target.gguf.test_folder import write_gguf
from tests.failing import fails
from tests.families import LLAMA3, YARN
from tests.serving.engine_case import make_target

LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}


def llama3_factors(theta: float, pairs: int, factor: float, low: float, high: float, original: int) -> list[float]:
    """llama.cpp's, number by number, as its converter computes them."""
    found = []
    for pair in range(pairs):
        length = 2 * math.pi * theta ** (pair / pairs)
        if length < original / high:
            found.append(1.0)
        elif length > original / low:
            found.append(factor)
        else:
            smooth = (original / length - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return [float(np.float32(value)) for value in found]


@pytest.mark.parametrize(
    ("theta", "pairs", "factor", "original"),
    [(500000.0, 64, 8.0, 8192), (500000.0, 32, 32.0, 8192), (10000.0, 32, 4.0, 512), (500000.0, 16, 8.0, 128)],
)
def test_llama_3s_numbers_are_found_again(theta: float, pairs: int, factor: float, original: int) -> None:
    factors = llama3_factors(theta, pairs, factor, 1.0, 4.0, original)
    expected = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert scaling_of_factors(factors, theta) == {**expected, "original_max_position_embeddings": original}


def test_other_factors() -> None:
    assert scaling_of_factors([1.0] * 16, 1e4) is None
    assert scaling_of_factors([2.0] * 16, 1e4) == {"rope_type": "linear", "factor": 2.0}
    half = scaling_of_factors(llama3_factors(1e4, 32, 8.0, 2.0, 8.0, 512), 1e4)  # the same in another unit
    assert half is not None
    assert (half["low_freq_factor"], half["high_freq_factor"], half["original_max_position_embeddings"]) == (1, 4, 256)
    with fails("no-gguf", "3"):
        scaling_of_factors(list(range(1, 17)), 1e4)


@pytest.mark.skipif(transformers.__version__.startswith("4."), reason="the original's config is one of transformers 5")
@pytest.mark.parametrize("rope", [{**LLAMA3, "original_max_position_embeddings": 32}, LINEAR])
def test_a_folder_computes_what_its_file_was_made_of(rope: dict[str, Any], tmp_path: Path) -> None:
    make_target(tmp_path / "original", "llama", rope_parameters=rope, num_hidden_layers=3)
    path = str(target_gguf(str(tmp_path / "original"), tmp_path / "files", Silent(), outtype="f32"))
    folder = Path(local_folder(path, tmp_path / "models", Silent()))
    tokens = torch.arange(3, 99)[None]
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(each)(tokens).logits for each in (folder, tmp_path / "original")
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    # A folder of an older version, which took it for plain, is made again.
    (folder / STRETCH_FILE).unlink()
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 5000.0}
    (folder / "config.json").write_text(json.dumps(config))
    assert existing_conversion(path, tmp_path / "models") is None
    local_folder(path, tmp_path / "models", Silent())
    assert json.loads((folder / "config.json").read_text())["rope_parameters"]["rope_type"] == rope["rope_type"]


def reader(path: Path, *tensors: str, **scaling: Any) -> gguf.GGUFReader:
    """A file of these tensors, and what it says under ``rope.scaling``."""
    writer = gguf.GGUFWriter(path, "qwen2")
    for key, value in scaling.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(f"qwen2.rope.scaling.{key}", value)
    for name in ("output_norm.weight", *tensors):
        writer.add_tensor(name, np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf.GGUFReader(path)


def test_a_stretch_in_words(tmp_path: Path) -> None:
    yarn = reader(tmp_path / "yarn", type="yarn", factor=4.0, original_context_length=32768)
    expected = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert read_scaling(yarn, 1e6) == expected
    sharp = reader(tmp_path / "sharp", type="yarn", factor=4.0, yarn_beta_fast=16.0, yarn_attn_factor=1.0)
    assert read_scaling(sharp, 1e6) == {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0}
    assert read_scaling(reader(tmp_path / "old", factor=2.0), 1e6) == LINEAR_2  # of before there were kinds
    assert read_scaling(reader(tmp_path / "line", type="linear", factor=2.0), 1e6) == LINEAR_2
    assert read_scaling(reader(tmp_path / "none", type="none"), 1e6) is None
    assert read_scaling(reader(tmp_path / "plain"), 1e6) is None
    for name, lacking in (
        ("long", {"type": "longrope", "factor": 4.0}),
        ("other", {"type": "yarn", "attn_factor": 2.0}),
        ("deepseek", {"type": "yarn", "factor": 4.0, "yarn_log_multiplier": 0.1}),
    ):
        with fails("no-gguf"):
            read_scaling(reader(tmp_path / name, **lacking), 1e6)
    with fails("no-gguf"):
        read_scaling(reader(tmp_path / "two", "rope_factors_long.weight"), 1e6)


LINEAR_2 = {"rope_type": "linear", "factor": 2.0}


def test_a_file_that_says_half_of_it_is_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", stretch="linear")
    with fails("bad-json"):
        local_folder(str(tmp_path / "tiny.gguf"), tmp_path / "models", Silent())


def test_a_file_of_yarn_factors_is_refused(tmp_path: Path) -> None:
    make_target(tmp_path / "original", "llama", rope_parameters=YARN, num_hidden_layers=3)
    path = target_gguf(str(tmp_path / "original"), tmp_path / "files", Silent(), outtype="f32")
    with fails("no-gguf", "3"):
        local_folder(str(path), tmp_path / "models", Silent())
    assert not (tmp_path / "models" / path.stem).exists()
    # Nor is the plain RoPE of an older version's folder taken for it.
    folder = tmp_path / "models" / path.stem
    folder.mkdir(parents=True)
    (folder / SOURCE_FILE).write_text(json.dumps(source_of(str(path))))
    with fails("no-gguf", "3"):
        local_folder(str(path), tmp_path / "models", Silent())
    assert not (folder / STRETCH_FILE).exists()
