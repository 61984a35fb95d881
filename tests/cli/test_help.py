"""The help: the common case on one screen, everything with --help-all, as wide as the terminal, in colour there."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagle3cli.cli.command import fields_of
from eagle3cli.cli.main import TABLE
from eagle3cli.settings.groups import grouped
from tests.conftest import RunCli
from tests.examples.documented import command
from tests.pseudo_terminal import STYLES, on_terminal

COMMANDS = [spec.name for spec in TABLE if spec.name != "config"]
LINES_OF_HELP = 34
"""The longest help of a common case on 80 columns: of plan and hidden-states, which have actions."""


@pytest.mark.parametrize("name", COMMANDS)
def test_the_common_case_fits_a_screen_and_all_options_stand_behind_it(name: str, run_cli: RunCli) -> None:
    short = run_cli(name, "-h", env={"COLUMNS": "80"}).out
    assert short == run_cli(name, "--help", env={"COLUMNS": "80"}).out
    assert len(short.splitlines()) <= LINES_OF_HELP, short
    everything = run_cli(name, "--help-all", env={"COLUMNS": "80"}).out
    one = command(name)
    assert one is not None
    flags = fields_of(one)[0]
    for field in flags:
        for flag in field.flags:
            assert flag in everything or f"--no-{flag.removeprefix('--')}" in everything, flag
    for title in grouped(flags):
        assert f"\n{title}:\n" in everything
    assert "\nEvery command:\n" in everything
    assert all(example in everything for example in one.examples)
    if short != everything:
        assert "more with --help-all: " in short


def test_the_common_case_of_train_is_about_fifteen_lines(run_cli: RunCli) -> None:
    lines = run_cli("train", "-h", env={"COLUMNS": "120"}).out.splitlines()
    options = lines[lines.index("Options:") + 1 :]
    assert options[0].startswith("  --target-model-path")
    assert options.index("") <= 12
    assert not any("--kl-decay" in line for line in lines)


def test_help_is_as_wide_as_the_terminal(run_cli: RunCli) -> None:
    for width in (80, 132, 200):
        lines = run_cli("train", "--help-all", env={"COLUMNS": str(width)}).out.partition("Examples:")[0].splitlines()
        assert width - 30 < max(map(len, lines)) <= width


def test_help_of_actions_and_of_settings(run_cli: RunCli) -> None:
    assert run_cli("hidden-states", "verify", "-h").out.startswith(
        "Usage: eagle3 hidden-states verify [PATHS] [OPTIONS]"
    )
    assert run_cli("plan", "quickstart", "--help").out.startswith("Usage: eagle3 plan run [RECIPE] [OPTIONS]")
    assert "\nActions:\n  show " in run_cli("config").out
    shown = run_cli("config", "check", "--help-all").out
    assert shown.startswith("Usage: eagle3 config check [FILE] [OPTIONS]")
    assert shown.rstrip().endswith("eagle3 config check eagle3.toml experiment.toml")
    assert run_cli("-h").out == run_cli("--help").out


def test_a_value_behind_two_dashes_asks_for_no_help(run_cli: RunCli) -> None:
    ran = run_cli("report", "--", "--help")
    assert (ran.code, ran.error == "no-such-run") == (2, True), ran.err


def test_a_terminal_gets_colour(tmp_path: Path) -> None:
    _, text = on_terminal(("train", "-h"), tmp_path)
    assert "\x1b[1mOptions:\x1b[0m" in text
    assert "\x1b[36m--mode\x1b[0m" in text
    assert max(len(line.rstrip()) for line in STYLES.sub("", text).split("\n")) <= 110
