"""The values that the shell offers: for a settings key, and for what else stands on a command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eagle3cli.cli.completion import folders
from eagle3cli.settings.fields import SettingsField, fields, tables

Paths = Literal["", "files", "folders"]
ROWS = {"mtbench": ("8", "80"), "humaneval": ("20", "164"), "mtbench-like": ("8", "40")}
USUAL_ROWS = ("20", "200")


@dataclass(frozen=True)
class Choice:
    """A word that may stand there; one that ends in = : . or / is not finished."""

    word: str
    help: str = ""


@dataclass(frozen=True)
class Offer:
    """Words, and whether the shell adds the files or folders that it finds."""

    choices: list[Choice]
    paths: Paths = ""

    def __add__(self, other: Offer) -> Offer:
        return Offer([*self.choices, *other.choices], self.paths or other.paths)


def offer(values: str, begun: str, given: Sequence[str] = (), before: str = "") -> Offer:
    """What may follow ``begun``; ``given`` are words that stand there already, ``before`` opens the word.

    ``values`` is a settings key or one of SPECIAL; where it is neither, nothing is offered.
    """
    words: Iterable[Choice] = ()
    paths: Paths = ""
    if values in SPECIAL:
        find, paths = SPECIAL[values]
        words = find(begun)
    if values in fields():
        field = fields()[values]
        paths = paths or _paths(field)
        words = [*words, *(Choice(choice) for choice in field.choices)]
    fitting = [c for c in words if c.word.startswith(begun) and c.word not in given]
    if ":" in begun or (fitting and paths == "folders"):  # NAME:ROWS is no file; a folder only where no known one fits
        paths = ""
    return Offer([Choice(before + c.word, c.help) for c in fitting], paths)


def _paths(field: SettingsField) -> Paths:
    if field.type is not Path:
        return ""
    return "folders" if field.name.endswith("_dir") or field.key in IS_FOLDER else "files"


def _named(pairs: Iterable[tuple[str, str]]) -> list[Choice]:
    return [Choice(word, text) for word, text in pairs]


def _presets(begun: str) -> list[Choice]:
    from eagle3cli.data.sources.presets import PRESETS

    return _named((name, preset.summary) for name, preset in PRESETS.items())


def _templates(begun: str) -> list[Choice]:
    from eagle3cli.data.chat.named import NAMED

    return _named([("auto", "the tokenizer's own"), *((name, named.models) for name, named in NAMED.items())])


def _draft_configs(begun: str) -> list[Choice]:
    from eagle3cli.models.packaged import packaged_configs

    return _named([("auto", "derived from the target"), *((name, "packaged") for name in packaged_configs())])


def _benchmarks(begun: str) -> list[Choice]:
    from eagle3cli.serving.bench.tasks import NAMES

    name, colon, _ = begun.partition(":")
    if colon and name in NAMES:
        return _named((f"{name}:{rows}", "questions") for rows in ROWS.get(name, USUAL_ROWS))
    return [Choice(f"{name}:", "a benchmark, and how many of its questions") for name in NAMES]


def _recipes(begun: str) -> list[Choice]:
    from eagle3cli.settings.packaged import recipes, summary

    return _named((name, summary(path)) for name, path in recipes().items())


def _assignments(begun: str) -> Iterator[Choice]:
    """``table.``, then ``table.key=``, then ``table.key=value``."""
    table, dot, _ = begun.partition(".")
    key, equals, value = begun.partition("=")
    if not dot or table not in tables():
        yield from (Choice(f"{name}.", text) for name, text in tables().items())
    elif not equals or key not in fields():
        yield from (Choice(f"{field.key}=", field.help) for field in fields().values() if field.table == table)
    else:
        field = fields()[key]
        words = ["true", "false"] if field.type is bool else [choice.word for choice in offer(key, value).choices]
        yield from (Choice(f"{key}={word}") for word in words)


def _keys(begun: str) -> Iterator[Choice]:
    """Tables, and the keys of a table that is named."""
    yield from (Choice(name, text) for name, text in tables().items())
    yield from (Choice(field.key, field.help) for field in fields().values() if begun.startswith(field.table))


def _plain(*words: str) -> Callable[[str], list[Choice]]:
    return lambda begun: [Choice(word) for word in words]


SPECIAL: dict[str, tuple[Callable[[str], Iterable[Choice]], Paths]] = {
    "prepare.source": (_presets, "files"),
    "data.chat_template": (_templates, "files"),
    "view.check_template": (_templates, "files"),
    "draft.config": (_draft_configs, "files"),
    "draft.path": (lambda begun: map(Choice, folders.drafts(begun)), "folders"),
    "target.model_path": (lambda begun: map(Choice, folders.cached_models()), "files"),
    "target.device": (_plain("auto", "cpu", "cuda"), ""),
    "bench.benchmark_list": (_benchmarks, "files"),
    "bench.config_list": (_plain("1,0,0,0", "1,3,1,4", "1,5,1,6", "4,0,0,0", "4,3,1,4", "4,7,10,60"), ""),
    "bench.temperature": (_plain("0.0", "0.7", "1.0"), ""),
    "report.runs": (lambda begun: map(Choice, folders.runs(begun)), "files"),
    "watch.run": (lambda begun: map(Choice, folders.runs(begun)), "folders"),
    "regenerate.recorded": (_plain("quickstart"), "files"),
    "launch.gpus": (_plain("auto", "1", "2", "4", "8"), ""),
    "recipe": (_recipes, "files"),
    "config": (_plain(), "files"),
    "set": (_assignments, ""),
    "show KEY": (_keys, ""),
    "check FILE": (_recipes, "files"),
    "init FILE": (_plain(), "files"),
}
"""Where the words come from, and whether files or folders may stand there too."""

IS_FOLDER = {
    "data.train_hidden_states_path", "data.eval_hidden_states_path", "export.output_path", "hidden_states.output_path",
    "hidden_states.paths", "prepare.output_path", "target.offload_folder",
}  # fmt: skip
"""Paths that are folders although their names do not end in _dir."""
