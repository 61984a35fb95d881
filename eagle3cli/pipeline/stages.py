"""The stages of ``eagle3 run``: which settings each depends on, where it writes, and the command that does it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eagle3cli.console.out import Out
from eagle3cli.errors import UsageError

if TYPE_CHECKING:
    from eagle3cli.settings.tables import Settings


class StageOut(Out):
    """Progress and warnings as usual; the stage's result is kept instead of shown."""

    data: Mapping[str, object]

    def result(self, data: dict[str, object], text: str) -> None:
        """Keep the result."""
        self.data = data

    def print(self, text: str) -> None:
        """Show no tables: the run ends with its own."""


@dataclass(frozen=True)
class Stage:
    """One step of the chain; ``fields`` are the settings (tables or ``table.name``) that its result depends on."""

    name: str
    summary: str
    fields: tuple[str, ...]
    output: Callable[[Settings], Path]
    run: Callable[[Settings, StageOut], None]
    files: Callable[[Settings], tuple[Path, ...]] = lambda settings: ()
    """Input files from outside the run's folder; a changed one counts as a changed setting."""
    feeds: bool = True
    """Whether a later stage reads what this one makes."""

    def of(self, settings: Settings) -> dict[str, Any]:
        """The values of ``fields`` that are not the default, flat; what only steers a session is left out."""
        found: dict[str, Any] = {}
        for key in self.fields:
            table, _, only = key.partition(".")
            values = getattr(settings, table)
            usual = type(values)().model_dump(mode="json")
            for name, value in values.model_dump(mode="json").items():
                if name not in SESSION and only in ("", name) and value != usual[name]:
                    found[f"{table}.{name}"] = value
        for path in self.files(settings):
            found[str(path)] = [path.stat().st_size, path.stat().st_mtime_ns]
        return found


SESSION = (
    *("overwrite", "retry_errors", "resume", "threads", "num_proc", "view_train_data", "keep_checkpoints"),
    *("report_to", "tracker_project", "tracker_name"),
)


def command(name: str) -> Callable[[Settings, StageOut], None]:
    """Run a command's own function; rows that failed were reported and do not end the chain."""

    def run(settings: Settings, out: StageOut) -> None:
        module = importlib.import_module(f"eagle3cli.commands.{name.replace('-', '_')}")
        module.COMMAND.run(settings, out)

    return run


def evaluate(settings: Settings, out: StageOut) -> None:
    """eagle3 eval, in as many processes as one target is spread over."""
    from eagle3cli.cli.worker import in_processes

    module = importlib.import_module("eagle3cli.commands.eval")
    size = settings.target.tp_size
    if size == 1 or not in_processes(module.COMMAND, _update(settings, "launch", {"gpus": str(size)}), out):
        module.COMMAND.run(settings, out)


def convert(settings: Settings, out: StageOut) -> None:
    """Make the target a folder; one that is a folder or on the hub stays where it is."""
    from eagle3cli.backends.target.gguf import local_folder
    from eagle3cli.backends.target.hf import read_target_config
    from eagle3cli.runtime.hub import warn_unless_reached

    folder = local_folder(settings.target.model_path, settings.run.output_dir / "target", out)
    warn_unless_reached(folder, out)
    read_target_config(settings.target.model_copy(update={"model_path": folder}))  # tells a wrong one before any work
    out.data = {"target": folder}


def measure(settings: Settings, out: StageOut) -> None:
    """Decode held-out prompts with and without the draft, time single answers for every k, then the wanted tasks."""
    from eagle3cli.serving.bench.bench import bench

    wanted, folder = settings.run, settings.bench.output.parent
    held_out, batch = settings.data.eval_path, wanted.batch_size

    def on(name: str, rows: int, configs: tuple[str, ...], tokens: int) -> list[dict[str, Any]]:
        update = {
            "benchmark_list": (f"{held_out}:{rows}",),
            "config_list": configs,
            "max_tokens": tokens,
            "temperature": (0.0,),
            "output": folder / f"{name}.jsonl",
        }
        table = settings.bench.model_copy(update=update)
        return bench(settings.model_copy(update={"bench": table}), out).table

    chain = (f"{batch},{wanted.k},1,{wanted.k + 1}",)
    ladder = tuple(f"1,{k},1,{k + 1}" for k in sorted({1, 2, 3, wanted.k}) if k <= wanted.k)
    out.data = {
        "held_out": on("held_out", wanted.held_out_prompts, chain, wanted.new_tokens),
        "speed": on("speed", wanted.speed_prompts, ladder, wanted.new_tokens),
        "tasks": bench(settings, out).table if settings.bench.benchmark_list else [],
    }


