"""The example scripts, run by bash with programs that only note how they were called; then the calls are tried."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, RunCli
from tests.examples.documented import lines_of, parsed

SCRIPTS = sorted([*(ROOT / "examples").glob("*.sh"), *(ROOT / "examples").glob("*.sbatch")])
NOTE = '#!/usr/bin/env bash\n{ printf "%s\\37" "$(basename "$0")" "$@"; echo; } >> "$CALLS"\n'
SLURM = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
Calls = Callable[..., list[list[str]]]
TINY = """
[target]
model_path = "{tiny}"
threads = 1
[draft]
vocab_size = 128
[data]
train_path = "cache/dataset/train.jsonl"
eval_path = "cache/dataset/eval.jsonl"
train_hidden_states_path = "cache/hidden_states/train"
eval_hidden_states_path = "cache/hidden_states/eval"
num_proc = 1
[prepare]
source = "in.jsonl"
output_path = "cache/prompts"
[regenerate]
engine = "local"
input_path = "cache/prompts/train.jsonl"
max_tokens = 12
[merge]
eval_size = 4
[train]
total_steps = 4
batch_size = 4
ttt_length = 2
save_interval = 4
eval_interval = 4
[bench]
engine = "local"
benchmark_list = ["mtbench-like:2"]
config_list = ["2,2,1,3"]
max_tokens = 8
"""
"""The settings of the guide at a size that a test can run: the same paths, a tiny target, four steps."""


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    """Run a script from a copy of the examples; returns the words of each program that it called."""

    def run(script: Path, **env: str) -> list[list[str]]:
        shutil.copytree(ROOT / "examples", tmp_path / "examples", dirs_exist_ok=True)
        programs, noted = tmp_path / "bin", tmp_path / "calls"
        programs.mkdir(exist_ok=True)
        noted.write_text("")
        for name in ("eagle3", "torchrun", "srun"):
            (programs / name).write_text(NOTE)
            (programs / name).chmod(0o755)
        (programs / "scontrol").write_text("#!/usr/bin/env bash\necho node1\necho node2\n")
        (programs / "scontrol").chmod(0o755)
        path = f"{programs}:{os.environ['PATH']}"
        command = ["bash", str(script)]
        subprocess.run(command, cwd=tmp_path, env={**os.environ, "PATH": path, "CALLS": str(noted), **env}, check=True)
        return [line.split("\37")[:-1] for line in noted.read_text().splitlines()]

    return run


def ours(call: list[str]) -> list[str]:
    """The words after ``eagle3``, however it was started."""
    name = "eagle3" if "eagle3" in call else "eagle3cli"
    return call[call.index(name) + 1 :]


@pytest.fixture
def small(tiny: Path, tmp_path: Path) -> Path:
    """A folder with a few prompts and the guide's settings at tiny size."""
    prompts = [{"id": f"p{i}", "conversations": [{"role": "user", "content": f"{i}: How?"}]} for i in range(24)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (tmp_path / "tiny.toml").write_text(TINY.format(tiny=tiny))
    return tmp_path


def test_there_are_scripts() -> None:
    assert {"online.sh", "offline.sh", "eight-gpus.sh", "two-nodes.sbatch"} <= {script.name for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_command_parses(
    script: Path, calls: Calls, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = calls(script, **SLURM)
    assert made
    for call in made:
        parsed(shlex.join(["eagle3", *ours(call)]), run_cli, monkeypatch, tmp_path)


@pytest.mark.slow
def test_the_offline_workflow_runs_from_prompts_to_a_benchmark(calls: Calls, run_cli: RunCli, small: Path) -> None:
    for call in calls(ROOT / "examples" / "offline.sh", SETTINGS="tiny.toml", GPUS=""):
        ran = run_cli(*ours(call), cwd=small)
        assert ran.code == 0, f"{call}\n{ran.err}"
    assert (small / "runs" / "draft" / "model.safetensors").is_file()
    assert (small / "cache" / "hidden_states" / "train").is_dir()
    assert (small / "runs" / "bench" / "results.jsonl").is_file()


@pytest.mark.slow
def test_the_guide_of_the_readme_runs_as_typed_and_is_the_online_workflow(
    calls: Calls, run_cli: RunCli, small: Path
) -> None:
    (small / "eagle3.toml").write_text((small / "tiny.toml").read_text())
    guide = [shlex.split(line)[1:] for line in guide_lines()]
    script = calls(ROOT / "examples" / "online.sh", SETTINGS="tiny.toml", GPUS="")
    assert [" ".join(ours(call)).replace(" --config tiny.toml", "") for call in script] == [" ".join(w) for w in guide]
    for words in guide:
        ran = run_cli(*words, cwd=small)
        assert ran.code == 0, f"{words}\n{ran.err}"
    assert (small / "runs" / "draft" / "model.safetensors").is_file()
    for line in ("eagle3 plan", "eagle3 report"):
        assert line in lines_of(ROOT / "README.md", "eagle3")
        ran = run_cli(*shlex.split(line)[1:], cwd=small)
        assert ran.code == 0, f"{line}\n{ran.err}"
    assert (small / "runs" / "train" / "report.html").is_file()


def guide_lines() -> list[str]:
    """The commands of the README's guide, from ``prepare`` to ``bench``."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    guide = re.search(r"^ {4}cp examples/llama-3.1-8b.toml eagle3.toml\n((?: {4}eagle3 .*\n)+)", text, re.MULTILINE)
    assert guide is not None
    return [re.sub(r"\s+#.*", "", line).strip() for line in guide[1].splitlines()]


@pytest.mark.parametrize("page", sorted((ROOT / "examples").glob("*.md")), ids=lambda path: path.name)
def test_commands_of_the_pages_parse(
    page: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for line in lines_of(page, "eagle3"):
        parsed(line, run_cli, monkeypatch, tmp_path)
