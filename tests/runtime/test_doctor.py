"""The doctor under faked conditions: each problem with the command that mends it, and never a wait on the network."""

from __future__ import annotations

import resource
import shutil
import time
from collections import namedtuple
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eagle3cli.cli.completion.install import install
from eagle3cli.commands import doctor
from eagle3cli.runtime.doctor import hardware, hub, limits, packages
from eagle3cli.runtime.doctor.finding import Check, Finding, examine
from tests.conftest import RunCli
from tests.serving import llamacpp_server

Usage = namedtuple("Usage", "total used free")


def found(check: Check) -> dict[str, Finding]:
    return {finding.check: finding for finding in check()}


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Change what is installed: a version by name, None for a package that is not there."""
    changed: dict[str, str | None] = {}
    real = metadata.version

    def version(name: str) -> str:
        if name in changed and changed[name] is None:
            raise metadata.PackageNotFoundError(name)
        return changed.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", version)
    return changed


def test_a_fitting_installation_has_no_problem() -> None:
    told = found(packages.requirements)
    assert set(told) == {"packages"}
    assert f"torch {torch.__version__} (>=2.8)" in told["packages"].detail
    assert found(packages.python)["Python"].state == "ok"


def test_old_and_missing_packages_are_problems_with_the_line_that_installs_them(versions: Any) -> None:
    versions |= {"torch": "2.3.0", "stamina": None}
    told = found(packages.requirements)
    assert told["torch"] == Finding(
        "torch", "problem", "2.3.0 is installed, >=2.8 is needed", "pip install --upgrade 'torch>=2.8'"
    )
    assert told["stamina"].fix == "pip install 'stamina>=25.1'"
    assert "torch" not in told["packages"].detail


def test_an_old_python_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "3.9.1")
    assert found(packages.python)["Python"].state == "problem"


@pytest.mark.parametrize(
    ("sglang", "wants", "state", "part"),
    [
        (None, [], "note", "not installed"),
        ("0.5.4", ["torch==2.9.1", "numpy<2"], "ok", "0.5.4"),
        ("0.5.4", ["torch==2.8.0"], "problem", "wants torch==2.8.0 (2.9.1+cu128 is here)"),
        ("0.5.4", ['transformers==1.0; extra == "more"'], "ok", "0.5.4"),
        ("0.4.1", [], "problem", "needs >=0.5"),
    ],
)
def test_sglang_must_fit_to_what_else_is_installed(
    sglang: str | None, wants: list[str], state: str, part: str, versions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions |= {"sglang": sglang, "torch": "2.9.1+cu128", "vllm": None}
    real = metadata.requires
    monkeypatch.setattr(metadata, "requires", lambda name: wants if name == "sglang" else real(name))
    told = found(packages.servers)["SGLang"]
    assert told.state == state
    assert part in told.detail
    assert (told.fix is None) == (state == "ok")


def test_trackers_that_are_installed_are_named(versions: Any) -> None:
    names = ("wandb", "tensorboard", "swanlab", "mlflow", "trackio")
    versions |= dict.fromkeys(names, None)
    assert found(packages.trackers)["trackers"].fix is not None
    versions |= {"wandb": "0.20"}
    assert found(packages.trackers)["trackers"] == Finding("trackers", "ok", "installed: wandb")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one GPU of 80 GiB, of which 30 are free."""
    seen = SimpleNamespace(name="H100", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: seen)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (30 * 2**30, 80 * 2**30))
    monkeypatch.setattr(hardware, "driver", lambda: "570.1")


@pytest.mark.usefixtures("cuda")
def test_a_gpu_that_others_use_is_noted() -> None:
    told = found(hardware.gpus)
    assert told["driver"].detail.startswith("570.1; torch is built for CUDA")
    assert told["GPU 0"].detail == "H100, 80 GiB, 30 free, compute 9.0"
    assert told["GPU 0"].state == "note"
    assert "CUDA_VISIBLE_DEVICES" in str(told["GPU 0"].fix)
    assert "flex_attention" in found(hardware.attention)["attention"].detail


@pytest.mark.parametrize(
    ("cuda_version", "part"), [(None, "is built for CPUs"), ("12.8", "torch (CUDA 12.8) cannot use the driver 470.2")]
)
def test_a_driver_that_torch_cannot_use_is_a_problem(
    cuda_version: str | None, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda_version)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(hardware, "driver", lambda: "470.2")
    told = found(hardware.gpus)["GPU"]
    assert told.state == "problem"
    assert part in told.detail


@pytest.mark.slow
def test_a_driver_that_hangs_or_fails_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for script in ("exit 9", "exec sleep 30"):
        smi = tmp_path / "nvidia-smi"
        smi.write_text(f"#!/bin/sh\n{script}\n")
        smi.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        assert hardware.driver() is None
    smi.write_text("#!/bin/sh\necho 570.86.15\n")
    assert hardware.driver() == "570.86.15"


