"""A draft that is read: its folder, its weights, and whether it is one of this target."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eagle3cli.backends.target.gguf.folder import existing_conversion, source_of
from eagle3cli.cli.preflight.paths import similar_path
from eagle3cli.errors import Eagle3Error, ModelError, UsageError
from eagle3cli.models.files import read_json_object
from eagle3cli.models.folders import check_made_for, check_weight_files, find_draft, gguf_draft
from eagle3cli.runtime.report import Reporter
from eagle3cli.settings.tables import Settings

FLAG = "--draft-model-path"
OF_A_DRAFT = ("draft_vocab_size", "eagle_config", "speculators_model_type")


def check_draft(settings: Settings, target: Mapping[str, Any] | None, report: Reporter) -> None:
    """Raise ModelError where ``draft.path`` holds no whole draft, or one of another target than the config ``target``;
    warn where its run had another target of the same sizes.
    """
    path = Path(settings.draft.path or settings.train.output_dir).expanduser()
    if gguf_draft(path) is not None:
        fix = "bench --engine llama.cpp reads it; else give the run or the folder that it was exported from"
        raise ModelError("draft-format", "a draft for llama.cpp, which nothing else reads", where=str(path), fix=fix)
    if path.is_file():
        raise ModelError(
            "not-a-draft", "no trained draft here: a file, not a folder", where=str(path), fix=_fix(path.parent)
        )
    if not path.exists():
        similar = similar_path(path)
        fix = f"did you mean {similar}?" if similar is not None else _fix(None)
        raise ModelError("no-such-path", "no such folder", where=str(path), fix=fix)
    folder = find_draft(path)
    raw = read_json_object(folder / "config.json")
    named = any("eagle" in str(name).lower() for name in raw.get("architectures") or ())
    if not named and not raw.keys() & set(OF_A_DRAFT) and raw.get("num_hidden_layers", 1) != 1:
        what = f"a whole model ({raw.get('num_hidden_layers')} layers), not an EAGLE-3 draft"
        raise ModelError("not-a-draft", what, where=str(folder), fix=_fix(None))
    check_weight_files(folder)
    if target is not None and "speculators_model_type" not in raw:
        check_made_for(folder, raw, target)
        _warn_of_another_name(folder, settings, report)


def _fix(folder: Path | None) -> str:
    if folder is not None and (folder / "config.json").is_file():
        return f"give its folder: {FLAG} {folder}"
    return f"run eagle3 train and eagle3 export first, or give {FLAG}: a training run or a draft's folder"


def _warn_of_another_name(folder: Path, settings: Settings, report: Reporter) -> None:
    """A draft of another target with the same sizes loads and runs; it is only accepted less often."""
    trained_for = _target_of_run(folder)
    if not trained_for or _is_merged(trained_for, settings):
        return
    names = {_name_of(name, settings.data.cache_dir / "models") for name in (settings.target.model_path, trained_for)}
    if len(names) > 1:
        report.warn(
            f"{folder} was trained for the target {trained_for}, not for {settings.target.model_path}: where they are "
            f"different models, few of its tokens are accepted"
        )


def _is_merged(trained_for: str, settings: Settings) -> bool:
    """Whether this is the folder that the target and its adapter were merged into; the adapter's module needs torch."""
    target = settings.target
    if target.adapter is None:
        return False
    base = Path(target.model_path).name.removesuffix(".gguf")
    return Path(trained_for).name.startswith(f"{base}+{target.adapter.resolve().name}-")


def _name_of(target: str, models: Path) -> str:
    """A model's name, the same for a .gguf file and for what it was converted to, wherever that stands."""
    try:
        if source := source_of(target):
            return str(source)
        converted = existing_conversion(target, models) or target
    except Eagle3Error:  # a file that the run read, and that is gone
        converted = target
    return Path(converted).name.removesuffix(".gguf").lower()


def _target_of_run(folder: Path) -> str | None:
    """The target in the settings of the run that a draft's folder stands in."""
    for run in (folder, *folder.parents[:2]):
        try:
            target = tomllib.loads((run / "settings.toml").read_text(encoding="utf-8"))["target"]["model_path"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue
        return target if isinstance(target, str) and target else None
    return None


def check_warm_start(settings: Settings) -> None:
    """Raise UsageError for ``--draft-init draft`` without a draft."""
    if settings.draft.path is None:
        raise UsageError("missing-draft", "--draft-init draft without a draft", where=FLAG, fix="give its folder")
