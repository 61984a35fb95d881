"""Quantised weights mean what their formats define: written number by number here, read there, and run as a target."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from eagle3cli.backends.capture.memory import target_shape
from eagle3cli.backends.target import hf_load
from eagle3cli.backends.target.head import read_config, read_target_tensors
from eagle3cli.backends.target.hf import load_target
from eagle3cli.backends.target.weights import compressed, fp8, gptq
from eagle3cli.backends.target.weights.checkpoint import Checkpoint
from eagle3cli.backends.target.weights.packing import spread, unpack
from eagle3cli.backends.target.weights.quantization import quantization_of
from eagle3cli.errors import ModelError
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.models import TargetSettings
from tests.backends.target.rank_states import ROWS
from tests.failing import fails
from tests.quantized import FORMATS, mxfp4_target, nvfp4, packed_integers, quantized_target, words, write_weights
from tests.quantized import fp8 as pack_fp8
from tests.tiny import tiny_target

WORDS = {
    "fp8-blocks": "FP8, blocks of 24 x 48",
    "gptq-3": "GPTQ, 3 bits, groups of 32",
    "awq": "AWQ, 4 bits, groups of 32",
    "compressed-int8": "compressed-tensors, int-quantized, 8 bits",
    "modelopt-nvfp4": "ModelOpt, NVFP4",
    "mxfp4": "MXFP4",
}


@pytest.fixture(autouse=True)
def same_numbers() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def checkpoint(target: Path) -> Checkpoint:
    return Checkpoint(str(target), read_config(str(target)))


@pytest.mark.parametrize("name", [*FORMATS, "mxfp4"])
def test_weights_are_what_the_format_says(tmp_path: Path, name: str) -> None:
    target, meant = mxfp4_target(tmp_path) if name == "mxfp4" else quantized_target(tmp_path, name)
    read = checkpoint(target)
    plain = load_file(meant / "model.safetensors")
    assert set(read) == plain.keys()
    for key, expected in plain.items():
        torch.testing.assert_close(read[key].float(), expected, rtol=1e-6, atol=1e-7)
    if name in WORDS:
        assert str(read.quantization) == WORDS[name]
    offline = read_target_tensors(str(target), 7)
    torch.testing.assert_close(offline["head"], plain["lm_head.weight"], rtol=1e-6, atol=1e-7)
    assert ("gate_proj" in offline) is (name != "mxfp4")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "kind"),
    [("gptq", "qwen2"), ("fp8-blocks", "deepseek-v3"), ("compressed-int4", "qwen3-moe"), ("awq", "gemma3-vision")],
)
def test_states_are_those_of_the_weights_that_are_meant(tmp_path: Path, name: str, kind: str) -> None:
    target, meant = (
        load_target(TargetSettings(model_path=str(folder), device="cpu"), Silent())
        for folder in quantized_target(tmp_path, name, kind=kind)
    )
    for ours, theirs in zip(target.capture(ROWS), meant.capture(ROWS), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(target.head.weight_VH, meant.head.weight_VH, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_integers_come_out_of_words_as_they_went_in(bits: int) -> None:
    values = torch.randint(2**bits, (41,))
    packed = torch.tensor([words(values.tolist(), bits)], dtype=torch.int32)
    assert unpack(packed, bits, 41)[0].tolist() == values.tolist()


@pytest.mark.parametrize("bits", [3, 5])
def test_compressed_words_of_whole_integers_are_known_by_how_many_there_are(bits: int) -> None:
    values = torch.randint(2**bits, (2, 320))
    each = 32 // bits
    rows = [[words(row[at : at + each], bits)[0] for at in range(0, 320, each)] for row in values.tolist()]
    stored = {"weight_packed": torch.tensor(rows, dtype=torch.int32), "weight_shape": torch.tensor([2, 320])}
    stored |= {"weight_scale": torch.ones(2, 1)}
    assert torch.equal(compressed.decode(stored, {"num_bits": bits}), values - 2.0 ** (bits - 1))
    stored["weight_packed"] = stored["weight_packed"][:, 1:]
    with pytest.raises(ValueError, match=f"words a row for 320 integers of {bits} bits"):
        compressed.decode(stored, {"num_bits": bits})


def test_gptq_zeros_of_zero_were_stored_with_borrows() -> None:
    four, three = [0, 8, 0, 0, 15, 1, 0, 7] * 4, [0, 4, 7, 0, 1, 2, 3, 0] * 4
    taken_off = {
        4: torch.tensor([words(four, 4)], dtype=torch.int32) - 0x11111111,
        3: torch.tensor([words([(zero - 1) % 8 for zero in three], 3)], dtype=torch.int32),
    }
    for bits, zeros in ((4, four), (3, three)):
        parts = {"qweight": torch.zeros(bits, 32, dtype=torch.int32), "scales": torch.ones(1, 32)}
        assert (-gptq.decode({**parts, "qzeros": taken_off[bits]}, 1)[:, 0]).tolist() == zeros
    with pytest.raises(ValueError, match=r"words of torch.int16"):
        gptq.decode({**parts, "qzeros": torch.zeros(1, 4, dtype=torch.int16)}, 1)


def test_an_order_that_was_not_chosen_is_the_columns_own() -> None:
    weight = torch.randn(8, 64)
    stored, meant = packed_integers(weight, 4, symmetric=True)
    stored["weight_g_idx"] = torch.full((64,), -1, dtype=torch.int32)
    assert torch.equal(compressed.decode(stored, {"num_bits": 4}), meant)


def test_a_scale_for_each_expert() -> None:
    assert spread(torch.tensor([1.0, 2.0]), (2, 4, 3)).flatten().tolist() == [1, 2]


def test_blocks_that_are_cut_off_and_blocks_of_equal_parts() -> None:
    grid = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert spread(grid, (5, 4), (3, 2))[:, 0].tolist() == [1, 1, 1, 3, 3]
    assert spread(grid, (4, 4))[:, 3].tolist() == [2, 2, 4, 4]
    with pytest.raises(ValueError, match=r"\[2, 2\] scales for weights of \[5, 4\]"):
        spread(grid, (5, 4))


def test_transformers_means_the_same_by_fp8() -> None:
    integration = pytest.importorskip("transformers.integrations.finegrained_fp8")
    if not hasattr(integration, "Fp8Dequantize"):
        pytest.skip("transformers 4 dequantises nothing")
    theirs = integration.Fp8Dequantize(None)
    stored, _ = pack_fp8(torch.randn(48, 96), "scale", (24, 48))
    experts = {"weight": torch.randint(256, (48, 32), dtype=torch.uint8).view(torch.int8)}
    experts["scale"] = torch.randint(120, 130, (48, 2), dtype=torch.uint8)
    for parts in (stored, experts):
        expected = theirs._dequantize_one(parts["weight"], parts["scale"], torch.float32)
        assert torch.equal(fp8.decode(parts, None), expected)


def test_compressed_tensors_means_the_same() -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weight = torch.randn(48, 64)
    integers: dict[str, Any] = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
    cases: list[tuple[str, dict[str, Tensor], dict[str, Any], float]] = [
        ("pack-quantized", packed_integers(weight)[0], {**integers, "symmetric": False}, 0),
        (
            "nvfp4-pack-quantized",
            nvfp4(weight, ("weight_packed", "weight_global_scale"), True)[0],
            {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
            0.01,  # theirs rounds to bfloat16
        ),
    ]
    for name, stored, args, rtol in cases:
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
        theirs = BaseCompressor.get_value_from_registry(name).decompress(dict(stored), scheme)["weight"].float()
        torch.testing.assert_close(compressed.decode(stored, args), theirs, rtol=rtol, atol=0)


@pytest.mark.parametrize(
    ("quantization", "reason"),
    [
        ({"quant_method": "runes"}, "quantised in an unknown way: runes"),
        ({"bits": 4}, "quant_method is missing"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "with the package bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "layout is marlin"),
        ({"quant_method": "awq", "version": "gemv"}, "version is gemv, not gemm"),
        ({"quant_method": "awq", "bits": 8}, "8 bits, not 4"),
        ({"quant_method": "modelopt", "quant_algo": "INT4_AWQ"}, "INT4_AWQ is not FP8 or NVFP4"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "format is marlin-24"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized", "transform_config": {"a": 1}}, "rotations"),
        ({"quant_method": "awq", "version": "gemm"}, "does not say what 2 of its tensors mean (layer.weight_packed)"),
        (None, "config.json names no quantisation, but 2 tensors belong to quantised weights (layer.weight_packed)"),
    ],
)
def test_what_is_not_known_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: dict[str, Any] | None, reason: str
) -> None:
    target = tiny_target(tmp_path)
    extra = {"layer.weight_packed": torch.zeros(1, dtype=torch.int32), "layer.weight_scale": torch.ones(1)}
    write_weights(target, {**load_file(target / "model.safetensors"), **extra}, quantization)
    for read in (
        lambda: checkpoint(target),
        lambda: load_target(TargetSettings(model_path=str(target), device="cpu"), Silent()),
    ):
        with pytest.raises(ModelError) as caught:
            read()
        assert reason in str(caught.value)
        assert caught.value.fix


def test_awq_scales_of_activations_are_refused(tmp_path: Path) -> None:
    target, _ = quantized_target(tmp_path, "awq")
    tensors = load_file(target / "model.safetensors")
    write_weights(target, {**tensors, "model.layers.0.mlp.act.scales": torch.ones(3)})
    with fails("unsupported-quantization", "1", "model.layers.0.mlp.act.scales"):
        checkpoint(target)


def test_damage_is_named(tmp_path: Path) -> None:
    target, _ = quantized_target(tmp_path, "gptq")
    tensors = load_file(target / "model.safetensors")
    name = "model.layers.3.mlp.down_proj"
    write_weights(target, {**tensors, f"{name}.scales": tensors[f"{name}.scales"][:, :3]})
    with fails("damaged-file", name):
        load_target(TargetSettings(model_path=str(target), device="cpu"), Silent())
    infinite = tensors[f"{name}.scales"].clone()
    infinite[0, 0] = float("inf")
    write_weights(target, {**tensors, f"{name}.scales": infinite})
    with fails("damaged-file", name):
        load_target(TargetSettings(model_path=str(target), device="cpu"), Silent())
    del tensors["model.layers.3.self_attn.o_proj.qzeros"]
    write_weights(target, tensors)
    with fails("damaged-file", "o_proj.weight"):
        load_target(TargetSettings(model_path=str(target), device="cpu"), Silent())
    gone = {key: tensor for key, tensor in tensors.items() if "o_proj" not in key}
    write_weights(target, gone)
    with fails("damaged-file", "8", "model.layers.0.self_attn.o_proj.weight"):
        load_target(TargetSettings(model_path=str(target), device="cpu"), Silent())


def test_a_file_beside_the_config_is_how_modelopt_began(tmp_path: Path) -> None:
    target, meant = quantized_target(tmp_path, "modelopt-nvfp4")
    raw = read_config(str(target))
    (target / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    del raw["quantization_config"]
    (target / "config.json").write_text(json.dumps(raw))
    read = checkpoint(target)["lm_head.weight"]
    torch.testing.assert_close(read, load_file(meant / "model.safetensors")["lm_head.weight"])
    assert quantization_of({"quantization_config": {"quant_method": "gguf"}}) is None


def test_layers_of_several_groups_are_read_by_their_own(tmp_path: Path) -> None:
    weight = torch.randn(16, 64)
    (stored, meant), name = packed_integers(weight, 8), "model.layers.1.mlp.up_proj"
    groups = {
        "group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}},
        "group_1": {"targets": [r"re:.*up_proj"], "weights": {"num_bits": 8}},
    }
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    write_path = tiny_target(tmp_path)
    write_weights(write_path, {f"{name}.{part}": tensor for part, tensor in stored.items()}, config)
    assert torch.equal(checkpoint(write_path)[f"{name}.weight"], meant)


def test_a_plan_counts_what_stays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, _ = quantized_target(tmp_path, "fp8-blocks")
    settings = TargetSettings(model_path=str(target), device="cpu")
    on_cpu = target_shape(settings)
    assert on_cpu.weight_bytes(4) == 4 * on_cpu.weights
    monkeypatch.setattr(hf_load.importlib.util, "find_spec", lambda name: object())  # type: ignore[attr-defined]
    on_gpu = target_shape(settings.model_copy(update={"device": "cuda", "backend": "hf"}))
    assert on_gpu.weight_bytes(2) == int(1.25 * on_gpu.weights)