@pytest.mark.parametrize(
    ("quota", "omp", "state", "fix"),
    [
        ("max 100000", None, "ok", None),
        ("200000 100000", None, "note", "export OMP_NUM_THREADS=2"),
        ("max 100000", "64", "note", "export OMP_NUM_THREADS=8"),
        ("max 100000", "2", "note", "unset OMP_NUM_THREADS, or --threads 8"),
        (None, "8", "ok", None),
    ],
)
def test_threads_that_do_not_fit_the_cores(
    quota: str | None, omp: str | None, state: str, fix: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: int(omp or 8))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if omp is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
    told = found(hardware.cores)["CPU"]
    assert (told.state, told.fix) == (state, fix)


def test_a_containers_memory_is_its_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(str(2**30))
    assert found(hardware.memory)["memory"].detail.startswith("1 GiB (this container's share of")
    (tmp_path / "memory.max").write_text("max")
    assert "share" not in found(hardware.memory)["memory"].detail


def test_full_disks_and_small_shared_memory_are_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(limits, "SHM", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(64e6, 0, 5e8))
    told = {**found(limits.disks), **found(limits.shared_memory)}
    assert {name: finding.state for name, finding in told.items()} == dict.fromkeys(told, "note")
    assert str(told["hub cache"].fix).startswith("export HF_HOME=")
    assert told["shared memory"].fix == "docker run --shm-size=16g ..."
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9e12, 0, 9e12))
    told = {**found(limits.disks), **found(limits.shared_memory)}
    assert all(finding.state == "ok" and finding.fix is None for finding in told.values())
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert all(finding.state == "problem" for finding in limits.disks())


@pytest.mark.parametrize(
    ("soft", "hard", "state", "fix"),
    [
        (256, 1048576, "problem", "ulimit -n 1048576"),
        (2048, resource.RLIM_INFINITY, "note", "ulimit -n unlimited"),
        (65536, 65536, "ok", None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, "ok", None),
    ],
)
def test_too_few_open_files(soft: int, hard: int, state: str, fix: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))
    told = found(limits.open_files)["open files"]
    assert (told.state, told.fix) == (state, fix)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")


@pytest.mark.usefixtures("online")
def test_a_hub_that_answers_and_one_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    import huggingface_hub

    monkeypatch.setattr(httpx, "head", lambda *words, **named: None)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    told = found(hub.hub)
    assert [finding.state for finding in told.values()] == ["ok", "ok"]
    assert "hf_secret" not in str(told), "a key is never shown"
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(httpx, "head", lambda *words, **named: (_ for _ in ()).throw(ValueError("no such proxy")))
    told = found(hub.hub)
    assert "does not answer (ValueError)" in told["hub"].detail
    assert "HF_TOKEN" in str(told["hub login"].fix)


@pytest.mark.usefixtures("online")
def test_a_name_server_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    monkeypatch.setattr(hub, "SECONDS", 0.2)
    monkeypatch.setattr(httpx, "head", lambda *words, **named: time.sleep(5))
    assert "nothing within 0.2 s" in found(hub.hub)["hub"].detail


def test_the_settings_file_of_the_folder(run_cli: RunCli, tmp_path: Path) -> None:
    def told() -> Any:
        return {check["check"]: check for check in run_cli("doctor", "--json").json["checks"]}["settings"]

    assert told()["state"] == "ok"
    (tmp_path / "eagle3.toml").write_text("[train]\nlerning_rate = 1\n")
    assert told()["state"] == "problem"
    assert told()["detail"] == "eagle3.toml:2: unknown key train.lerning_rate"
    assert told()["fix"] == "eagle3 config check"
    ran = run_cli("doctor")
    assert ran.code == 1
    assert "\n          fix: eagle3 config check\n" in ran.out
    assert run_cli("doctor", "--config", "nope.toml").code == 2, "what is named has to be right"


def test_completion_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "running_shell", lambda: "zsh")
    assert found(doctor.completion)["completion"].fix == "eagle3 --install-completion zsh"
    install("zsh")
    assert found(doctor.completion)["completion"].state == "ok"
    monkeypatch.setattr(doctor, "running_shell", lambda: "tcsh")
    assert found(doctor.completion) == {}


def test_a_check_that_breaks_is_a_problem_and_the_others_go_on() -> None:
    def broken_torch() -> Iterator[Finding]:
        raise ImportError("libcudart.so.12: cannot open shared object file")

    told = examine([broken_torch, packages.python])
    assert [finding.state for finding in told] == ["problem", "ok"]
    assert (told[0].check, "libcudart" in told[0].detail) == ("broken torch", True)


def test_every_problem_and_note_of_a_command_has_a_fix(run_cli: RunCli) -> None:
    for check in run_cli("doctor", "--json").json["checks"]:
        assert check["state"] == "ok" or check["fix"] or check["check"] == "GPU", check


def test_llamacpp_is_found_or_told_how_to_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    absent = found(packages.servers)["llama.cpp"]
    assert (absent.state, "brew install llama.cpp" in (absent.fix or "")) == ("note", True)
    llamacpp_server.write(tmp_path)
    present = found(packages.servers)["llama.cpp"]
    assert (present.state, present.detail.startswith("0.5.0 (build 7, commit abc)")) == ("ok", True)
