"""The checks of each command, in the order in which a person would want to hear of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eagle3cli.cli.command import Command, fields_of
from eagle3cli.cli.preflight.paths import check_file, check_folder, check_input, check_output
from eagle3cli.console.out import Out
from eagle3cli.errors import UsageError
from eagle3cli.runtime.report import Reporter
from eagle3cli.settings.fields import fields
from eagle3cli.settings.tables import Settings

RUNS_TARGET = ("train", "hidden-states", "eval", "regenerate", "bench", "run")
"""Commands that read the target's weights."""
NEEDS_TARGET = ("train", "hidden-states", "cache")
READS_DRAFT = ("eval", "export", "import")
READS_ROWS = ("train", "hidden-states", "cache", "eval")
OUTPUTS = {
    "train": ("train.output_dir", True),
    "run": ("run.output_dir", True),
    "prepare": ("prepare.output_path", True),
    "regenerate": ("regenerate.output_dir", True),
    "merge": ("merge.output_dir", True),
    "hidden-states": ("hidden_states.output_path", True),
    "export": ("export.output_path", True),
    "import": ("export.output_path", True),
    "bench": ("bench.output", False),
    "report": ("report.output_path", False),
}
"""Where a command writes, and whether that is a folder."""


def preflight(command: Command, settings: Settings, out: Out) -> None:
    """Raise the error that ``command`` would end with later, where it can be known already; then say on a
    terminal that torch is being loaded. Imports no torch."""
    if os.environ.get("EAGLE3_LAUNCH") or os.environ.get("RANK", "0") != "0":
        return  # the process that started this one, or the first rank, has looked
    name = command.name
    engine = _engine(name, settings)
    keys = {field.key for fields_in in fields_of(command) for field in fields_in}
    _check_machine(settings, keys, engine)
    target = _check_target(name, settings, engine)
    _check_inputs(name, settings)
    _check_names(settings, keys, target)
    _check_draft(name, settings, target, out, engine)
    if name in OUTPUTS:
        key, is_folder = OUTPUTS[name]
        value = fields()[key].value(settings)
        if value is not None:
            check_output(Path(value), fields()[key].flags[0], folder=is_folder)
    if engine == "running":
        from eagle3cli.cli.preflight.serving import check_servers

        check_servers(settings, every=name == "bench")
    if command.loads_torch and "torch" not in sys.modules:
        out.loading("loading PyTorch ...")


def _engine(name: str, settings: Settings) -> str | None:
    """Where the target runs; None for a command that has no servers."""
    if name not in ("regenerate", "bench"):
        return None
    from eagle3cli.serving.engine import resolve_engine

    return resolve_engine(
        settings.regenerate.engine if name == "regenerate" else settings.bench.engine, settings.server
    )


def _check_machine(settings: Settings, keys: set[str], engine: str | None) -> None:
    from eagle3cli.cli.preflight.devices import check_device, check_gpus, check_port, check_split
    from eagle3cli.runtime.llama_server import llama_server

    if "target.device" in keys and engine in (None, "local"):
        check_device(settings.target.device)
    if "launch.gpus" in keys:
        check_gpus(settings.launch.gpus, settings.target.device)
    if "launch.target_gpus" in keys:
        check_split(settings)
    if engine == "started":
        check_port(settings)
        named = settings.bench.engine if "bench.engine" in keys else settings.regenerate.engine
        if named == "llama.cpp":
            llama_server(settings.server.llama_server)


def _check_target(name: str, settings: Settings, engine: str | None) -> dict[str, Any] | None:
    """The target's config where it is at hand."""
    if not settings.target.model_path and name in NEEDS_TARGET:
        fix = "pass --target-model-path: a folder, a hub id or a .gguf file"
        raise UsageError("missing-target", "no target model", where="--target-model-path", fix=fix)
    if engine == "running" or name == "run":
        return None  # servers have it, and the name is theirs; the first stage of a run looks, and keeps what it found
    from eagle3cli.cli.preflight.target import check_target

    # States from disk need neither the tokenizer nor all of the weights.
    stored = settings.train.mode == "offline" if name == "train" else settings.data.eval_hidden_states_path is not None
    from_store = name in ("train", "eval") and stored
    return check_target(
        settings,
        weights=name in RUNS_TARGET and not from_store,
        tokenizer=name not in ("export", "import") and not from_store,
    )


def _check_inputs(name: str, settings: Settings) -> None:
    data = settings.data
    offline = name == "train" and settings.train.mode == "offline"
    if name in READS_ROWS and not offline and not (name == "eval" and data.eval_hidden_states_path):
        for path, flag in ((data.train_path, "--train-data-path"), (data.eval_path, "--eval-data-path")):
            if path is not None:
                check_file(path, flag)
    if offline:
        for path in data.train_hidden_states_path:
            check_folder(path, "--train-hidden-states-path")
    if data.eval_hidden_states_path is not None and (offline or name == "eval"):
        check_folder(data.eval_hidden_states_path, "--eval-hidden-states-path")
    if name == "regenerate" and settings.regenerate.input_path is not None:
        check_input(settings.regenerate.input_path, "--input-path")
    if name == "merge":
        check_folder(settings.merge.input_dir, "--input-dir, or run eagle3 regenerate first")
    if name == "bench" and settings.bench.benchmark_dir is not None:
        check_folder(settings.bench.benchmark_dir, "--benchmark-dir")


def _check_names(settings: Settings, keys: set[str], target: Mapping[str, Any] | None) -> None:
    """Names of templates and draft configs, and times."""
    from eagle3cli.runtime.units import parse_duration

    if "train.time_budget" in keys:
        parse_duration(settings.train.time_budget)
    if "data.chat_template" in keys:
        from eagle3cli.data.chat.named import check_template_name

        check_template_name(settings.data.chat_template)
    if "draft.config" in keys and settings.draft.init != "draft" and target is not None:
        from eagle3cli.models.config import read_draft_config

        draft = settings.draft
        read_draft_config(draft.config, dict(target), draft_vocab_size=draft.vocab_size, aux_layers=draft.aux_layers)


def _check_draft(
    name: str, settings: Settings, target: Mapping[str, Any] | None, report: Reporter, engine: str | None
) -> None:
    from eagle3cli.cli.preflight.draft import check_draft, check_warm_start

    reads = name in READS_DRAFT
    if name == "bench":
        from eagle3cli.cli.preflight.serving import check_bench

        reads = check_bench(settings, engine or "local")
    if name == "train" and settings.draft.init == "draft":
        check_warm_start(settings)
        reads = True
    if name in ("eval", "import") and settings.draft.path is None:
        raise UsageError(
            "missing-draft", "no draft", where="--draft-model-path", fix="run eagle3 train first, or give a folder"
        )
    if reads:
        check_draft(settings, target, report)
