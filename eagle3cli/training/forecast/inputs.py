"""What is known of a training run before it starts: its data where they are there, and the shapes of its models.

Reads configs, a finished cache or stores; loads no weights and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from eagle3cli.backends.capture.memory import TargetShape, target_shape
from eagle3cli.backends.target.hf import pick_dtype, read_config
from eagle3cli.data.hidden_states.rows import LAST
from eagle3cli.data.hidden_states.store import Stores, open_stores
from eagle3cli.data.sources.lines import read_raw_lines
from eagle3cli.data.tokens.cache import data_paths, find_cache
from eagle3cli.data.tokens.rows import TokenRows
from eagle3cli.errors import DataError
from eagle3cli.models.config import DraftConfig
from eagle3cli.runtime.devices import compute_type, memory_of, resident_bytes
from eagle3cli.settings.tables import Settings

USUAL_SHARE = 0.7
"""Of a row's tokens that carry loss, where nothing is known of the rows."""
CUDA_CONTEXT = 600_000_000
"""What CUDA itself takes of a GPU for each process."""


@dataclass(frozen=True)
class Data:
    """The training rows as far as they are known."""

    lengths: Sequence[int]
    """Tokens of every row; of rows that are not tokenised yet, the longest that there may be."""
    replies: Sequence[int]
    """Tokens of every row that carry loss."""
    known: bool
    """The rows are there; else they are guessed."""
    where: str
    bytes_per_token: float = 0.0
    """Of encoded states in memory."""
    shared_prefix: bool = False
    """Rows begin with the same tokens."""

    @property
    def tokens(self) -> int:
        """All tokens."""
        return sum(self.lengths)


@dataclass(frozen=True)
class Known:
    """All that a forecast needs besides the settings."""

    draft: DraftConfig
    target: TargetShape
    data: Data
    device: str
    """cpu or cuda."""
    compute: torch.dtype
    states: torch.dtype
    process: int
    """Bytes that the process takes before it loads anything."""
    available: int | None
    """Bytes that the device has for this run; None where it is not here."""


def look(settings: Settings, draft: DraftConfig) -> Known:
    """Look at what is there. Raises as the run would for missing data and models."""
    device = device_of(settings.target.device)
    place = torch.device(device)
    config = read_config(settings.target)
    online = settings.train.mode == "online"
    states = pick_dtype(settings.target.dtype, place, config.to_dict())
    if not online:
        states = torch.float32 if device == "cpu" else torch.bfloat16
    data = online_data(settings) if online else offline_data(settings)
    return Known(
        draft=draft,
        target=target_shape(settings.target),
        data=data,
        device=device,
        compute=compute_type(settings.train.dtype, place),
        states=states,
        process=resident_bytes() if device == "cpu" else CUDA_CONTEXT,
        available=memory_of(device),
    )


def device_of(name: str) -> str:
    """cpu or cuda, as ``--device`` means it here; a GPU may be named where there is none, to plan for it."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name.partition(":")[0]


def online_data(settings: Settings) -> Data:
    """The cached rows, or as many of the longest allowed as the file has lines."""
    folder = find_cache(settings)
    if folder is None:
        path = data_paths(settings)["train"]
        count = sum(1 for _ in read_raw_lines(path))
        longest = settings.data.max_length
        guess = max(1, round(longest * USUAL_SHARE))
        return Data([longest] * count, [guess] * count, known=False, where=str(path), shared_prefix=True)
    rows = TokenRows.open(folder / "train")
    return Data(rows.lengths, rows.loss_lengths, known=True, where=str(folder / "train"), shared_prefix=_alike(rows))


def offline_data(settings: Settings) -> Data:
    """The rows of the stores."""
    paths = settings.data.train_hidden_states_path or (settings.hidden_states.output_path / "train",)
    missing = [path for path in paths if not (path / "manifest.json").is_file()]
    if missing:
        raise DataError("no hidden-state store", where=str(missing[0]), fix="write it first: eagle3 hidden-states")
    stores = open_stores(paths)
    replies = [int(n) for store in stores.stores for n in store.counts_N3[:, LAST]]
    each = _bytes(stores) / max(1, sum(stores.lengths))
    return Data(stores.lengths, replies, known=True, where=", ".join(map(str, paths)), bytes_per_token=each)


def _bytes(stores: Stores) -> int:
    return sum(store.bytes for store in stores.stores)


def _alike(rows: TokenRows) -> bool:
    """Whether the first rows begin with the same eight tokens, as with a system prompt."""
    first = [tuple(rows[index].token_ids[:8]) for index in range(min(len(rows), 4))]
    return len(first) > 1 and len(set(first)) == 1
