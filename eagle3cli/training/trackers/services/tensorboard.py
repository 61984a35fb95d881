"""TensorBoard: event files in the run's folder, one for each session."""

from __future__ import annotations

from collections.abc import Mapping

from eagle3cli.training.trackers.tracker import TrackedRun, Tracker, require_package


def check() -> None:
    """Raise UsageError without the package."""
    require_package("tensorboard")


def start(run: TrackedRun) -> Tracker:
    """Begin a file; TensorBoard leaves out what earlier ones hold after the last known step."""
    from torch.utils.tensorboard import SummaryWriter

    resumed = run.id is not None
    writer = SummaryWriter(str(run.folder), purge_step=run.last_step + 1 if resumed else None)
    if not resumed:
        lines = "".join(f"    {key} = {value}\n" for key, value in run.config.items())
        writer.add_text("settings", f"{run.name}\n\n{lines}")

    def log(step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Tracker(
        id=run.folder.name,
        place=f"tensorboard --logdir {run.folder}",
        last_step=run.last_step,
        log=log,
        close=lambda failed: writer.close(),
    )
