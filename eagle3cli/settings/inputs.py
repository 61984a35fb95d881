"""Settings that name files to be read, for the question whether they are there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from eagle3cli.settings.load import Loaded

INPUTS = (
    *("data.train_path", "data.eval_path", "data.train_hidden_states_path", "data.eval_hidden_states_path"),
    *("prepare.data_path", "regenerate.input_path", "merge.input_dir", "view.path", "bench.benchmark_dir"),
)


def missing_inputs(loaded: Loaded) -> Iterator[tuple[str, str, Path]]:
    """Where it was set, the key and the path of each given input that does not exist (yet)."""
    for key in INPUTS:
        table, name = key.split(".")
        value = getattr(getattr(loaded.settings, table), name)
        for path in value if isinstance(value, tuple) else (value,):
            if key in loaded.origins and path is not None and not path.exists():
                yield loaded.origin(key), key, path
