"""Stop signals: the first one asks to finish the step and save, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from eagle3cli.errors import Stopped
from eagle3cli.runtime.report import Reporter

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))
"""SIGUSR1 is what a SLURM job asks for before its end (``--signal=USR1@120``)."""


class Stop:
    """Whether somebody asked to stop; look at it between steps."""

    def __init__(self) -> None:
        self.requested: int | None = None

    def check(self, saved: str) -> None:
        """Raise Stopped (exit code 128 + signal) if asked to; ``saved`` says what was saved and where."""
        if self.requested is not None:
            raise stopped(self.requested, saved)


def stopped(number: int, saved: str) -> Stopped:
    """The error that ends a program on a signal; ``saved`` says what was saved and where."""
    fix = "run the same command again to go on"
    return Stopped(number, f"stopped by {signal.Signals(number).name}; {saved}", fix=fix)


_active: Stop | None = None


@contextmanager
def catch_stop(report: Reporter | None = None, *, patient: bool = False) -> Iterator[Stop]:
    """Catch stop signals within the block; a block inside another shares its Stop.

    ``report`` is told once, when the first signal arrives. Outside the main thread nothing is caught. ``patient``: no
    further signal ends the process. One of several is told twice, by SLURM and by what started it; that one insists.
    """
    global _active
    if _active is not None:
        yield _active
        return
    if threading.current_thread() is not threading.main_thread():
        yield Stop()
        return
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.requested is not None and not patient:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if stop.requested is not None:
            return
        stop.requested = number
        if report is not None:  # not here: a handler may interrupt a half-written line of the same stream
            text = "stopping after this step; once more stops at once"
            threading.Thread(target=report.info, args=(text,), daemon=True).start()

    previous = {number: signal.signal(number, ask) for number in SIGNALS}
    _active = stop
    try:
        yield stop
    finally:
        _active = None
        for number, handler in previous.items():
            signal.signal(number, handler)
