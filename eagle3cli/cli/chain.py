"""Where a command's inputs come from when nobody names them: what the stage before it wrote, found by its files.

Nothing here imports torch. What is found is told as the flags that would have said it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from eagle3cli.data.prepare.latest import latest_result
from eagle3cli.settings.argv import to_argv
from eagle3cli.settings.tables import Settings

DATA = ("data.train_path", "data.eval_path")
STATES = ("data.train_hidden_states_path", "data.eval_hidden_states_path")
TARGET = "target.model_path"
INPUTS: dict[str, tuple[str, ...]] = {
    "regenerate": ("regenerate.input_path",),
    "merge": ("merge.input_dir",),
    "cache": (*DATA, TARGET),
    "view": (*DATA, TARGET),
    "view-train-data": (*DATA, TARGET),
    "hidden-states": (*DATA, TARGET),
    "train": (*DATA, *STATES, TARGET),
    "plan": (*DATA, *STATES, TARGET),  # alone it plans training
    "eval": (*DATA, "draft.path", TARGET),
    "export": ("draft.path",),
    "bench": ("draft.path", TARGET),
}
"""The inputs of each command that an earlier one makes."""


def with_inputs(command: str, settings: Settings) -> tuple[Settings, dict[str, Any]]:
    """The settings with the command's inputs that were not set and are there, and those inputs by key."""
    inputs: dict[str, Any] = {}
    for key in INPUTS.get(command, ()):
        table, _, name = key.partition(".")
        if name in getattr(settings, table).model_fields_set:
            continue
        value = _target(command, settings) if key == TARGET else _FINDERS[key](command, settings)
        if value is not None:
            settings = settings.updated(table, **{name: value})
            inputs[key] = value
    return settings, inputs


def as_flags(settings: Settings, inputs: Mapping[str, Any]) -> list[str]:
    """The inputs that were found as the words that would have given them; those at their default are left out."""
    return to_argv(settings, inputs)


def _prepared(command: str, settings: Settings) -> Path | None:
    return latest_result(settings.prepare)


def _shards(command: str, settings: Settings) -> Path:
    return settings.regenerate.output_dir


def _train_file(command: str, settings: Settings) -> Path | None:
    return _file(settings.merge.output_dir / "train.jsonl")


def _eval_file(command: str, settings: Settings) -> Path | None:
    """The held-out rows of the same merge as the training rows: another file's would be of other data."""
    merged = settings.merge.output_dir
    together = settings.data.train_path in (None, merged / "train.jsonl")
    return _file(merged / "eval.jsonl") if together else None


def _train_states(command: str, settings: Settings) -> tuple[Path, ...] | None:
    store = settings.hidden_states.output_path / "train"
    return (store,) if _reads_states(settings) and (store / "manifest.json").is_file() else None


def _eval_states(command: str, settings: Settings) -> Path | None:
    stores = settings.hidden_states.output_path
    together = settings.data.train_hidden_states_path in ((), (stores / "train",))
    there = (stores / "eval" / "manifest.json").is_file()
    return stores / "eval" if _reads_states(settings) and together and there else None


def _reads_states(settings: Settings) -> bool:
    return settings.train.mode == "offline"


def _draft(command: str, settings: Settings) -> str | None:
    """For bench the exported draft, else the best one of the training run."""
    folder = settings.export.output_path if command == "bench" else settings.train.output_dir / "best"
    return str(folder) if (folder / "config.json").is_file() else None


_FINDERS: dict[str, Callable[[str, Settings], Any]] = {
    "regenerate.input_path": _prepared,
    "merge.input_dir": _shards,
    "data.train_path": _train_file,
    "data.eval_path": _eval_file,
    "data.train_hidden_states_path": _train_states,
    "data.eval_hidden_states_path": _eval_states,
    "draft.path": _draft,
}


def _target(command: str, settings: Settings) -> str | None:
    """The target that the stage before was given: of a draft its run's, of data the one that wrote the replies."""
    if command in ("eval", "bench"):
        draft = Path(settings.draft.path) if settings.draft.path else settings.train.output_dir
        return target_of_run(draft) or target_of_run(settings.train.output_dir)
    return _target_of_states(settings) or target_of_shards(settings.regenerate.output_dir)


def _target_of_states(settings: Settings) -> str | None:
    stores = settings.data.train_hidden_states_path
    if not _reads_states(settings) or not stores:
        return None
    return _text(_json(stores[0] / "manifest.json"), "meta", "target")


def target_of_shards(folder: Path) -> str | None:
    """The target that ``eagle3 regenerate`` was given for the shards in a folder."""
    return _text(_json(folder / "manifest.json"), "target_path")


def settings_of_shards(folder: Path) -> dict[str, Any]:
    """The settings of the shards in a folder that their rows must be tokenized with, by key."""
    inputs: dict[str, Any] = {TARGET: target_of_shards(folder)}
    manifest = _json(folder / "manifest.json")
    made_with = manifest.get("made_with") if isinstance(manifest, dict) else None
    if isinstance(made_with, dict):
        inputs["data.chat_template"] = _text(made_with, "chat_template")
        options = made_with.get("chat_template_kwargs")
        inputs["data.chat_template_kwargs"] = tuple(map(str, options)) if isinstance(options, list) else None
    return {key: value for key, value in inputs.items() if value is not None}


def target_of_run(draft: Path) -> str | None:
    """The target of the training run that a draft's folder stands in."""
    for run in (draft, *draft.parents[:2]):
        try:
            tables = tomllib.loads((run / "settings.toml").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        return _text(tables, "target", "model_path")
    return None


def _file(path: Path) -> Path | None:
    return path if path.is_file() and path.stat().st_size else None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _text(value: Any, *keys: str) -> str | None:
    """A text within nested tables; None where there is no such one."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) and value else None
