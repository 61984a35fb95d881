"""The packaged draft configs, one JSON file for each size of target: ``--draft-model-config qwen3-8b``."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def packaged_configs() -> dict[str, Path]:
    """The packaged draft configs by name."""
    folder = Path(str(resources.files("eagle3cli.models") / "configs"))
    return {path.stem: path for path in sorted(folder.glob("*.json"))}
