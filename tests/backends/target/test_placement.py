"""Targets that are spread over memory and disk, of other types, or quantised: their states are the same, or near."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from eagle3cli.backends.target.hf import load_target
from eagle3cli.backends.target.hf_load import placement
from eagle3cli.data.hidden_states.quantize import relative_error
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.models import TargetSettings
from tests.conftest import RunCli, SharedTarget
from tests.failing import fails
from tests.tiny import SETTINGS, conversations, tiny_target

ROWS = (list(range(5, 25)), [7, 8, 9])


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, text: str) -> None:
        self.lines.append(text)


def quantise(folder: Path, meant: Path) -> None:
    """Rewrite the layers' weights as 8-bit floats with a scale for each block of 128 x 128, as published models are;
    the model at ``meant`` gets what these numbers mean."""
    tensors = load_file(folder / "model.safetensors")
    plain = dict(tensors)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        scale = tensors[name].abs().max() / 448
        tensors[name.replace(".weight", ".weight_scale_inv")] = scale.reshape(1, 1).float()
        tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        plain[name] = tensors[name].float() * scale
    save_file(plain, meant / "model.safetensors", metadata={"format": "pt"})
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen3-moe"])
def test_a_target_on_disk_gives_the_same_states(tmp_path: Path, shared_target: SharedTarget, name: str) -> None:
    folder = shared_target(name)
    whole = load_target(TargetSettings(model_path=str(folder), device="cpu"), Silent())
    spec = TargetSettings(
        model_path=str(folder), device="cpu", max_memory=("cpu=400KB",), offload_folder=tmp_path / "offload"
    )
    report = Told()
    spread = load_target(spec, report)
    assert "modules on disk" in report.lines[-1]
    assert "modules on disk" in placement(spread.model, spread.device)
    for (aux, last), (aux_too, last_too) in zip(whole.capture(ROWS), spread.capture(ROWS), strict=True):
        # To rounding: weights read from disk lie elsewhere in memory, and kernels may add up in another order there.
        torch.testing.assert_close(aux_too, aux)
        torch.testing.assert_close(last_too, last)
    assert torch.equal(whole.embedding_VH, spread.embedding_VH)
    assert torch.equal(whole.head.weight_VH, spread.head.weight_VH)


def test_limits_and_combinations_that_mean_nothing_are_refused(tmp_path: Path, tiny: Path, run_cli: RunCli) -> None:
    with fails("invalid-value", "20GiB"):
        load_target(TargetSettings(model_path=str(tiny), max_memory=("20GiB",)), Silent())
    ran = run_cli("train", "--target-model-path", tiny, "--tp-size", "2", "--device-map", "auto")
    assert (ran.code, ran.error == "invalid-value") == (2, True), ran.err


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_checkpoint_of_16_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = tiny_target(tmp_path / "target")
    whole = load_target(TargetSettings(model_path=str(folder), device="cpu"), Silent()).capture(ROWS)
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for spec in ({}, {"dtype": str(dtype).removeprefix("torch.")}):
        target = load_target(
            TargetSettings.model_validate({"model_path": str(folder), "device": "cpu", **spec}), Silent()
        )
        assert target.dtype == (dtype if spec else torch.float32)
        for (aux, last), (aux_too, last_too) in zip(whole, target.capture(ROWS), strict=True):
            assert relative_error(aux, aux_too.float()) < 0.05
            assert relative_error(last, last_too.float()) < 0.05


@pytest.mark.slow
@pytest.mark.skipif(transformers.__version__.startswith("4."), reason="transformers 4 reads them on GPUs alone")
@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_8_bit_floats(tmp_path: Path, run_cli: RunCli) -> None:
    folder, meant = (tiny_target(tmp_path / name, "qwen3") for name in ("target", "meant"))
    quantise(folder, meant)
    states = [
        load_target(TargetSettings(model_path=str(path), device="cpu"), Silent()).capture(ROWS)
        for path in (meant, folder)
    ]
    for (aux, last), (aux_too, last_too) in zip(*states, strict=True):
        torch.testing.assert_close(aux_too, aux, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(last_too, last, rtol=1e-3, atol=1e-3)
    (tmp_path / "train.jsonl").write_text(conversations(6, 0))
    (tmp_path / "eval.jsonl").write_text(conversations(2, 100))
    (tmp_path / "eagle3.toml").write_text(SETTINGS.format(tiny=folder))
    assert run_cli("hidden-states").code == 0
    for mode in ("online", "offline"):
        ran = run_cli("train", "--mode", mode, "--total-steps", "2", "--output-dir", mode)
        assert ran.code == 0, ran.err
