"""A benchmark's configurations as people read them: a table, and the page with charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eagle3cli.console.chart import Bars, Chart, Lines
from eagle3cli.console.report import Page, Section, html, markdown
from eagle3cli.runtime.files import write_text

Row = Mapping[str, Any]
COLUMNS = (
    *("task", "config", "temperature", "acceptance length", "per position", "tokens/s", "speed-up"),
    *("first token ms", "per token ms", "identical", "accuracy"),
)
PART_COLUMNS = (
    *("task", "config", "temperature", "part", "answers"),
    *("acceptance length", "tokens/s of an answer", "without the draft"),
)
MARK = " *"
"""Behind a configuration whose answers are not samples of the target."""
CONFIG_TEXT = (
    "A configuration is batch,steps,topk,draft tokens; zeros are the baseline: the same batch without the draft."
)


PART_TEXT = (
    "Acceptance length: tokens per pass of the target. Tokens per second are those of one answer, as its reader sees "
    "them; an engine that tells its counters over all answers alone has no acceptance of parts."
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
        row["config"] + (MARK if row.get("notes") else ""),
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


def part_rows(rows: Sequence[Row]) -> list[tuple[object, ...]]:
    """A line for each category and each length of prompts of a draft's configuration, where it has several."""
    baselines = {_measured_alike(row): _parts(row) for row in rows if not row["steps"]}
    lines: list[tuple[object, ...]] = []
    for row in rows:
        plain = baselines.get(_measured_alike(row), {})
        for name, part in _parts(row).items() if row["steps"] else ():
            numbers = (part["requests"], part.get("acceptance_length"), part["request_tokens_per_s"])
            without = plain[name]["request_tokens_per_s"] if name in plain else None
            lines.append((row["task"], row["config"], f"{row['temperature']:g}", name, *numbers, without))
    return lines


def _measured_alike(row: Row) -> tuple[object, ...]:
    """Task, batch and temperature: a draft's configuration has them in common with its baseline."""
    return row["task"], row["config"].partition(",")[0], row["temperature"]


def _parts(row: Row) -> dict[str, Row]:
    categories: Mapping[str, Row] = row.get("by_category") or {}
    contexts: Sequence[Row] = row.get("by_context") or []
    parts = dict(categories) if len(categories) > 1 else {}
    if len(contexts) > 1:
        parts |= {f"{part['prompt_tokens'][0]} to {part['prompt_tokens'][1]} tokens": part for part in contexts}
    return parts


def _middle(times: Row | None) -> str | None:
    return None if times is None else f"{times['p50']:.1f}"


def _accuracy(row: Row) -> str | None:
    if "accuracy" not in row:
        return None
    before = row.get("accuracy_baseline")
    return f"{row['accuracy']:.1%}" + ("" if before is None else f" (without {before:.1%})")


def write_pages(rows: Sequence[Row], output: Path, engine: str, target: str) -> tuple[Path, Path]:
    """The report as Markdown and as HTML beside the results."""
    report = page(rows, engine, target or "the servers' model")
    pages = output.with_suffix(".md"), output.with_suffix(".html")
    write_text(pages[0], markdown(report))
    write_text(pages[1], html(report))
    return pages


def page(rows: Sequence[Row], engine: str, target: str) -> Page:
    """The report of a benchmark."""
    drafts = [row for row in rows if row["steps"]]
    sound = [row for row in drafts if row.get("speedup") and not row.get("notes")]
    best = max(sound, key=lambda row: float(row["speedup"]), default=None)
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
    if parts := part_rows(rows):
        sections.append(Section("By category and by length of the prompt", (PART_TEXT,), PART_COLUMNS, parts))
    if notes := notes_of(rows):
        sections.append(Section(f"What is marked{MARK}", notes))
    tiles = [] if best is None else _tiles(best, engine)
    return Page(f"Speculative decoding of {target}", summary, [*sections, _same(drafts), _latency(rows)], tiles)


def _tiles(best: Row, engine: str) -> list[tuple[str, str]]:
    """The numbers that people look for first, of the fastest configuration."""
    machine = (best.get("environment") or {}).get("machine") or {}
    device = next(iter(machine.get("gpus") or ()), machine.get("cpu"))
    where = ", ".join(filter(None, [f"{engine} engine", device]))
    tiles = [(f"speed-up, k = {best['steps']}; {where}", f"{best['speedup']:.2f}x")]
    if best.get("acceptance_length"):
        tiles.append((f"acceptance length, {best['task']}", f"{best['acceptance_length']:.3f}"))
    tiles.append((f"tokens/s, {best['config']}", f"{best['tokens_per_s']:,.1f}"))
    return tiles


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
            beyond = row.get("differences_beyond_ties")
            not_own = f"; {beyond} are not the target's own answers" if beyond else ""
            warnings.append(
                f"{row['task']} {row['config']}: {differing} answers differ from the baseline, {ties}{not_own}"
            )
    return [*warnings, *notes_of(rows)]


def notes_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """Why some answers are not samples of the target."""
    return tuple(dict.fromkeys(note for row in rows for note in row.get("notes", ())))
