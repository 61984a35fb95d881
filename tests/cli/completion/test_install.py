"""eagle3 --install-completion and --show-completion: which shell, which files, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagle3cli.cli.completion.install import install, run_flag, script_path, startup_file, state
from eagle3cli.cli.completion.shells import script
from tests.conftest import RunCli


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_state_follows_the_files(shell: str) -> None:
    assert state(shell) == "missing"
    install(shell)
    assert state(shell) == "current"
    script_path(shell).write_text("# of an older version\n")
    assert state(shell) == "old"
    install(shell)
    assert state(shell) == "current"
    startup = startup_file(shell)
    if startup is not None:
        startup.write_text("")
        assert state(shell) == "missing"


def test_a_start_up_file_that_is_a_link_stays_one(home: Path) -> None:
    (home / "dotfiles").mkdir()
    (home / "dotfiles" / "bashrc").write_text("alias ll='ls -l'\n")
    (home / ".bashrc").symlink_to(home / "dotfiles" / "bashrc")
    install("bash")
    assert (home / ".bashrc").is_symlink()
    assert (home / "dotfiles" / "bashrc").read_text().startswith("alias ll='ls -l'\n# eagle3's completion\n")


def test_it_says_what_it_wrote_and_which_shell_it_took(run_cli: RunCli, home: Path) -> None:
    ran = run_cli("--install-completion", "zsh")
    assert ran.code == 0
    assert f"{home}/.zshrc" in ran.err
    assert run_cli("--show-completion", "zsh").out == script("zsh")
    shown = run_cli("--show-completion", process=True, env={"SHELL": "/usr/bin/fish"})
    assert shown.out == script("fish")  # the parent is no shell, so $SHELL counts


@pytest.mark.parametrize(
    ("words", "part"),
    [(["zhs"], "did you mean zsh?"), (["tcsh"], "name one"), (["bash", "zsh"], "one shell at most")],
)
def test_an_unknown_shell_is_wrong_usage(words: list[str], part: str, run_cli: RunCli) -> None:
    ran = run_cli("--install-completion", *words)
    assert (ran.code, part in ran.err) == (2, True), ran.err


def test_without_a_word_the_running_shell_is_taken(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr("eagle3cli.cli.completion.install.running_shell", lambda: "fish")
    assert run_flag(["--install-completion"]) == 0
    assert (home / ".config" / "fish" / "completions" / "eagle3.fish").is_file()
