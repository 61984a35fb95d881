"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eagle3cli.training.trackers.tracker import Opening, need


def ready() -> None:
    """Raise UsageError without the package."""
    need("tensorboard", "track-tensorboard")


class TensorBoard:
    """The event files of a run; every session writes one."""

    session: Path | None = None

    def __init__(self, writer: Any, folder: Path, last_step: int) -> None:
        self.writer, self.id, self.place = writer, folder.name, f"tensorboard --logdir {folder}"
        self.last_step = last_step

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """One point of every curve, on the disk when this returns."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, *, failed: bool) -> None:
        """End the file."""
        self.writer.close()


def open(opening: Opening) -> TensorBoard:
    """Begin a file; TensorBoard leaves out what earlier ones hold after the last known step."""
    from torch.utils.tensorboard import SummaryWriter

    resumed = opening.id is not None
    writer = SummaryWriter(str(opening.folder), purge_step=opening.last_step + 1 if resumed else None)
    if not resumed:
        lines = "".join(f"    {key} = {value}\n" for key, value in opening.config.items())
        writer.add_text("settings", f"{opening.name}\n\n{lines}")
    return TensorBoard(writer, opening.folder, opening.last_step)
