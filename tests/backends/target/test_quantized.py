"""Targets in MXFP4 and FP8: kept on a GPU that has their kernels, dequantised elsewhere, with the same meaning."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig

from eagle3cli.backends.target import hf_load
from eagle3cli.backends.target.hf import load_target
from eagle3cli.backends.target.hf_load import is_kept_by_transformers, load_model
from eagle3cli.backends.target.weights.quantization import Quantization
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.models import TargetSettings
from tests.backends.target.rank_states import ROWS
from tests.failing import fails
from tests.families import family_target

CONFIGS: dict[str, dict[str, Any]] = {
    "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    "fp8": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head"],
    },
}
GPU = torch.device("cuda")


class Told(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What transformers is asked for instead of loading it."""
    calls: list[dict[str, Any]] = []

    class Loader:
        @staticmethod
        def from_pretrained(path: str, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
            calls.append(options)
            return nn.Linear(1, 1), {"missing_keys": set()}

    monkeypatch.setattr(hf_load, "_auto_class", lambda config: Loader)
    monkeypatch.setattr(nn.Module, "to", lambda module, device: calls[-1].update(moved=device))
    return calls


def with_packages(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in names else None)


def quantized_config(folder: Path, method: str | None) -> Any:
    path = family_target(folder, "gpt-oss") / "config.json"
    raw = json.loads(path.read_text())
    if method is not None:
        raw["quantization_config"] = CONFIGS[method]
    path.write_text(json.dumps(raw))
    return AutoConfig.from_pretrained(folder)


@pytest.mark.parametrize("method", CONFIGS)
def test_kernels_keep_the_weights_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[dict[str, Any]], method: str
) -> None:
    config = quantized_config(tmp_path, method)
    with_packages(monkeypatch, "accelerate", "kernels", "triton")
    load_model(TargetSettings(model_path=str(tmp_path)), config, GPU, torch.bfloat16, told := Told())
    assert (asked[0]["device_map"], told.warnings) == ({"": GPU}, [])
    assert not asked[0].keys() & {"config", "moved"}


@pytest.mark.parametrize(("method", "times"), [("mxfp4", "4 times"), ("fp8", "2 times")])
def test_without_kernels_they_are_dequantised_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[dict[str, Any]], method: str, times: str
) -> None:
    config = quantized_config(tmp_path, method)
    with_packages(monkeypatch, "accelerate", "triton")
    load_model(TargetSettings(model_path=str(tmp_path)), config, GPU, torch.bfloat16, told := Told())
    own = asked[0]["config"].quantization_config
    assert own == {**CONFIGS[method], "dequantize": True}
    assert config.quantization_config == CONFIGS[method]
    assert asked[0]["device_map"] == {"": GPU}
    assert times in told.warnings[0]
    assert "pip install kernels" in told.warnings[0]


def test_transformers_has_no_kernels_for_one_scale_a_tensor() -> None:
    blocks = Quantization("fp8", CONFIGS["fp8"])
    assert is_kept_by_transformers(blocks)
    assert not is_kept_by_transformers(Quantization("fp8", {**CONFIGS["fp8"], "weight_block_size": None}))
    assert not is_kept_by_transformers(Quantization("gptq", {"bits": 4}))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = quantized_config(tmp_path, "mxfp4")
    with_packages(monkeypatch)
    with fails("missing-package", "mxfp4") as caught:
        load_model(TargetSettings(model_path=str(tmp_path)), config, GPU, torch.bfloat16)
    assert "pip install accelerate" in str(caught.value)


@pytest.mark.slow
def test_plain_weights_go_the_way_they_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[dict[str, Any]]
) -> None:
    with_packages(monkeypatch)
    plain = quantized_config(tmp_path / "plain", None)
    for device in (GPU, torch.device("cpu")):
        load_model(TargetSettings(model_path=str(tmp_path)), plain, device, torch.float32)
    assert [call["moved"].type for call in asked] == ["cuda", "cpu"]
    assert not any(call.keys() & {"config", "device_map", "state_dict"} for call in asked)


@pytest.mark.filterwarnings("ignore")
def test_gpt_oss_in_four_bits_means_what_its_blocks_say(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    folder, meant = (family_target(tmp_path / name, "gpt-oss") for name in ("target", "meant"))
    tensors = load_file(folder / "model.safetensors")
    plain = dict(tensors)
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        blocks = torch.randint(256, (*shape, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(121, 124, shape, generator=generator, dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        plain[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).contiguous()
        assert plain[name].shape == (experts, inputs, outputs)
    save_file(plain, meant / "model.safetensors", metadata={"format": "pt"})
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": CONFIGS["mxfp4"]}))
    states = [
        load_target(TargetSettings(model_path=str(each), device="cpu"), Silent()).capture(ROWS)
        for each in (meant, folder)
    ]
    for (aux, last), (aux_too, last_too) in zip(*states, strict=True):
        torch.testing.assert_close(aux_too, aux, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(last_too, last, rtol=1e-3, atol=1e-3)
