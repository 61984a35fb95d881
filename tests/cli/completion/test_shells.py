"""The shipped scripts in real shells: bash and zsh on a pseudo-terminal with the Tab key, fish by its own question."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from eagle3cli.cli import main as cli
from tests.cli.completion.terminal import Terminal, program
from tests.conftest import ROOT

SHELLS = [
    pytest.param(shell, marks=pytest.mark.skipif(shutil.which(shell) is None, reason=f"no {shell} on this machine"))
    for shell in ("bash", "zsh")
]
FISH = pytest.mark.skipif(shutil.which("fish") is None, reason="no fish on this machine")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with data, a settings file, a draft and a name with a blank."""
    place = tmp_path / "work"
    (place / "my data").mkdir(parents=True)
    (place / "my data" / "in put.jsonl").touch()
    (place / "own.toml").touch()
    draft = place / "runs" / "one" / "train" / "best"
    draft.mkdir(parents=True)
    (draft / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLMEagle3"]}))
    (draft / "model.safetensors").touch()
    return place


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Iterator[Terminal]:
    """A shell that has read the shipped script and nothing else, as in a fresh container."""
    (tmp_path / "home").mkdir()
    terminal = Terminal(request.param, folder, tmp_path / "home", f". {ROOT}/completions/eagle3.{request.param}")
    yield terminal
    terminal.close()


COMPLETED = [
    ("eagle3 mer", "eagle3 merge "),
    ("eagle3 hidden-states ver", "eagle3 hidden-states verify "),
    ("eagle3 config sh", "eagle3 config show "),
    ("eagle3 train --lear", "eagle3 train --learning-rate "),
    ("eagle3 train --mode off", "eagle3 train --mode offline "),
    ("eagle3 train --mode=off", "eagle3 train --mode=offline "),
    ("eagle3 prepare ultrac", "eagle3 prepare ultrachat "),
    ("eagle3 prepare my", "eagle3 prepare my\\ data/"),
    ("eagle3 prepare my\\ data/in", "eagle3 prepare my\\ data/in\\ put.jsonl "),
    ("eagle3 view --chat-template qwen3-t", "eagle3 view --chat-template qwen3-thinking "),
    ("eagle3 train --draft-model-config qwen3-8", "eagle3 train --draft-model-config qwen3-8b "),
    ("eagle3 run quic", "eagle3 run quickstart "),
    ("eagle3 run ow", "eagle3 run own.toml "),
    ("eagle3 bench --benchmark-list gsm", "eagle3 bench --benchmark-list gsm8k:"),
    ("eagle3 bench --benchmark-list gsm8k:", "eagle3 bench --benchmark-list gsm8k:20"),
    ("eagle3 bench --benchmark-list gsm8k:200 humane", "eagle3 bench --benchmark-list gsm8k:200 humaneval:"),
    ("eagle3 bench --config-list 1,0,0,0 4,7", "eagle3 bench --config-list 1,0,0,0 4,7,10,60 "),
    ("eagle3 export --draft-model-path ru", "eagle3 export --draft-model-path runs/one/train/best "),
    ("eagle3 train --set train.batch", "eagle3 train --set train.batch_size="),
    ("eagle3 train --set train.mode=of", "eagle3 train --set train.mode=offline "),
    ("eagle3 train --set train.seed=1 view.see", "eagle3 train --set train.seed=1 view.seed="),
    ("eagle3 config show train.batch", "eagle3 config show train.batch_size "),
    ("eagle3 train --train-data-path=ow", "eagle3 train --train-data-path=own.toml "),
    ("eagle3 merge --input-dir ow", "eagle3 merge --input-dir ow"),
    ("eagle3 nonsense ow", "eagle3 nonsense ow"),
]  # fmt: skip


@pytest.mark.slow
def test_tab_completes(shell: Terminal) -> None:
    for line, expected in COMPLETED:
        assert shell.tab(line)[0] == expected, line
    listed = shell.tab("eagle3 ", times=2)[1]
    assert all(line.name in listed for line in cli.TABLE)
    assert shell.name == "bash" or "Show which tokens of a row are trained on" in listed
    listed = shell.tab("eagle3 view --chat-template ", times=2)[1]
    assert {"llama3.1", "gpt-oss"} <= set(listed.split())


@pytest.mark.slow
@pytest.mark.parametrize("name", SHELLS)
def test_an_installed_script_works_in_a_new_shell(name: str, folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    rc = home / f".{name}rc"
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "SHELL": f"/usr/bin/{name}"}
    eagle3 = program(home / "bin") / "eagle3"
    rc.write_text("# mine")
    for _ in range(2):
        subprocess.run([eagle3, "--install-completion", name], env=environment, check=True, capture_output=True)
    assert rc.read_text().startswith("# mine\n")
    assert rc.read_text().count("eagle3's completion") == 1
    terminal = Terminal(name, folder, home, f". {rc}")
    assert terminal.tab("eagle3 train --mode off")[0] == "eagle3 train --mode offline "
    terminal.close()


@FISH
def test_fish_completes_with_help(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    environment = {"HOME": str(home), "PATH": f"{program(home / 'bin')}:/usr/bin:/bin"}
    installed = [home / "bin" / "eagle3", "--install-completion", "fish"]
    subprocess.run(installed, env=environment, check=True, capture_output=True)
    lines = ["mer", "train --mode off", "train --train-data-path=ow", "prepare my", "export --draft-model-path r"]
    asked = "\n".join(f"complete -C 'eagle3 {line}'" for line in lines)
    done = subprocess.run(
        ["fish", "-c", asked], env=environment, cwd=folder, capture_output=True, text=True, check=True
    )
    shown = ["merge\tJoin regenerated shards into a training and an evaluation file", "offline"]
    shown += ["--train-data-path=own.toml", "my data/", "runs/one/train/best"]
    assert done.stdout.splitlines() == shown
