"""From where a training run is one: its folder, its log, its trackers and its screen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from eagle3cli.runs.live import show_live
from eagle3cli.runs.session import record_session
from eagle3cli.runtime.files import write_text
from eagle3cli.runtime.log import Logged
from eagle3cli.settings.tables import Settings
from eagle3cli.settings.toml import to_toml
from eagle3cli.training.checkpoint.load import held_place, make_place
from eagle3cli.training.history import history_writer
from eagle3cli.training.trackers.session import tracked
from eagle3cli.training.trainer import Trainer

if TYPE_CHECKING:
    from eagle3cli.console.out import Out


@contextmanager
def running(trainer: Trainer, settings: Settings, log: Logged, out: Out) -> Iterator[None]:
    """Within the block the run goes on, and leaves what people see of it; on the first rank alone.

    Nothing was written before it: what refuses a run has been asked by then.
    """
    folder = settings.train.output_dir
    make_place(settings.train)
    with ExitStack() as stack:
        stack.enter_context(held_place(settings.train))
        log.begin()
        trainer.listeners = [history_writer(folder, trainer.state.step, log)]
        write_text(folder / "settings.toml", to_toml(settings))
        stack.enter_context(record_session(trainer, settings, log))
        stack.enter_context(tracked(trainer, settings))
        stack.enter_context(show_live(trainer, out))
        yield
