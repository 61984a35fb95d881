"""The values that the shell offers: for a settings key, and for what else stands on a command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eagle3cli.cli.completion import folders
from eagle3cli.settings.fields import SettingsField, fields, tables

Paths = Literal["", "files", "folders"]
ROWS = {"mtbench": ("8", "80"), "humaneval": ("20", "164"), "mtbench-like": ("8", "40")}
USUAL_ROWS = ("20", "200")


@dataclass(frozen=True)
class Offer:
    """Words with their help, and whether the shell adds the files or folders that are there.

    A word that ends in = : . or / is not finished.
    """

    words: dict[str, str]
    paths: Paths = ""

    def __add__(self, other: Offer) -> Offer:
        return Offer(self.words | other.words, self.paths or other.paths)


def starting_with(prefix: str, words: Mapping[str, str]) -> dict[str, str]:
    """The words that begin with ``prefix``."""
    return {word: text for word, text in words.items() if word.startswith(prefix)}


def offer(values: str, prefix: str, used: Sequence[str] = (), before: str = "") -> Offer:
    """What may follow ``prefix``; ``used`` are words that stand there already, ``before`` opens the word.

    ``values`` is a settings key or one of SPECIAL; where it is neither, nothing is offered.
    """
    words: dict[str, str] = {}
    paths: Paths = ""
    if values in SPECIAL:
        words_for, paths = SPECIAL[values]
        words |= words_for(prefix)
    if values in fields():
        field = fields()[values]
        paths = paths or _paths(field)
        words |= dict.fromkeys(field.choices or field.words, "")
    words = {before + word: text for word, text in starting_with(prefix, words).items() if word not in used}
    if ":" in prefix or (words and paths == "folders"):  # NAME:ROWS is no file; a folder only where no word fits
        paths = ""
    return Offer(words, paths)


def _paths(field: SettingsField) -> Paths:
    if field.type is not Path:
        return ""
    return "folders" if field.name.endswith("_dir") or field.key in IS_FOLDER else "files"


def _presets(prefix: str) -> dict[str, str]:
    from eagle3cli.data.sources.presets import PRESETS

    return {name: preset.summary for name, preset in PRESETS.items()}


def _templates(prefix: str) -> dict[str, str]:
    from eagle3cli.data.chat.named import NAMED

    return {"auto": "the tokenizer's own", **{name: template.models for name, template in NAMED.items()}}


def _draft_configs(prefix: str) -> dict[str, str]:
    from eagle3cli.models.packaged import packaged_configs

    return {"auto": "derived from the target", **dict.fromkeys(packaged_configs(), "packaged")}


def _benchmarks(prefix: str) -> dict[str, str]:
    from eagle3cli.serving.bench.tasks import NAMES

    name, colon, _ = prefix.partition(":")
    if colon and name in NAMES:
        return {f"{name}:{rows}": "questions" for rows in ROWS.get(name, USUAL_ROWS)}
    return {f"{name}:": "a benchmark, and how many of its questions" for name in NAMES}


def _recipes(prefix: str) -> dict[str, str]:
    from eagle3cli.settings.packaged import recipes, summary

    return {name: summary(path) for name, path in recipes().items()}


def _assignments(prefix: str) -> dict[str, str]:
    """``table.``, then ``table.key=``, then ``table.key=value``."""
    table, dot, _ = prefix.partition(".")
    key, equals, value = prefix.partition("=")
    if not dot or table not in tables():
        return {f"{name}.": text for name, text in tables().items()}
    if not equals or key not in fields():
        return {f"{field.key}=": field.help for field in fields().values() if field.table == table}
    values = ("true", "false") if fields()[key].type is bool else offer(key, value).words
    return {f"{key}={word}": "" for word in values}


def _keys(prefix: str) -> dict[str, str]:
    """Tables, and the keys of a table that is named."""
    return tables() | {field.key: field.help for field in fields().values() if prefix.startswith(field.table)}


def _one_of(*words: str) -> Callable[[str], dict[str, str]]:
    return lambda prefix: dict.fromkeys(words, "")


def _each_of(find: Callable[[str], list[str]]) -> Callable[[str], dict[str, str]]:
    return lambda prefix: dict.fromkeys(find(prefix), "")


SPECIAL: dict[str, tuple[Callable[[str], dict[str, str]], Paths]] = {
    "prepare.source": (_presets, "files"),
    "data.chat_template": (_templates, "files"),
    "view.check_template": (_templates, "files"),
    "draft.config": (_draft_configs, "files"),
    "draft.path": (_each_of(folders.drafts), "folders"),
    "refresh.draft": (_each_of(folders.drafts), "folders"),
    "target.model_path": (_each_of(folders.cached_models), "files"),
    "target.device": (_one_of("auto", "cpu", "cuda"), ""),
    "bench.benchmark_list": (_benchmarks, "files"),
    "bench.config_list": (_one_of("1,0,0,0", "1,3,1,4", "1,5,1,6", "4,0,0,0", "4,3,1,4", "4,7,10,60"), ""),
    "bench.temperature": (_one_of("0.0", "0.7", "1.0"), ""),
    "report.runs": (_each_of(folders.runs), "files"),
    "watch.run": (_each_of(folders.runs), "folders"),
    "regenerate.recorded": (_one_of("quickstart"), "files"),
    "launch.gpus": (_one_of("auto", "1", "2", "4", "8"), ""),
    "recipe": (_recipes, "files"),
    "config": (_one_of(), "files"),
    "set": (_assignments, ""),
    "show KEY": (_keys, ""),
    "check FILE": (_recipes, "files"),
    "init FILE": (_one_of(), "files"),
}
"""Where the words come from, and whether files or folders may stand there too."""

IS_FOLDER = {
    "data.train_hidden_states_path", "data.eval_hidden_states_path", "export.output_path", "hidden_states.output_path",
    "hidden_states.paths", "prepare.output_path", "target.offload_folder",
}  # fmt: skip
"""Paths that are folders although their names do not end in _dir."""
