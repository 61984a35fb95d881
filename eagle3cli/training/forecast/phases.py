"""What is in memory in each phase of a run, and the phase that takes most."""

from __future__ import annotations

from dataclasses import dataclass, field

from eagle3cli.backends.capture.memory import Parts
from eagle3cli.runtime.units import size_text


@dataclass(frozen=True)
class Phase:
    """What is in memory in one phase of a run, by name, in bytes."""

    name: str
    parts: Parts = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """All of it."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Forecast:
    """The phases of a run on one device."""

    phases: tuple[Phase, ...]

    @property
    def peak(self) -> Phase:
        """The phase that takes most."""
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def peak_bytes(self) -> int:
        """What the device must have."""
        return self.peak.bytes


def part_lines(memory: Forecast) -> list[str]:
    """The parts of the peak for people, the largest first; those below a hundredth of it are not named."""
    parts = sorted(memory.peak.parts.items(), key=lambda part: -part[1])
    return [f"  {size_text(size):>9}  {name}" for name, size in parts if size >= 0.01 * memory.peak_bytes]
