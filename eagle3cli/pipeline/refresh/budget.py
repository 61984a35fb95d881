"""How a refresh spends the time that it is given, told by how fast the target has read the logs.

What is left once the target has read the logs goes to reading some old rows, to training, and to measuring what comes
out. Where it will not do for all that was asked for, fewer old rows are read and training is shorter.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

READING = 1 / 3
"""Share of the time left for old rows and training that reading the old rows may take: each trains in every pass."""
MEASURING = 3.0
"""Time of measuring the served draft and some others on a row, in that of the target's reading it."""
LEAST_TRAINING = 0.2
"""Share of the whole time that training gets even where the rest was slower than expected."""


@dataclass
class Budget:
    """Seconds for a refresh, None for as many as it takes; ``began`` is a time of :func:`time.monotonic`."""

    seconds: float | None
    began: float = field(default_factory=time.monotonic)
    pace: float | None = None
    """Seconds that the target takes to read a byte of rows; None where that is not known."""

    def told(self, size: int, seconds: float) -> None:
        """The target has read rows of ``size`` bytes in ``seconds``."""
        self.pace = seconds / size if size else None

    def left(self) -> float:
        """Seconds that are left; negative where more were spent."""
        return float("inf") if self.seconds is None else self.seconds - (time.monotonic() - self.began)

    def measuring(self, held_out: int) -> float:
        """Seconds that measuring takes on held-out rows of so many bytes."""
        return MEASURING * (self.pace or 0.0) * held_out

    def training(self, held_out: int) -> float | None:
        """Seconds that training may take at most, and before it old rows; None for as many as all of it takes."""
        if self.seconds is None:
            return None
        return max(self.left() - self.measuring(held_out), LEAST_TRAINING * self.seconds)

    def old_rows(self, old: Sequence[bytes], held_out: int) -> int:
        """How many of the ``old`` rows there is time for, with held-out rows of so many bytes."""
        spare = self.training(held_out)
        if spare is None or not self.pace or not old:
            return len(old)
        each = self.pace * sum(map(len, old)) / len(old)
        return min(len(old), int(READING * spare / each))
