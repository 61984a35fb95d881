"""A finding, and the run of many checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """``ok``; ``note``: works, but something is missing; ``problem``: something will fail."""

    check: str
    state: Literal["ok", "note", "problem"]
    detail: str
    fix: str | None = None

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


Check = Callable[[], Iterator[Finding]]


def examine(checks: Iterable[Check]) -> list[Finding]:
    """What all checks find; one that raises is a problem of its own."""
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check()
        except Exception as error:  # a broken installation is what the doctor is there to report
            name = check.__name__.strip("_").replace("_", " ")
            findings.append(Finding(name, "problem", f"{type(error).__name__}: {error}", "python -m pip check"))
    return findings
