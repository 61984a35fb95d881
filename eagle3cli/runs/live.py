"""The screen of a training run while it trains: what `eagle3 watch` shows, above the program's own bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from eagle3cli.console.screen import text
from eagle3cli.runs.folder import read_run
from eagle3cli.runs.state import RUNNING, State
from eagle3cli.runs.view import add_events, training_view

if TYPE_CHECKING:
    from eagle3cli.console.out import Out
    from eagle3cli.training.trainer import Trainer


@contextmanager
def show_live(trainer: Trainer, out: Out) -> Iterator[None]:
    """Within the block a terminal shows the run; elsewhere nothing changes."""
    if not out.live:
        yield
        return
    run = read_run(trainer.output_dir)
    state = State(RUNNING, RUNNING, 0.0)

    def listen(event: str, numbers: dict[str, Any]) -> None:
        add_events(run, {"event": event, **numbers})
        out.show_above("train", text(training_view(run, state), whole=False))

    trainer.listeners = [*trainer.listeners, listen]
    try:
        yield
    finally:
        out.show_above("train", None)