TARGET = ("target.model_path", "target.revision", "target.dtype")
MEASURED = ("bench", "run.k", "run.held_out_prompts", "run.new_tokens", "run.speed_prompts", "run.batch_size")
STAGES = (
    Stage("target", "the target as a folder; tells a wrong one first", TARGET, lambda s: s.run.output_dir, convert),
    Stage(
        "prepare",
        "prompts or conversations in one layout",
        ("prepare",),
        lambda s: _set(s.prepare.output_path),
        command("prepare"),
        lambda s: _sources(s),
    ),
    Stage(
        "regenerate",
        "replies written anew by the target",
        ("regenerate", "data.chat_template", "data.chat_template_kwargs"),
        lambda s: s.regenerate.output_dir,
        command("regenerate"),
    ),
    Stage("merge", "a training and an evaluation file", ("merge",), lambda s: s.merge.output_dir, command("merge")),
    Stage(
        "cache",
        "tokens, masks and the draft's vocabulary",
        ("cache", "data", "draft"),
        lambda s: s.data.cache_dir,
        command("cache"),
    ),
    Stage(
        "hidden-states",
        "the target's states on disk; where train.mode is offline",
        ("hidden_states",),
        lambda s: s.hidden_states.output_path,
        command("hidden-states"),
    ),
    Stage("train", "the draft", ("train",), lambda s: s.train.output_dir, command("train")),
    Stage(
        "eval",
        "the acceptance length on held-out replies",
        ("eval",),
        lambda s: s.run.output_dir,
        evaluate,
        feeds=False,
    ),
    Stage(
        "export",
        "a draft folder that SGLang and vLLM load",
        ("export",),
        lambda s: s.export.output_path,
        command("export"),
    ),
    Stage(
        "bench", "acceptance and speed, with and without the draft", MEASURED, lambda s: s.bench.output.parent, measure
    ),
)


def stages(settings: Settings) -> tuple[Stage, ...]:
    """The stages that this run needs: hidden states go to disk only for offline training."""
    return tuple(s for s in STAGES if s.name != "hidden-states" or settings.train.mode == "offline")


def with_default_paths(settings: Settings) -> Settings:
    """Every path that was not set, below the run's folder; what the stages hand on is what the next one reads."""
    run = settings.run
    folder = run.output_dir
    paths: dict[str, dict[str, Any]] = {
        "prepare": {"output_path": folder / "prompts"},
        "regenerate": {"input_path": folder / "prompts" / "train.jsonl", "output_dir": folder / "regenerated"},
        "merge": {"input_dir": folder / "regenerated", "output_dir": folder / "dataset"},
        "data": {
            "cache_dir": folder / "cache",
            "train_path": folder / "dataset" / "train.jsonl",
            "eval_path": folder / "dataset" / "eval.jsonl",
        },
        "hidden_states": {"output_path": folder / "hidden_states"},
        "train": {"output_dir": folder / "train"},
        "eval": {"rows": run.held_out_prompts, "depths": max(run.k, settings.eval.depths)},
        "export": {"output_path": folder / "draft"},
        "bench": {"output": folder / "bench" / "results.jsonl"},
    }
    if settings.train.mode == "offline":
        states = settings.hidden_states.output_path
        states = states if "output_path" in settings.hidden_states.model_fields_set else folder / "hidden_states"
        paths["data"] |= {"train_hidden_states_path": (states / "train",), "eval_hidden_states_path": states / "eval"}
    if run.regenerate:
        settings = _update(settings, "regenerate", {"recorded": None})
    for table, values in paths.items():
        given = getattr(settings, table).model_fields_set
        settings = _update(settings, table, {name: value for name, value in values.items() if name not in given})
    return settings


def stage_settings(stage: Stage, settings: Settings, target: str) -> Settings:
    """The settings as one stage reads them: the converted target, and the draft that is there by then."""
    settings = _update(settings, "target", {"model_path": target})
    draft = {"eval": settings.train.output_dir / "best", "export": settings.train.output_dir / "best"}
    draft["bench"] = settings.export.output_path
    if stage.name in draft:
        settings = _update(settings, "draft", {"path": str(draft[stage.name])})
    return settings


def _update(settings: Settings, table: str, values: Mapping[str, Any]) -> Settings:
    changed = getattr(settings, table).model_copy(update=dict(values))
    return settings.model_copy(update={table: changed})


def _sources(settings: Settings) -> tuple[Path, ...]:
    from eagle3cli.data.sources.dataset_specs import split_weight

    named = (*(Path(split_weight(word)[0]) for word in settings.prepare.source), settings.prepare.data_path)
    return tuple(path for path in named if path is not None and path.is_file())


def _set(path: Path | None) -> Path:
    if path is None:
        raise UsageError("no output path", where="prepare.output_path")
    return path
