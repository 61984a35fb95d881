"""The Triton kernels with no GPU: interpreted on the CPU, and compiled for GPUs that are not there."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[3]
HAS_TRITON = importlib.util.find_spec("triton") is not None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed: pip install triton (Linux)"),
]


def run(*words: str, env: dict[str, str] | None = None, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache), **(env or {})}
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def interpreter_reads_numbers() -> bool:
    """Whether Triton's interpreter can make an integer of what it holds: from numpy 2.4 older ones cannot."""
    interpreter = importlib.util.find_spec("triton.runtime.interpreter")
    assert interpreter is not None
    assert interpreter.origin is not None
    source = Path(interpreter.origin).read_text(encoding="utf-8")
    return "int(self.handle.data)" not in source or Version(numpy.__version__) < Version("2.4")


def test_interpreted_kernels_equal_plain_torch(tmp_path: Path) -> None:
    if not interpreter_reads_numbers():
        pytest.skip("the interpreter of this triton does not work with numpy 2.4 and newer")
    files = ("tests/training/ttt/interpreted_kernels.py", "tests/models/interpreted_kernels.py")
    done = run("pytest", "-q", "-p", "no:cacheprovider", *files, env={"TRITON_INTERPRET": "1"}, cache=tmp_path)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_compile_and_spill_no_registers(capability: int, tmp_path: Path) -> None:
    """For the A100, the H100 and the B200; ``-s`` shows registers and shared memory of every kernel."""
    binaries = importlib.util.find_spec("triton.backends.nvidia")
    if binaries is None or binaries.origin is None or not (Path(binaries.origin).parent / "bin" / "ptxas").exists():
        pytest.skip("this triton came without NVIDIA's assembler")
    done = run("tests.training.ttt.compile_kernels", str(capability), cache=tmp_path)
    assert done.returncode == 0, done.stderr[-5000:]
    table = json.loads(done.stdout)
    print(json.dumps(table, indent=1))
    assert len(table) == 21
    assert {name: kernel["spilled"] for name, kernel in table.items() if kernel["spilled"]} == {}
