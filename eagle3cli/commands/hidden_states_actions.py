"""eagle3 hidden-states verify and info: what a store is, and whether it still is."""

from __future__ import annotations

from typing import Any

from eagle3cli.cli.command import LOCAL_TARGET_FIELDS, Command
from eagle3cli.commands.hidden_states_convert import CONVERT
from eagle3cli.commands.hidden_states_import import IMPORT
from eagle3cli.console.out import Out
from eagle3cli.errors import FAILED
from eagle3cli.settings.tables import Settings


def verify(settings: Settings, out: Out) -> int | None:
    """Read every byte of the stores, and compute some rows again; 1 where something is damaged or differs."""
    from eagle3cli.backends.capture.verify import verify_store
    from eagle3cli.runtime.devices import set_threads

    set_threads(settings.target.threads)
    verdicts = [verify_store(folder, settings, out) for folder in _folders(settings)]
    lines = []
    for verdict in verdicts:
        lines += [f"{verdict.folder}: {line}" for line in verdict.lines()]
    out.result({"stores": [verdict.as_dict() for verdict in verdicts]}, "\n".join(lines))
    return None if all(verdict.good for verdict in verdicts) else FAILED


def info(settings: Settings, out: Out) -> None:
    """Show what the stores hold."""
    from eagle3cli.data.hidden_states.info import describe_store
    from eagle3cli.runtime.units import size_text

    stores = [describe_store(folder, out) for folder in _folders(settings)]

    def cell(name: str, value: Any) -> object:
        if name.startswith("bytes") and name != "bytes_per_token":
            return size_text(value)
        if isinstance(value, dict):
            return ", ".join(f"{key} {one}" for key, one in value.items())
        return str(value) if isinstance(value, (tuple, bool)) else value

    if not out.json_wanted:
        for store in stores:
            rows = [(name.replace("_", " "), cell(name, value)) for name, value in store.items() if name != "computed"]
            out.table("", ("", ""), rows)
        return
    out.result({"stores": stores}, "")


def _folders(settings: Settings) -> list[Any]:
    from eagle3cli.data.hidden_states.info import stores_below

    options = settings.hidden_states
    return [store for path in options.paths or (options.output_path,) for store in stores_below(path)]


VERIFY = Command(
    name="verify",
    summary="Check every byte of hidden-state stores, and compute some rows again with the target.",
    examples=(
        "eagle3 hidden-states verify cache/hidden_states/train",
        "eagle3 hidden-states verify cache/hidden_states/train --recompute 0",
    ),
    fields=("hidden_states.recompute", *LOCAL_TARGET_FIELDS),
    arguments=("hidden_states.paths",),
    run=verify,
)
INFO = Command(
    name="info",
    summary="Show what hidden-state stores hold, how large they are and what their encoding loses.",
    examples=("eagle3 hidden-states info cache/hidden_states/train",),
    arguments=("hidden_states.paths",),
    run=info,
)
ACTIONS = (VERIFY, INFO, CONVERT, IMPORT)
