"""What is known of a training run before it starts: its data where they are there, and the shapes of its models.

Reads configs, a finished cache or stores; loads no weights and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from eagle3cli.backends.capture.memory import TargetShape, target_shape
from eagle3cli.backends.target.hf import pick_dtype, read_auto_config
from eagle3cli.data.hidden_states.rows import LAST
from eagle3cli.data.hidden_states.store import open_stores
from eagle3cli.data.inspect.selection import matching_cache
from eagle3cli.data.sources.lines import read_raw_lines
from eagle3cli.data.tokens.cache import data_paths, find_cache
from eagle3cli.data.tokens.on_policy import describe
from eagle3cli.data.tokens.plan import planned_judgement
from eagle3cli.data.tokens.rows import TokenRows
from eagle3cli.errors import DataError
from eagle3cli.models.config import DraftConfig
from eagle3cli.runtime.devices import compute_type, memory_of, resident_bytes
from eagle3cli.settings.tables import Settings

USUAL_SHARE = 0.7
"""Of a row's tokens that carry loss, where nothing is known of the rows."""
PREFIX_TOKENS = 8
"""Rows that begin with so many equal tokens share a prefix, as with a system prompt."""
CUDA_CONTEXT = 600_000_000
"""What CUDA itself takes of a GPU for each process."""


@dataclass(frozen=True)
class RowLengths:
    """The training rows as far as they are known."""

    lengths: Sequence[int]
    """Tokens of every row; of rows that are not tokenized yet, the longest that there may be."""
    loss_tokens: Sequence[int]
    """Tokens of every row that carry loss."""
    exact: bool
    """The rows are there; else they are guessed."""
    where: str
    bytes_per_token: float = 0.0
    """Of encoded states in memory."""
    shared_prefix: bool = False
    """Rows begin with the same tokens."""
    on_policy: dict[str, Any] | None = None
    """How far they hold the target's own replies, where an earlier pass has seen that."""

    @property
    def tokens(self) -> int:
        """All tokens."""
        return sum(self.lengths)


@dataclass(frozen=True)
class RunInputs:
    """All that a forecast needs besides the settings."""

    draft: DraftConfig
    target: TargetShape
    data: RowLengths
    device: str
    """cpu or cuda."""
    compute_dtype: torch.dtype
    state_dtype: torch.dtype
    process_bytes: int
    """What the process takes before it loads anything."""
    available: int | None
    """Bytes that the device has for this run; None where it is not here."""


def inspect_inputs(settings: Settings, draft: DraftConfig) -> RunInputs:
    """Read what is there. Raises as the run would for missing data and models."""
    device = device_of(settings.target.device)
    online = settings.train.mode == "online"
    raw = read_auto_config(settings.target).to_dict()
    state_dtype = torch.float32 if device == "cpu" else torch.bfloat16
    if online:
        state_dtype = pick_dtype(settings.target.dtype, torch.device(device), raw)
    data = online_rows(settings) if online else offline_rows(settings)
    return RunInputs(
        draft=draft,
        target=target_shape(settings.target),
        data=data,
        device=device,
        compute_dtype=compute_type(settings.train.dtype, torch.device(device)),
        state_dtype=state_dtype,
        process_bytes=resident_bytes() if device == "cpu" else CUDA_CONTEXT,
        available=memory_of(device),
    )


def device_of(name: str) -> str:
    """cpu or cuda, as ``--device`` means it here; a GPU may be named where there is none, to plan for it."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name.partition(":")[0]


def online_rows(settings: Settings) -> RowLengths:
    """The cached rows, or as many of the longest allowed as the file has lines.

    Raises DataError where the mask of a sampled row is wrong, as the run would.
    """
    folder = find_cache(settings)
    planned_judgement(settings, folder)
    if folder is None:
        path = data_paths(settings)["train"]
        count = sum(1 for _ in read_raw_lines(path))
        longest = settings.data.row_limit
        guess = max(1, round(longest * USUAL_SHARE))
        return RowLengths([longest] * count, [guess] * count, exact=False, where=str(path), shared_prefix=True)
    rows = TokenRows.open(folder / "train")
    prefixes = [tuple(rows[index].token_ids[:PREFIX_TOKENS]) for index in range(min(len(rows), 4))]
    return RowLengths(
        rows.lengths,
        rows.loss_lengths,
        exact=True,
        where=str(folder / "train"),
        shared_prefix=len(prefixes) > 1 and len(set(prefixes)) == 1,
        on_policy=describe(folder / "train", rows.sources),
    )


def offline_rows(settings: Settings) -> RowLengths:
    """The rows of the stores."""
    paths = settings.data.train_hidden_states_path or (settings.hidden_states.output_path / "train",)
    missing = [path for path in paths if not (path / "manifest.json").is_file()]
    if missing:
        raise DataError(
            "no-store", "no hidden-state store", where=str(missing[0]), fix="write it first: eagle3 hidden-states"
        )
    stores = open_stores(paths)
    loss_tokens = [int(n) for store in stores.stores for n in store.counts_N3[:, LAST]]
    size = sum(store.bytes for store in stores.stores) / max(1, sum(stores.lengths))
    cache = matching_cache(stores.stores[0], settings.data.cache_dir / "processed_dataset") if len(paths) == 1 else None
    return RowLengths(
        stores.lengths,
        loss_tokens,
        exact=True,
        where=", ".join(map(str, paths)),
        bytes_per_token=size,
        on_policy=None if cache is None else describe(cache, TokenRows.open(cache).sources),
    )
