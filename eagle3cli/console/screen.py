"""A training run on a terminal: numbers, and small charts made of letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from eagle3cli.console.progress import duration

if TYPE_CHECKING:
    from rich.text import Text

BLOCKS = "▁▂▃▄▅▆▇█"
SPARK = 32
BAR = 24


@dataclass(frozen=True)
class TrainingView:
    """What is shown of a run, as it is now."""

    name: str
    state: str
    """In words, e.g. ``running`` or ``no sign of life since ...``."""
    step: int = 0
    total: int | None = None
    seconds: float = 0.0
    left: float | None = None
    """Seconds to go, about."""
    loss: float | None = None
    losses: Sequence[float] = ()
    accuracy: Sequence[float] = ()
    """By depth, of the training rows."""
    k: int = 0
    acceptance: float | None = None
    best: float | None = None
    best_step: int | None = None
    acceptances: Sequence[float] = ()
    tokens_per_s: float | None = None
    speeds: Sequence[float] = ()
    memory: float | None = None
    """Bytes."""
    time: Mapping[str, float] = field(default_factory=dict)
    """Shares by part."""
    checkpoint: int | None = None
    """Step of the newest one."""
    silent: float | None = None
    """Seconds since the run's files were written."""
    stages: str | None = None
    """Where a whole chain is."""
    log: str | None = None
    """The last line of the log, where there is nothing else yet."""


def rows_of(view: TrainingView, *, whole: bool) -> list[tuple[str, str, str]]:
    """``(name, value, small chart)`` of everything there is to show; without ``whole`` not what a bar shows already."""
    rows: list[tuple[str, str, str]] = []
    if whole:
        rows.append(("run", f"{view.name}, {view.state}", ""))
        rows += [("stages", view.stages, "")] if view.stages else []
        rows += [_steps(view)] if view.step or view.total else []
    elif view.total is None and view.left is not None:
        rows.append(("time left", f"about {duration(view.left)}", ""))
    rows += [("log", view.log, "")] if view.log else []
    if view.loss is not None:
        depths = "/".join(f"{share:.2f}" for share in view.accuracy)
        rows.append(("loss", f"{view.loss:.3f}" + (f", right by depth {depths}" if depths else ""), spark(view.losses)))
    if view.acceptance is not None:
        best = f", best {view.best:.3f} at step {view.best_step:,}" if view.best is not None else ""
        rows.append((f"acceptance (k={view.k})", f"{view.acceptance:.3f}{best}", spark(view.acceptances)))
    if view.tokens_per_s is not None:
        rows.append(("tokens/s", f"{view.tokens_per_s:,.0f}", spark(view.speeds)))
    if view.time:
        shares = ", ".join(f"{part} {share:.0%}" for part, share in view.time.items() if share >= 0.005)
        rows.append(("time", shares, ""))
    if view.memory:
        rows.append(("peak memory", f"{view.memory / 1e9:.2f} GB", ""))
    if whole and view.checkpoint is not None:
        rows.append(("checkpoint", f"step {view.checkpoint:,}", ""))
    if whole and view.silent is not None:
        rows.append(("last written", f"{duration(view.silent)} ago", ""))
    return rows


def _steps(view: TrainingView) -> tuple[str, str, str]:
    of = f" of {view.total:,} ({view.step / view.total:.0%})" if view.total else ""
    left = f", about {duration(view.left)} left" if view.left is not None else ""
    share = min(1.0, view.step / view.total) if view.total else 0.0
    full = round(share * BAR)
    bar = "█" * full + "░" * (BAR - full) if view.total else ""
    return "step", f"{view.step:,}{of}, {duration(view.seconds)} trained{left}", bar


def spark(values: Sequence[float], width: int = SPARK) -> str:
    """Values as a line of blocks, the lowest and the highest at full range.

    >>> spark([1, 2, 3, 8])
    '▁▂▃█'
    """
    if len(values) < 2:
        return ""
    count = min(width, len(values))
    parts = [values[len(values) * i // count : len(values) * (i + 1) // count] for i in range(count)]
    means = [sum(part) / len(part) for part in parts]
    low = min(means)
    high = max(means)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((mean - low) * scale)] for mean in means)


def text(view: TrainingView, *, whole: bool = True) -> Text:
    """The view for a terminal; lines that do not fit are cut."""
    from rich.text import Text

    shown = Text(no_wrap=True, overflow="ellipsis")
    for number, (name, value, chart) in enumerate(_aligned(rows_of(view, whole=whole))):
        shown.append("\n" if number else "").append(name, "dim").append(value).append(chart, "cyan")
    return shown


def lines(view: TrainingView) -> list[str]:
    """The view as plain lines."""
    return ["".join(parts).rstrip() for parts in _aligned(rows_of(view, whole=True))]


def _aligned(rows: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Names of one width, and the charts below one another."""
    names = max((len(name) for name, _, _ in rows), default=0)
    values = max((len(value) for _, value, chart in rows if chart), default=0)
    return [(name.ljust(names + 2), value.ljust(values + 2) if chart else value, chart) for name, value, chart in rows]


def line(view: TrainingView) -> str:
    """The view in one line."""
    of = f"/{view.total:,}" if view.total else ""
    parts = [f"{view.name}: {view.step:,}{of} steps"]
    parts += [f"{duration(view.left)} left"] if view.left is not None else []
    parts += [f"loss {view.loss:.3f}"] if view.loss is not None else []
    parts += [f"acceptance {view.acceptance:.3f}, best {view.best:.3f}"] if view.best is not None else []
    parts += [f"{view.tokens_per_s:,.0f} tokens/s"] if view.tokens_per_s is not None else []
    return ", ".join([*parts, *([view.stages] if view.stages else []), view.state])
