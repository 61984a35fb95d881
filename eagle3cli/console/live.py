"""A view that is shown again and again: in place on a terminal; elsewhere a line at most every ten seconds."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from eagle3cli.console.out import is_terminal
from eagle3cli.console.progress import SECONDS_BETWEEN_LINES
from eagle3cli.console.screen import TrainingView, line, text

if TYPE_CHECKING:
    from rich.live import Live


class LiveView:
    """The place where a run is shown; use it as a context. With ``quiet`` (for --json) lines go to stderr."""

    def __init__(self, *, quiet: bool) -> None:
        self.stream = sys.stderr if quiet else sys.stdout
        self.live: Live | None = None
        self.last_line = ""
        self.last_time = -SECONDS_BETWEEN_LINES

    def __enter__(self) -> LiveView:
        if is_terminal(self.stream):
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self.stream, no_color=bool(os.environ.get("NO_COLOR")))
            self.live = Live(console=console, auto_refresh=False)
            self.live.__enter__()
        return self

    def show(self, view: TrainingView) -> None:
        """Show the run as it is now."""
        if self.live is not None:
            self.live.update(text(view), refresh=True)
            return
        now = time.monotonic()
        text_line = line(view)
        if now - self.last_time >= SECONDS_BETWEEN_LINES and text_line != self.last_line:
            self.last_time = now
            self.last_line = text_line
            self.stream.write(text_line + "\n")
            self.stream.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.__exit__(kind, error, trace)
