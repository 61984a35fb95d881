"""The stages of ``eagle3 run``: which settings each depends on, where it writes, and the command that does it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eagle3cli.console.out import Out
from eagle3cli.errors import UsageError
from eagle3cli.runtime.units import time_text
from eagle3cli.settings.training import FREE_FIELDS

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
    """One step of the pipeline; ``fields`` are the settings (tables or ``table.name``) that its result depends on."""

    name: str
    summary: str
    fields: tuple[str, ...]
    output: Callable[[Settings], Path]
    run: Callable[[Settings, StageOut], None]
    files: Callable[[Settings], tuple[Path, ...]] = lambda settings: ()
    """Input files from outside the run's folder; a changed one counts as a changed setting."""
    feeds: bool = True
    """Whether a later stage reads what this one makes."""
    free: tuple[str, ...] = ()
    """Settings that may change: the stage goes on from what it has made."""
    remade: bool = False
    """Whether it is made again, in a moment and from what is kept, when its settings or an earlier stage change."""

    def dependencies(self, settings: Settings) -> dict[str, Any]:
        """The values of ``fields`` that are not the default, flat; what only steers a session is left out."""
        values: dict[str, Any] = {}
        for key in self.fields:
            table, _, only = key.partition(".")
            options = getattr(settings, table)
            defaults = type(options)().model_dump(mode="json")
            for name, value in options.model_dump(mode="json").items():
                if name not in SESSION_FIELDS and only in ("", name) and value != defaults[name]:
                    values[f"{table}.{name}"] = value
        for path in self.files(settings):
            values[str(path)] = [path.stat().st_size, path.stat().st_mtime_ns]
        return values


SESSION_FIELDS = (
    *("overwrite", "retry_errors", "resume", "threads", "num_proc", "view_train_data", "keep_checkpoints"),
    *("report_to", "tracker_project", "tracker_name"),
)


def stage_command(name: str) -> Any:
    """The command that a stage runs."""
    return importlib.import_module(f"eagle3cli.commands.{name.replace('-', '_')}").COMMAND


def run_command(name: str) -> Callable[[Settings, StageOut], None]:
    """Run a command's own function; rows that failed were reported and do not end the pipeline."""
    return lambda settings, out: stage_command(name).run(settings, out)


def prepare_prompts(settings: Settings, out: StageOut) -> None:
    """eagle3 prepare; of prompts whose recorded replies are not the target's, as many as it answers in minutes."""
    from eagle3cli.pipeline.own_replies import own_replies, why_own

    if why := why_own(settings):
        own = own_replies(settings, out)
        target = Path(settings.target.model_path).name
        time = f", about {time_text(own.rows * own.row_seconds)} here" if own.row_seconds else ""
        out.warn(
            f"the replies of {settings.regenerate.recorded} were recorded with {', '.join(why)}: {target} writes its "
            f"own, to {own.rows:,} prompts{time} (--regenerate with --sample-size N: to N)"
        )
        settings = settings.updated("prepare", sample_size=own.rows)
    run_command("prepare")(settings, out)


def write_replies(settings: Settings, out: StageOut) -> None:
    """eagle3 regenerate; without the recorded replies of which prepare has said that they are not the target's."""
    from eagle3cli.pipeline.own_replies import why_own

    if why_own(settings):
        settings = settings.updated("regenerate", recorded=None)
    run_command("regenerate")(settings, out)


def evaluate(settings: Settings, out: StageOut) -> None:
    """eagle3 eval, in as many processes as one target is spread over."""
    from eagle3cli.cli.worker import in_processes

    command = stage_command("eval")
    size = settings.target.tp_size
    if size == 1 or not in_processes(command, settings.updated("launch", gpus=str(size)), out):
        command.run(settings, out)


def convert_target(settings: Settings, out: StageOut) -> None:
    """Make the target a folder, with its adapter in it; one that is a folder or on the hub stays where it is."""
    from eagle3cli.cli.preflight.target import check_target

    check_target(settings, weights=True, tokenizer=True)  # before what follows imports torch
    from eagle3cli.backends.target.gguf.folder import local_folder
    from eagle3cli.backends.target.hf import read_target_config
    from eagle3cli.runtime.hub import warn_unless_reached

    parent = settings.run.output_dir / "target"
    folder = local_folder(settings.target.model_path, parent, out)
    warn_unless_reached(folder, out)
    if settings.target.adapter is not None:
        from eagle3cli.backends.target.adapter import merged_folder

        folder = merged_folder(folder, settings.target.adapter, parent, out, settings.target.revision)
    read_target_config(settings.target.model_copy(update={"model_path": folder}))  # tells a wrong one before any work
    if Path(folder).is_dir() and not settings.data.is_preformatted:
        from eagle3cli.data.chat.template import Chat
        from eagle3cli.data.chat.tokenizer import load_tokenizer

        Chat(load_tokenizer(folder, trust_remote_code=settings.target.trust_remote_code), settings.data.chat_template)
    out.data = {"target": folder}


