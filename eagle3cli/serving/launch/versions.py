"""Whether the engine that is installed reads all of a draft: older ones pass over options without a word."""

from __future__ import annotations

import re
from pathlib import Path

from eagle3cli.errors import Eagle3Error, UsageError
from eagle3cli.runtime.packages import installed_version
from eagle3cli.serving.launch.commands import Product


def refuse_older(product: Product, python: str, draft: str) -> None:
    """Raise UsageError where the engine in this environment is older than the draft in the folder ``draft`` needs.

    ``python`` is the setting: another environment's version is not known here, and neither is a draft of the hub.
    """
    version = installed_version(product)
    if python or version is None or not (Path(draft) / "config.json").is_file():
        return
    from eagle3cli.models.checkpoint import read_config
    from eagle3cli.models.config import DraftConfig
    from eagle3cli.models.converters import convert_config
    from eagle3cli.models.engines import ENGINES, minimum_versions

    try:
        config = DraftConfig.from_dict(convert_config(read_config(Path(draft))), aux_layers=(0, 1, 2))
        needed = minimum_versions(config)[product]
    except Eagle3Error:  # what the server says of such a folder is clearer
        return
    if _numbers(version) < _numbers(needed):
        what = f"the draft needs {ENGINES[product]} {needed}; {version} is installed and would misread it"
        raise UsageError(
            "package-too-old",
            what,
            where=draft,
            fix=f"pip install -U {product}, or name a Python with it: --server-python",
        )


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]
