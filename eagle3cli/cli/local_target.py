"""What every command that loads a target settles first: a .gguf becomes a folder, rows fit the target's context."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from eagle3cli.runtime.report import Reporter, Silent
from eagle3cli.settings.tables import Settings


@contextmanager
def planned_target(settings: Settings) -> Iterator[Settings]:
    """As :func:`with_local_target` within the block, for a plan: nothing is converted or merged, and no hub is asked.

    A .gguf file that is not converted yet stands as a folder with its config alone, and a target whose adapter is not
    merged yet as it is without.
    """
    from eagle3cli.backends.target.gguf.folder import existing_conversion, gguf_config

    target = settings.target
    model_path = target.model_path
    parent = settings.data.cache_dir / "models"
    path = existing_conversion(model_path, parent)
    if path is not None and target.adapter is not None:
        from eagle3cli.backends.target.adapter import existing_merge

        if merged := existing_merge(path, target.adapter, parent, target.revision):
            path = merged
            settings = settings.updated("target", adapter=None)
    with TemporaryDirectory(prefix="eagle3-") as folder:
        if path is None:
            gguf_config(model_path).save_pretrained(folder)
        yield _within_context(settings, folder if path is None else path, Silent(), planned=True)


def with_local_target(settings: Settings, report: Reporter) -> Settings:
    """The settings with ``target.model_path`` a folder or hub id, and ``data.max_length`` at most its context."""
    settings = with_target_folder(settings, report)
    return _within_context(settings, settings.target.model_path, report)


def with_target_folder(settings: Settings, report: Reporter) -> Settings:
    """The settings with a .gguf target, or one with an adapter, as the folder that it is converted to."""
    from eagle3cli.backends.target.gguf.folder import local_folder
    from eagle3cli.runtime.hub import warn_unless_reached

    target = settings.target
    parent = settings.data.cache_dir / "models"
    path = local_folder(target.model_path, parent, report)
    warn_unless_reached(path, report)
    if target.adapter is not None:
        from eagle3cli.backends.target.adapter import merged_folder

        path = merged_folder(path, target.adapter, parent, report, target.revision)
        settings = settings.updated("target", adapter=None)
    return settings if path == target.model_path else settings.updated("target", model_path=path)


def _within_context(settings: Settings, path: str, report: Reporter, *, planned: bool = False) -> Settings:
    if path != settings.target.model_path:
        settings = settings.updated("target", model_path=path)
    context = _context(Path(path) / "config.json")
    if settings.data.max_length == "auto":
        return _with_chosen_length(settings, context, report, planned=planned)
    if context is None or settings.data.max_length <= context:
        return settings
    report.warn(f"data.max_length {settings.data.max_length} is more than the target's context: {context} is used")
    return settings.updated("data", max_length=context)


def _with_chosen_length(settings: Settings, context: int | None, report: Reporter, *, planned: bool) -> Settings:
    """The settings with a number for ``data.max_length = "auto"``. A plan keeps nothing, and goes on without one where
    the tokenizer is not here or rows cannot be read: it counts with :attr:`DataSettings.row_limit` then."""
    from eagle3cli.data.tokens.max_length import with_max_length
    from eagle3cli.errors import Eagle3Error

    with suppress(*((Eagle3Error,) if planned else ())):
        if context is None:
            from eagle3cli.backends.target.hf import read_target_config

            context = _context_in(read_target_config(settings.target))
        return with_max_length(settings, context, report, remember=not planned)
    return settings


def _context(config: Path) -> int | None:
    """The context length that a model's config names; None where there is no such file or number."""
    try:
        return _context_in(json.loads(config.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def _context_in(raw: Any) -> int | None:
    length = (raw.get("text_config") or raw).get("max_position_embeddings")
    return length if isinstance(length, int) and length > 0 else None


def vocab_sizes(settings: Settings) -> tuple[int, int]:
    """Sizes of the draft's and the target's vocabulary.

    A local config.json that names all that a draft needs is read as it is: transformers takes seconds to import.
    """
    from eagle3cli.errors import Eagle3Error
    from eagle3cli.models.config import read_draft_config
    from eagle3cli.runtime.files import read_json

    options = settings.draft

    def sizes(target: dict[str, Any]) -> tuple[int, int]:
        draft = read_draft_config(
            options.config, target, draft_vocab_size=options.vocab_size, aux_layers=options.aux_layers
        )
        return draft.draft_vocab_size, draft.vocab_size

    with suppress(Eagle3Error, KeyError, TypeError, AttributeError):
        return sizes(read_json(Path(settings.target.model_path).expanduser() / "config.json"))
    from eagle3cli.backends.target.hf import read_target_config

    return sizes(read_target_config(settings.target))
