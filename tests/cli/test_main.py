"""The program as a whole: help, misspellings, exit codes, examples, completion."""

from __future__ import annotations

import dataclasses
import errno
import importlib
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eagle3cli import __version__
from eagle3cli.cli import main as cli
from eagle3cli.cli.command import Command, fields_of
from eagle3cli.errors import DataError
from eagle3cli.settings.tables import Settings
from tests.conftest import ROOT, RunCli

COMMANDS = [spec for spec in cli.TABLE if spec.name != "config"]
NAMES = [spec.name for spec in cli.TABLE]


def command(name: str) -> Command:
    """The Command of one line of the table."""
    module_command = importlib.import_module("eagle3cli.commands." + name.replace("-", "_")).COMMAND
    assert isinstance(module_command, Command)
    return module_command


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Replace what ``eagle3 doctor`` does."""
    from eagle3cli.commands import doctor as module

    def put(run: Callable[..., Any]) -> None:
        monkeypatch.setattr(module, "COMMAND", dataclasses.replace(module.COMMAND, run=run))

    return put


def raising(error: BaseException) -> Callable[..., int]:
    def run(settings: Settings, out: object) -> int:
        raise error

    return run


def test_help_shows_all_commands_by_step_without_torch(run_cli: RunCli) -> None:
    code = "import sys; from eagle3cli.cli.main import main; main(['--help'])"
    code += "; print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False"
    places = [done.stdout.index(f"\n  {name} ") for name in NAMES]
    assert places == sorted(places)
    steps = [done.stdout.index(f"\n{step}:\n") for step in cli.STEPS]
    assert steps == sorted(steps)
    assert run_cli().out == done.stdout  # no word at all is a question too
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_no_commands_help_imports_torch() -> None:
    code = (
        "import sys; from eagle3cli.cli.main import TABLE, main\n"
        "for spec in TABLE: assert main([spec.name, '--help']) == 0, spec\n"
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_only_the_named_commands_module_is_imported() -> None:
    code = (
        "import sys; from eagle3cli.cli.main import main; main(['doctor', '--help'])\n"
        "print(sorted(m for m in sys.modules if m.startswith('eagle3cli.commands.')), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "['eagle3cli.commands.doctor']"


def test_the_table_holds_every_command_there_is() -> None:
    modules = {path.stem for path in (ROOT / "eagle3cli" / "commands").glob("*.py")} - {"__init__"}
    loaded = {name: importlib.import_module(f"eagle3cli.commands.{name}") for name in modules}
    commands = {name for name, module in loaded.items() if hasattr(module, "COMMAND") or hasattr(module, "app")}
    assert commands == {spec.name.replace("-", "_") for spec in cli.TABLE}
    for spec in COMMANDS:
        assert command(spec.name).name == spec.name


def test_version(run_cli: RunCli) -> None:
    assert run_cli("--version").out == f"eagle3 {__version__}\n"


@pytest.mark.parametrize("name", [spec.name for spec in COMMANDS])
def test_help_says_what_a_command_is_for_and_ends_with_examples_that_parse(
    name: str, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tested = command(name)
    shown = run_cli(name, "--help").out
    assert shown.startswith(f"Usage: eagle3 {name} ")
    assert " ".join(tested.summary.split()) in " ".join(shown.split())
    assert shown.rstrip().endswith(tested.examples[-1])
    got: list[Settings] = []

    def run(settings: Settings, out: object) -> None:
        got.append(settings)

    module = importlib.import_module(cli_module(name))
    actions = tuple(dataclasses.replace(action, run=run) for action in tested.actions)
    monkeypatch.setattr(module, "COMMAND", dataclasses.replace(tested, run=run, actions=actions))
    for example in tested.examples:
        program, *words = shlex.split(example)
        for word in words:
            if word.endswith(".toml"):
                (tmp_path / word).touch()
        assert program == "eagle3"
        assert words[0] == name
        ran = run_cli(*words)
        assert ran.code == 0, f"{example}\n{ran.err}"
    assert len(got) == len(tested.examples)


def cli_module(name: str) -> str:
    return next(spec.module for spec in cli.TABLE if spec.name == name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [spec.name for spec in COMMANDS])
def test_every_flag_reaches_the_settings(name: str, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each flag as typed changes its own field, by each of its names."""
    tested = command(name)
    got: list[Settings] = []
    module = importlib.import_module(cli_module(name))
    monkeypatch.setattr(module, "COMMAND", dataclasses.replace(tested, run=lambda s, out: got.append(s)))
    for field in fields_of(tested)[0]:
        for flag in field.flags:
            if field.type is bool:
                words = [flag if not field.default else f"--no-{flag.removeprefix('--')}"]
            else:
                words = [flag, _another_value(field)]
            if field.key == "train.micro_batch_size":
                words += ["--batch-size", words[1]]
            if field.key == "launch.gpus":
                words = [flag, "2"]
            if field.key in ("data.assistant_header", "data.end_of_turn_token", "data.user_header"):
                words += ["--is-preformatted", "--assistant-header", "x"]
            ran = run_cli(name, *words)
            assert ran.code == 0, f"{words}: {ran.err}"
            value = getattr(getattr(got.pop(), field.table), field.name)
            assert value != field.default or len(field.choices) == 1, flag