def measure(settings: Settings, out: StageOut) -> None:
    """Decode held-out prompts with and without the draft, time single answers for every k, then the tasks."""
    from eagle3cli.serving.bench.bench import bench

    run = settings.run

    def bench_held_out(name: str, rows: int, configs: list[str]) -> list[dict[str, Any]]:
        changed = settings.updated(
            "bench",
            benchmark_list=(f"{settings.data.eval_path}:{rows}",),
            config_list=tuple(configs),
            max_tokens=run.new_tokens,
            temperature=(0.0,),
            output=settings.bench.output.parent / f"{name}.jsonl",
        )
        return bench(changed, out).table

    every_k = [f"1,{k},1,{k + 1}" for k in sorted({1, 2, 3, run.k}) if k <= run.k]
    out.data = {
        "held_out": bench_held_out("held_out", run.held_out_prompts, [f"{run.batch_size},{run.k},1,{run.k + 1}"]),
        "speed": bench_held_out("speed", run.speed_prompts, every_k),
        "tasks": bench(settings, out).table if settings.bench.benchmark_list else [],
    }


def _source_files(settings: Settings) -> tuple[Path, ...]:
    from eagle3cli.data.sources.dataset_specs import split_weight

    named = (*(Path(split_weight(word)[0]) for word in settings.prepare.source), settings.prepare.data_path)
    return tuple(path for path in named if path is not None and path.is_file())


def _adapter_files(settings: Settings) -> tuple[Path, ...]:
    adapter = settings.target.adapter
    files = () if adapter is None else (adapter / "adapter_config.json", adapter / "adapter_model.safetensors")
    return tuple(path for path in files if path.is_file())


TARGET = ("target.model_path", "target.adapter", "target.revision", "target.dtype")
BENCH = ("bench", "run.k", "run.held_out_prompts", "run.new_tokens", "run.speed_prompts", "run.batch_size")
STAGES = (
    Stage(
        "target",
        "the target as a folder; tells a wrong one first",
        TARGET,
        lambda s: s.run.output_dir,
        convert_target,
        _adapter_files,
    ),
    Stage(
        "prepare",
        "prompts or conversations in one layout",
        ("prepare", "regenerate.recorded"),
        lambda s: _required(s.prepare.output_path),
        prepare_prompts,
        _source_files,
    ),
    Stage(
        "regenerate",
        "replies written anew by the target",
        ("regenerate", "data.chat_template", "data.chat_template_kwargs"),
        lambda s: s.regenerate.output_dir,
        write_replies,
    ),
    Stage("merge", "a training and an evaluation file", ("merge",), lambda s: s.merge.output_dir, run_command("merge")),
    Stage(
        "cache",
        "tokens, masks and the draft's vocabulary",
        ("cache", "data", "draft"),
        lambda s: s.data.cache_dir,
        run_command("cache"),
    ),
    Stage(
        "hidden-states",
        "the target's states on disk; where train.mode is offline",
        ("hidden_states",),
        lambda s: s.hidden_states.output_path,
        run_command("hidden-states"),
    ),
    Stage(
        "train",
        "the draft",
        ("train",),
        lambda s: s.train.output_dir,
        run_command("train"),
        free=tuple(f"train.{name}" for name in FREE_FIELDS if name != "mode"),
    ),
    Stage(
        "eval",
        "the acceptance length on held-out replies",
        ("eval",),
        lambda s: s.run.output_dir,
        evaluate,
        feeds=False,
        remade=True,
    ),
    Stage(
        "export",
        "a draft folder that SGLang and vLLM load",
        ("export",),
        lambda s: s.export.output_path,
        run_command("export"),
        remade=True,
    ),
    Stage(
        "bench",
        "acceptance and speed, with and without the draft",
        BENCH,
        lambda s: s.bench.output.parent,
        measure,
        remade=True,
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
        "export": {"output_path": folder / "draft", "layout": "sglang"},  # what every stage behind it reads
        "bench": {"output": folder / "bench" / "results.jsonl"},
    }
    if settings.train.mode == "offline":
        states = settings.hidden_states.output_path
        states = states if "output_path" in settings.hidden_states.model_fields_set else folder / "hidden_states"
        paths["data"] |= {"train_hidden_states_path": (states / "train",), "eval_hidden_states_path": states / "eval"}
    if run.regenerate:
        settings = settings.updated("regenerate", recorded=None)
    for table, values in paths.items():
        explicit = getattr(settings, table).model_fields_set
        settings = settings.updated(table, **{name: value for name, value in values.items() if name not in explicit})
    return settings


def stage_settings(stage: Stage, settings: Settings, target: str) -> Settings:
    """The settings as one stage reads them: the converted target, and the draft that is there by then."""
    settings = settings.updated("target", model_path=target)
    if stage.name != "target":  # which has put the adapter into the folder that the others read
        settings = settings.updated("target", adapter=None)
    drafts = {
        "eval": settings.train.output_dir / "best",
        "export": settings.train.output_dir / "best",
        "bench": settings.export.output_path,
    }
    return settings.updated("draft", path=str(drafts[stage.name])) if stage.name in drafts else settings


def _required(path: Path | None) -> Path:
    if path is None:
        raise UsageError("invalid-value", "no output path", where="prepare.output_path")
    return path
