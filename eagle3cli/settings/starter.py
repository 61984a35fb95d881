"""The first settings file of a person: a few questions, and a file in which all the rest stands as comments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eagle3cli.errors import UsageError
from eagle3cli.settings.errors import validation_errors
from eagle3cli.settings.fields import fields
from eagle3cli.settings.load import parse_value
from eagle3cli.settings.tables import Settings


@dataclass(frozen=True)
class SetupQuestion:
    """One question; the default may follow from the answers before it."""

    key: str
    text: str
    default: Callable[[Mapping[str, str]], str]


def _folder(answers: Mapping[str, str]) -> str:
    name = Path(answers["target.model_path"]).name.removesuffix(".gguf").lower()
    return f"runs/{name or 'run'}"


QUESTIONS = (
    SetupQuestion("target.model_path", "Target model (a hub id, a folder, or a .gguf file)", lambda a: "Qwen/Qwen3-8B"),
    SetupQuestion(
        "prepare.source", "Data (a preset such as sharegpt or ultrachat, a hub id, or a file)", lambda a: "sharegpt"
    ),
    SetupQuestion(
        "train.mode", "online (the target runs live) or offline (its states go to disk first)", lambda a: "online"
    ),
    SetupQuestion("run.output_dir", "Folder for the results", _folder),
    SetupQuestion("launch.gpus", "GPUs (a number, or auto for all; auto is right without any, too)", lambda a: "auto"),
)


def ask_all(ask: Callable[[str, str], str], show: Callable[[str], None]) -> dict[str, str]:
    """The answers by key; ``ask`` gets a question and its default, ``show`` what is wrong with an answer."""
    answers: dict[str, str] = {}
    for question in QUESTIONS:
        default = question.default(answers)
        answer = ask(question.text, default).strip() or default
        while error := error_in(question.key, answer):
            show(f"{error.message}{f' ({error.fix})' if error.fix else ''}")
            answer = ask(question.text, default).strip() or default
        answers[question.key] = answer
    return answers


def error_in(key: str, text: str) -> UsageError | None:
    """What is wrong with a value, or None."""
    table, name = key.split(".")
    value: Any = parse_value(fields()[key], text)
    try:
        Settings.model_validate({table: {name: value}})
    except ValidationError as error:
        return validation_errors(error, {key: value}, {key: "--set"})[0]
    return None


def values_of(answers: Mapping[str, str]) -> dict[str, Any]:
    """The settings that the answers stand for, by key."""
    values = {key: parse_value(fields()[key], text) for key, text in answers.items()}
    if "run.output_dir" in answers:  # where `eagle3 run` would train, also for `eagle3 train` alone
        values["train.output_dir"] = f"{answers['run.output_dir'].rstrip('/')}/train"
    return values
