"""A served draft that is trained on from its traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import field_validator

from eagle3cli.settings.table import Table, option


class RefreshSettings(Table):
    """eagle3 refresh: train a served draft on from its server's logs."""

    draft: Path | None = option(
        None, "The draft folder that servers read; a link to its newest good version after the first refresh."
    )
    logs: tuple[Path, ...] = option((), "Logs of requests and replies (JSON lines, also .gz).")
    rollback: str | None = option(
        None, "Serve this earlier version again; without a number the one before.", bare="parent"
    )
    model_names: tuple[str, ...] = option((), "Names that the logs have for the target, besides its own.")
    off_policy: Literal["regenerate", "drop"] = option(
        "regenerate", "Replies that are not the target's own greedy ones: written anew by it, or left out."
    )
    sample_size: int = option(2000, "Rows of the logs that one refresh uses, at most.", ge=1)
    min_rows: int = option(50, "Fewer new rows wait for the next refresh.", ge=8)
    client_share: float = option(0.5, "Share of the rows that one of several clients may fill.", gt=0, le=1)
    rehearsal: float = option(1.0, "Rows of the old data that are trained on beside each row of the logs.", ge=0)
    held_out_rows: int = option(64, "Rows of the logs that are held out, at most a fifth; and of the old data.", ge=4)
    num_epochs: int = option(3, "Passes over the rows of the logs and the old ones.", ge=1)
    learning_rate: float | None = option(None, "Peak learning rate; default: a fifth of the earlier run's.", gt=0)
    time_budget: str | None = option(
        None,
        "Time for the whole refresh, e.g. 10m: where all would take longer, fewer old rows and a shorter training.",
    )
    least_gain: float = option(0.01, "Promote where acceptance on the logs' held-out rows rises by this share.", ge=0)
    tolerance: float = option(0.01, "and where that on the old data falls by no more than this share.", ge=0, lt=1)
    most_foreign: float = option(
        0.2, "Refuse logs of which more than this share of the replies cannot be the target's.", ge=0, le=1
    )
    keep_versions: int = option(5, "Newest versions that are kept, besides the first and the served one.", ge=1)

    @field_validator("logs", mode="before")
    @classmethod
    def _one_log(cls, value: object) -> object:
        """One log may stand as plain text."""
        return (value,) if isinstance(value, (str, Path)) else value
