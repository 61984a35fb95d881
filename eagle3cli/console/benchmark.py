"""A benchmark's configurations as people read them: a table, and the page with charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eagle3cli.console.chart import Bars, Chart, Lines
from eagle3cli.console.report import Page, Section

Row = Mapping[str, Any]
COLUMNS = (
    *("task", "config", "temperature", "acceptance length", "per position", "tokens/s", "speed-up"),
    *("first token ms", "per token ms", "identical", "accuracy"),
)
CONFIG_TEXT = (
    "A configuration is batch,steps,topk,draft tokens; zeros are the baseline: the same batch without the draft."
)


def table_row(row: Row) -> tuple[object, ...]:
    """One configuration as a line of the table."""
    speed = f"{row['tokens_per_s']:.1f}" + (
        f" ± {row['tokens_per_s_spread']:.1f}" if row.get("tokens_per_s_spread") is not None else ""
    )
    speedup = row.get("speedup", 1.0 if not row["steps"] else None)
    positions = row.get("accepted_per_position")
    compared = row.get("compared")
    return (
        row["task"],
        row["config"],
        f"{row['temperature']:g}",
        row.get("acceptance_length"),
        " ".join(f"{share:.2f}" for share in positions) if positions else None,
        speed,
        None if speedup is None else f"{speedup:.2f}x",
        _middle(row.get("ttft_ms")),
        _middle(row.get("inter_token_ms")),
        f"{row['identical']}/{compared}" if compared else None,
        _accuracy(row),
    )


def _middle(times: Row | None) -> str | None:
    return None if times is None else f"{times['p50']:.1f}"


def _accuracy(row: Row) -> str | None:
    if "accuracy" not in row:
        return None
    before = row.get("accuracy_baseline")
    return f"{row['accuracy']:.1%}" + ("" if before is None else f" (without {before:.1%})")


def page(rows: Sequence[Row], engine: str, target: str) -> Page:
    """The report of a benchmark."""
    drafts = [row for row in rows if row["steps"]]
    best = max((row for row in drafts if row.get("speedup")), key=lambda row: float(row["speedup"]), default=None)
    summary = f"{len(rows)} configurations on the {engine} engine."
    if best is not None:
        summary += (
            f" Best speed-up over the baseline of the same batch: {best['speedup']:.2f}x "
            f"({best['task']}, {best['config']})."
        )
        if best["speedup"] <= 1:
            summary += " No draft was faster than plain decoding here."
    sections = [Section("Configurations", (CONFIG_TEXT,), COLUMNS, [table_row(row) for row in rows])]
    for temperature in dict.fromkeys(row["temperature"] for row in rows):
        part = [row for row in rows if row["temperature"] == temperature]
        sections.append(_charts(part, f", temperature {temperature:g}"))
    return Page(f"Speculative decoding of {target}", summary, [*sections, _same(drafts), _latency(rows)])


def _charts(rows: Sequence[Row], of: str) -> Section:
    speedups = {_name(row): row["speedup"] for row in rows if row.get("speedup")}
    lengths = {_name(row): row["acceptance_length"] for row in rows if row.get("acceptance_length")}
    places = {
        _name(row): list(enumerate(row["accepted_per_position"], 1)) for row in rows if row.get("accepted_per_position")
    }
    charts: list[Chart] = [
        Bars("Speed-up over the baseline of the same batch", speedups, 1.0, "x"),
        Bars("Tokens per second", {_name(row): row["tokens_per_s"] for row in rows}),
        Bars("Acceptance length", lengths, 1.0),
        Lines("Share of passes that accept the draft of each position", "position", "share", places, from_zero=True),
    ]
    return Section("Charts" + of, charts=charts, on_terminal=False)


def _same(drafts: Sequence[Row]) -> Section:
    """How far greedy answers are the baseline's."""
    compared = [row for row in drafts if row.get("compared")]
    lines = [
        (_name(row), row["compared"], row["identical"], f"{row['identical_share']:.1%}", row["differences_at_ties"])
        for row in compared
    ]
    text = "Greedy answers, token by token. Later turns behind a different answer are other questions and not compared."
    if compared:
        text += (
            f" A near tie: the target itself prefers one of the two tokens by less than {compared[0]['tie_limit']:g} "
            "in log-probability, which other batch shapes or kernels can turn round."
        )
    columns = ("configuration", "compared", "identical", "share", "differences at near ties")
    return Section("Are the answers the target's own?", (text,), columns, lines)


def _latency(rows: Sequence[Row]) -> Section:
    lines = []
    for row in rows:
        times = [row.get(key) or {} for key in ("ttft_ms", "inter_token_ms", "gap_ms")]
        lines.append((_name(row), *(t.get(place) for t in times for place in ("p50", "p99"))))
    columns = ("configuration", "first token p50", "p99", "per token p50", "p99", "between frames p50", "p99")
    text = "Milliseconds. A frame is what a reader sees at once: a pass of the target brings one token or several."
    return Section("Latency", (text,), columns, lines)


def _name(row: Row) -> str:
    return f"{row['task']} {row['config']}"


def warnings_of(rows: Sequence[Row]) -> list[str]:
    """What would deceive a reader of the table."""
    warnings = []
    for row in rows:
        differing = row.get("compared", 0) - row.get("identical", 0)
        if differing:
            ties = f"{row['differences_at_ties']} of them at near ties"
            warnings.append(f"{row['task']} {row['config']}: {differing} answers differ from the baseline, {ties}")
    return [*warnings, *dict.fromkeys(note for row in rows for note in row.get("notes", ()))]
