"""Commands that load a target take a .gguf file as well: it is converted once, below the cache folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eagle3cli.runtime.report import Reporter
    from eagle3cli.settings.tables import Settings


def with_local_target(settings: Settings, report: Reporter) -> Settings:
    """The settings with ``target.model_path`` a folder or hub id, whatever it was."""
    from eagle3cli.backends.gguf import local_folder

    given = settings.target.model_path
    path = local_folder(given, settings.data.cache_dir / "models", report)
    if path == given:
        return settings
    return settings.model_copy(update={"target": settings.target.model_copy(update={"model_path": path})})