def _another_value(field: Any) -> str:
    if field.choices:
        return str(next((word for word in field.choices if word != field.default), field.choices[0]))
    if field.type is int:
        low = field.bound("ge") or 0
        return str(next(n for n in range(low, low + 3) if n != field.default and (n,) != field.default))
    return "0.5" if field.type is float and field.default != 0.5 else "0.25" if field.type is float else "x=y"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["trian"], "train"),
        (["hiden-states"], "hidden-states"),
        (["config", "shwo"], "show"),
        (["train", "--lerning-rate", "3"], "--learning-rate"),
        (["train", "--mode", "ofline"], "offline"),
        (["train", "--set", "train.lerning_rate=3"], "train.learning_rate"),
        (["train", "--set", "lerning_rate=3"], "table.key=value"),
        (["config", "show", "trian"], "train"),
        (["config", "show", "train.batchsize"], "train.batch_size"),
    ],
)
def test_misspelt_words_are_wrong_usage_with_a_suggestion(words: list[str], meant: str, run_cli: RunCli) -> None:
    ran = run_cli(*words)
    assert ran.code == 2
    assert ran.out == ""
    assert meant in ran.err.split("fix:")[1]


def test_errors_say_what_where_and_how_to_fix_it(run_cli: RunCli, doctor: Any) -> None:
    doctor(raising(DataError("no-rows", "no rows", where="a.jsonl:3", fix="add rows")))
    ran = run_cli("doctor")
    assert (ran.code, ran.out, ran.err) == (1, "", "error [no-rows]: a.jsonl:3: no rows\nfix: add rows\n")
    answer = run_cli("doctor", "--json").json["error"]
    assert answer == {
        "code": "no-rows",
        "message": "no rows",
        "where": "a.jsonl:3",
        "fix": "add rows",
        "exit_code": 1,
    }


def test_usage_errors_are_json_too(run_cli: RunCli) -> None:
    answer = run_cli("train", "--json", "--nonsense")
    assert answer.code == 2
    assert answer.json["error"]["code"] == "command-line"


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        ("train --lr 1", "it is --learning-rate here"),
        ("plan --lr 1", "it is --learning-rate here"),
        ("plan quickstart --learning-rate 1", "use --set train.learning_rate=VALUE"),
        ("plan run quickstart --lr 1", "use --set train.learning_rate=VALUE"),
        ("eval --lr 1", "--learning-rate is for eagle3 train, plan"),
    ],
)
def test_an_unknown_flag_is_told_the_one_that_works_there(run_cli: RunCli, words: str, fix: str) -> None:
    ran = run_cli(*words.split())
    assert (ran.code, ran.err.splitlines()[-1]) == (2, f"fix: {fix}")


def test_an_unexpected_error_is_one_line_without_debug_and_whole_with_it(run_cli: RunCli, doctor: Any) -> None:
    doctor(raising(ValueError("odd\nsecond line")))
    ran = run_cli("doctor")
    assert (ran.code, ran.err) == (1, f"error [unexpected]: ValueError: odd\nfix: {cli.DEBUG_HINT}\n")
    debugged = run_cli("doctor", "--debug")
    assert debugged.code == 1
    assert "Traceback" in debugged.err
    assert "in raising" in debugged.err or "in run" in debugged.err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "the disk is full"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 1, "runs/x: the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/etc/x"), 1, "/etc/x: permission denied"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_codes(error: BaseException, code: int, said: str, run_cli: RunCli, doctor: Any) -> None:
    doctor(raising(error))
    ran = run_cli("doctor")
    assert ran.code == code
    assert said in ran.err


def test_a_commands_own_exit_code_is_the_programs(run_cli: RunCli, doctor: Any) -> None:
    doctor(lambda settings, out: 3)
    assert run_cli("doctor").code == 3


def test_a_reader_that_leaves_early_is_no_error() -> None:
    line = f"{shlex.quote(sys.executable)} -m eagle3cli config schema | head -n 1"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "{\n"
    assert done.stderr == ""
