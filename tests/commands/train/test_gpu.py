"""Commands on the pretend GPU, as typed: they give what they give on a CPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eagle3cli.backends.batches.store import StoreSource
from eagle3cli.data.hidden_states.store import Store
from eagle3cli.training.ttt import flex_attention
from tests.commands.train.runs import last_state
from tests.conftest import Ran, RunCli
from tests.gpu_tensor import PretendGpu
from tests.pretend_gpu import pretend_gpu
from tests.tiny import conversations

SETTINGS = """
[target]
model_path = "{target}"
dtype = "float32"
threads = 1
[draft]
vocab_size = 200
init = "random"
[data]
train_path = "train.jsonl"
eval_path = "eval.jsonl"
max_length = 128
[train]
total_steps = 3
batch_size = 4
learning_rate = 1e-3
ttt_length = 3
dtype = "float32"
log_interval = 1
"""
"""In fp32 on both, since the CPU's own bfloat16 rounds elsewhere; random weights, since the solved ones of a target
without sense have gradients in the hundreds."""


@pytest.fixture(scope="module")
def target(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny target with weights that bfloat16 holds: a GPU reads some of them in that type."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("half") / "llama"
    shutil.copytree(tiny, folder)
    AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path, target: Path) -> Path:
    (tmp_path / "train.jsonl").write_text(conversations(8, 0))
    (tmp_path / "eval.jsonl").write_text(conversations(3, 100))
    (tmp_path / "eagle3.toml").write_text(SETTINGS.format(target=target))
    return tmp_path


def worked(ran: Ran) -> Any:
    assert ran.code == 0, ran.err
    return ran.json


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def check_same_run(gpu: Path, cpu: Path, rel: float = 1e-5) -> None:
    """Losses, gradient norms, accuracies and acceptance of two runs, and the weights that they end with."""
    for ours, theirs in zip(events(gpu), events(cpu), strict=True):
        for name in {"loss", "depth_losses", "grad_norm", "acceptance_length"} & theirs.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=10 * rel if name == "grad_norm" else rel)
    weights, others = (load_file(run / "best" / "model.safetensors") for run in (gpu, cpu))
    for name, weight in others.items():
        # In all: where a gradient is nearly zero, a rounding may turn the direction of Adam's first steps.
        difference = (weights[name].float() - weight.float()).norm()
        assert difference <= max(3 * rel, 1e-4) * weight.float().norm(), name


def train_on_both(run_cli: RunCli, *words: str) -> PretendGpu:
    """``cpu`` and ``gpu``, two runs in the same folder."""
    worked(run_cli("train", "--device", "cpu", "--output-dir", "cpu", *words, "--json"))
    with pretend_gpu() as gpu:
        worked(run_cli("train", "--output-dir", "gpu", *words, "--json"))
    return gpu


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [(), ("--loss", "mix"), ("--optimizer", "muon", "--activation-checkpointing")],
    ids=["plain", "mix", "muon, recompute"],
)
def test_train_online(place: Path, run_cli: RunCli, gpu_kernel: None, words: tuple[str, ...]) -> None:
    train_on_both(run_cli, *words)
    check_same_run(place / "gpu", place / "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["bf16", "fp8", "int8", "int4"])
def test_train_offline(place: Path, run_cli: RunCli, gpu_kernel: None, quantization: str) -> None:
    """A GPU decodes states to bfloat16, which rounds those of three encodings once more."""
    assert run_cli("hidden-states", "--device", "cpu", "--encoding", quantization).code == 0
    train_on_both(run_cli, "--mode", "offline")
    check_same_run(place / "gpu", place / "cpu", rel=1e-5 if quantization == "bf16" else 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_what_a_run_waits_for_in_a_step(place: Path, run_cli: RunCli, gpu_kernel: None, mode: str) -> None:
    """For its gradient norm, though it has four micro batches; all other waits are a run's, not a step's."""
    if mode == "offline":
        assert run_cli("hidden-states", "--device", "cpu").code == 0
    words = ("train", "--mode", mode, "--log-interval", "99", "--draft-micro-batch-size", "1", "--overwrite", "--json")
    words = (*words, "--ema-decay", "0.9")
    counted = []
    for steps in (1, 5):
        with pretend_gpu() as gpu:
            worked(run_cli(*words, "--total-steps", str(steps)))
        counted.append(gpu.syncs)
    assert (counted[1] - counted[0]).total() <= 4, counted[1] - counted[0]


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["bf16", "int4"])
def test_states_captured_on_a_gpu(place: Path, run_cli: RunCli, quantization: str) -> None:
    words = ("hidden-states", "--encoding", quantization, "--output-path")
    assert run_cli(*words, "cpu", "--device", "cpu").code == 0
    with pretend_gpu():
        assert run_cli(*words, "gpu").code == 0
    ours, theirs = (StoreSource(Store(place / name / "train")).batch(range(8)) for name in ("gpu", "cpu"))
    assert torch.equal(ours.top_N, theirs.top_N)
    for name in ("aux_NC", "last_NH"):
        difference = getattr(ours, name) - getattr(theirs, name)
        assert difference.norm() <= 1e-2 * getattr(theirs, name).norm()


@pytest.mark.slow
def test_a_run_of_the_types_that_a_gpu_takes_by_itself(place: Path, run_cli: RunCli, gpu_kernel: None) -> None:
    train_on_both(run_cli, "--dtype", "bfloat16", "--draft-dtype", "bfloat16")
    check_same_run(place / "gpu", place / "cpu", rel=2e-2)


@pytest.mark.slow
def test_resume_goes_on_bit_for_bit(place: Path, run_cli: RunCli, gpu: PretendGpu) -> None:
    words = ("train", "--save-interval", "2", "--ema-decay", "0.9", "--json")
    worked(run_cli(*words))
    whole = last_state(place / "runs" / "train")
    shutil.rmtree(next((place / "runs" / "train" / "checkpoints").glob("*_step_3")))
    assert worked(run_cli(*words))["steps_this_time"] == 1
    assert last_state(place / "runs" / "train") == whole


@pytest.fixture
def draft(place: Path, run_cli: RunCli) -> tuple[str, str]:
    """The flag that names a draft."""
    worked(run_cli("train", "--device", "cpu", "--total-steps", "1", "--json"))
    return "--draft-model-path", "runs/train/best"


@pytest.mark.slow
def test_eval(draft: tuple[str, str], run_cli: RunCli, gpu_kernel: None) -> None:
    on_cpu = worked(run_cli("eval", *draft, "--device", "cpu", "--json"))
    with pretend_gpu():
        assert worked(run_cli("eval", *draft, "--json")) == on_cpu


@pytest.mark.slow
def test_eval_takes_the_kernel_of_the_device(
    draft: tuple[str, str], run_cli: RunCli, gpu: PretendGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(flex_attention, "_compiled", refused)
    assert "compiled" in run_cli("eval", *draft).err
    assert run_cli("eval", *draft, "--device", "cpu").code == 0


@pytest.mark.slow
def test_bench(draft: tuple[str, str], target: Path, place: Path, run_cli: RunCli, gpu_kernel: None) -> None:
    words = ("bench", "--engine", "local", "--model-path", target, *draft, "--benchmark-list", "mtbench-like:2")
    words = (*words, "--max-tokens", "6", "--config-list", "2,0,0,0", "2,3,1,4", "--json", "--output")
    worked(run_cli(*words, "cpu.jsonl", "--device", "cpu"))
    with pretend_gpu():
        worked(run_cli(*words, "gpu.jsonl"))
    compared = ("kind", "token_ids", "finish", "passes", "accepted_at", "compared", "identical", "acceptance_length")
    files = ((place / name).read_text().splitlines() for name in ("cpu.jsonl", "gpu.jsonl"))
    on_cpu, on_gpu = ([[json.loads(line).get(name) for name in compared] for line in lines] for lines in files)
    assert len(on_cpu) == 7  # settings, and of two configurations two questions and a summary
    assert on_gpu == on_cpu
