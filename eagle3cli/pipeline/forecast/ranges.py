"""Numbers that are known within bounds, and how people read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """A number that lies between ``low`` and ``high``; both the same where it is known. Never negative."""

    low: float
    high: float

    def __add__(self, other: Range | float) -> Range:
        """The sum."""
        other = as_range(other)
        return Range(self.low + other.low, self.high + other.high)

    def __mul__(self, other: Range | float) -> Range:
        """The product."""
        other = as_range(other)
        return Range(self.low * other.low, self.high * other.high)

    def __truediv__(self, other: Range | float) -> Range:
        """The quotient; a number that is not above 0 is none to divide by."""
        other = as_range(other)
        return Range(self.low / other.high, self.high / other.low)

    def at_most(self, limit: float) -> Range:
        """The same, where nothing above ``limit`` can be."""
        return Range(min(self.low, limit), min(self.high, limit))

    def numbers(self) -> dict[str, float]:
        """For JSON."""
        return {"low": self.low, "high": self.high}


def as_range(value: Range | float) -> Range:
    """A number as a range of itself."""
    return value if isinstance(value, Range) else Range(value, value)


def between(one: Range | float, other: Range | float) -> Range:
    """From the lowest to the highest of both."""
    one, other = as_range(one), as_range(other)
    return Range(min(one.low, other.low), max(one.high, other.high))


def range_text(value: Range | None, text: Callable[[float], str]) -> str:
    """Both ends for people, or one where they read the same; what nobody knows is not given a number."""
    if value is None:
        return "not known"
    low, high = text(value.low), text(value.high)
    return low if low == high else f"{low} to {high}"


def counts_text(value: Range | None) -> str:
    """Rows or tokens: what is known to the last one with all its digits, else two of them from ten thousand on."""
    if value is not None and value.low == value.high:
        return f"{round(value.low):,}"
    return range_text(value, _rounded)


def _rounded(count: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= max(size, 1e4):
            return f"{count / size:.2g}{unit}" if count < 99.5 * size else f"{count / size:.0f}{unit}"
    return f"{round(count):,}"
