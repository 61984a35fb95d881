"""Fixtures shared by all tests."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests.once import once

if TYPE_CHECKING:
    from tests.gpu_tensor import PretendGpu

ROOT = Path(__file__).resolve().parent.parent
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_TELEMETRY="1", NO_COLOR="1")

# Time limits of single examples fail on a busy machine for no reason of ours. `make test` draws the same examples
# every time, so that it is green or red for everybody; plain pytest goes on looking for new ones.
PATIENT: dict[str, Any] = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("patient", **PATIENT)
hypothesis.settings.register_profile("fixed", derandomize=True, **PATIENT)
hypothesis.settings.load_profile("patient")


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """Have the same examples drawn whichever modules other tests of this process have loaded: hypothesis draws
    constants that it finds in them."""
    from hypothesis.internal.conjecture import providers

    if hypothesis.settings.default.derandomize and hasattr(providers, "_get_local_constants"):
        providers._get_local_constants = lambda: providers._local_constants  # none yet


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Nothing is made for an engine that is not there."""
    if item.get_closest_marker("engine") and not any(name.startswith("EAGLE3_ENGINE_") for name in os.environ):
        pytest.skip("no EAGLE3_ENGINE_* is set: make test-engines")


QUICK_S = 1.0
"""What takes longer is marked slow: `make test` is run all day."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that have grown: not marked slow, and no longer quick. On a busy machine some do for no reason."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    grown = [report for report in reports if report.duration > QUICK_S and "slow" not in report.keywords]
    if grown:
        terminalreporter.section(f"tests over {QUICK_S:g} s that are not marked slow")
    for report in sorted(grown, key=lambda report: -report.duration):
        terminalreporter.line(f"{report.duration:6.2f} s  {report.nodeid}")


@pytest.fixture(autouse=True)
def usual_floats() -> Iterator[None]:
    """Commands flush denormal numbers to zero; the next test in this process gets the usual arithmetic back."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@dataclass(frozen=True)
class Ran:
    """What a command line gave back."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str | None:
        """The code of the error that the command ended with."""
        codes = re.findall(r"^error \[([a-z-]+)\]:", self.err, re.MULTILINE)
        return codes[-1] if codes else None

    @property
    def json(self) -> Any:
        """The result of a command run with --json."""
        return json.loads(self.out)


RunCli = Callable[..., Ran]


@pytest.fixture
def run_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCli:
    """Run one command line in ``tmp_path`` (or ``cwd``), in this process or (``process=True``) in a fresh one."""

    def run(*words: object, cwd: Path | None = None, process: bool = False, env: dict[str, str] | None = None) -> Ran:
        argv = [str(word) for word in words]
        folder = cwd or tmp_path
        if process:
            command = [sys.executable, "-m", "eagle3cli", *argv]
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})}
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=580, check=False
            )
            return Ran(done.returncode, done.stdout, done.stderr)
        from eagle3cli.cli.main import main

        with monkeypatch.context() as patch:
            patch.chdir(folder)
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            capsys.readouterr()
            code = main(argv)
            told = capsys.readouterr()
        return Ran(code, told.out, told.err)

    return run


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared fixtures and data (``EAGLE3_SHARED``, else ../shared); skips where there is none."""
    folder = Path(os.environ.get("EAGLE3_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared fixtures at {folder}; set EAGLE3_SHARED")
    return folder


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this run share."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def tiny(shared_folder: Path) -> Path:
    """A tiny Llama with its own tokenizer; read it, do not write to it."""
    from tests.tiny import tiny_target

    return once(shared_folder, "tiny/llama", tiny_target)


SharedTarget = Callable[[str], Path]


@pytest.fixture(scope="session")
def shared_target(shared_folder: Path) -> SharedTarget:
    """A tiny target of a family, by its name in ``tests/families.py``; read it, do not write to it."""
    from tests.families import family_target

    return lambda name: once(shared_folder, f"families/{name}", lambda folder: family_target(folder, name))


@pytest.fixture
def place(tmp_path: Path, tiny: Path) -> Path:
    """A folder with prompts and an eagle3.toml for a training run of twelve steps."""
    from tests.tiny import training_place

    return training_place(tmp_path, tiny)


@pytest.fixture(scope="session")
def trained(shared_folder: Path, tiny: Path) -> Path:
    """The folder of a training run of the tiny target: data, settings, `run/best` and `run/checkpoints`, and what the
    command said; read it, do not write to it."""
    from tests.tiny import train_tiny

    return once(shared_folder, "trained", lambda folder: train_tiny(folder, tiny))


@pytest.fixture
def finished(tmp_path: Path, trained: Path) -> Path:
    """A copy of that folder to go on with, in ``tmp_path``."""
    return shutil.copytree(trained, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def gpu_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a pretend GPU: no Triton, and in place of the compiled flex_attention its dense twin."""
    from eagle3cli.training.ttt import flex_attention, kernels
    from tests.dense_flex import dense_flex

    monkeypatch.setattr(kernels, "triton_runs", lambda: False)
    monkeypatch.setattr(flex_attention, "_compiled", lambda: dense_flex)


@pytest.fixture
def gpu(gpu_kernel: None) -> Iterator[PretendGpu]:
    """A pretend GPU for the whole test."""
    from tests.pretend_gpu import pretend_gpu

    with pretend_gpu() as gpu:
        yield gpu
