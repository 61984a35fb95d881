"""Who has died: every rank waits for a word that the next one says only when its work is done.

The ranks of a job with roles wait for each other at the store, which does not tell that a rank has gone; a connection
between two of them does, at once. One connection each is enough: who has lost the next rank ends, and is lost in turn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

TAG = 1
"""Of its messages; those of the job have 0."""
GOODBYE = timedelta(seconds=10)
"""The rank before may have gone already."""


class Lifeline:
    """The two ends that a rank holds; ``on_lost`` is called from a thread with the next rank once that one has gone."""

    def __init__(self, group: Any, rank: int, world_size: int, on_lost: Callable[[int], None]) -> None:
        import torch

        self.group = group
        self.next = (rank + 1) % world_size
        self.previous = (rank - 1) % world_size
        self.on_lost = on_lost
        self.word = torch.zeros(1, dtype=torch.uint8)
        self.ended = threading.Event()
        threading.Thread(target=self._listen, daemon=True, name="lifeline").start()

    def _listen(self) -> None:
        try:
            self.group.recv([self.word], self.next, TAG).wait()
        except RuntimeError:
            if not self.ended.is_set():
                self.on_lost(self.next)

    def let_go(self) -> None:
        """Say that this rank's work is done, and that the others' is no more of its business."""
        self.ended.set()
        with suppress(RuntimeError):
            self.group.send([self.word], self.previous, TAG).wait(GOODBYE)
