"""What a whole run came to: the numbers of ``report.json``, and the page that people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eagle3cli.console.benchmark import COLUMNS, table_row
from eagle3cli.console.report import Page, Section, line_chart

if TYPE_CHECKING:
    from eagle3cli.settings.tables import Settings

Row = dict[str, Any]
SLOWER = (
    "No k was faster than plain decoding here. On a CPU and with a target of this size a verification of k + 1 tokens "
    "costs more than the accepted ones save: what this run shows is acceptance, not speed. On a GPU, where a pass is "
    "bound by memory, the same acceptance is what makes a large target faster."
)


def numbers(settings: Settings, stages: Mapping[str, Mapping[str, Any]]) -> dict[str, object]:
    """``report.json`` from the stages' results."""
    bench = stages["bench"]["result"]
    chain = next(row for row in bench["held_out"] if row["steps"])
    speeds = {str(row["steps"]): row["tokens_per_s"] for row in bench["speed"]}
    walk = stages["eval"]["result"]["acceptance_length"]
    seconds = {name: stage["seconds"] for name, stage in stages.items()}
    return {
        "target": stages["target"]["result"]["target"],
        "draft": str(settings.export.output_path),
        "acceptance_length": chain["tokens_per_pass"],  # without what the last pass of a reply accepts behind its end
        "k": chain["steps"],
        "prompts": chain["requests"],
        "lossless": chain["identical"] == chain["requests"],
        "seconds": round(sum(seconds.values()), 1),
        "identical": chain["identical"],
        "differences_at_ties": chain["differences_at_ties"],
        "accepted_per_position": chain["accepted_per_position"],
        "acceptance_by_walk": walk,
        "tokens_per_s": speeds,
        "best_k": int(max(speeds, key=lambda k: float(speeds[k]))),
        "tasks": bench["tasks"],
        "stages": seconds,
        "replies": {name: stages["regenerate"]["result"][name] for name in ("recorded", "generated", "errors")},
        "rows": {name: stages["merge"]["result"][name] for name in ("train_rows", "eval_rows")},
        "steps": stages["train"]["result"]["steps"],
    }


def page(report: Mapping[str, Any], settings: Settings) -> Page:
    """The report for people."""
    lossless = "every answer equals plain greedy decoding, token by token" if report["lossless"] else _differing(report)
    summary = (
        f"Acceptance length {report['acceptance_length']:.3f} (k = {report['k']}) on {report['prompts']} held-out "
        f"prompts; {lossless}; {report['seconds'] / 60:.1f} minutes in all."
    )
    sections = (
        _result(report),
        _by_k(report),
        _speed(report),
        Section("Benchmark tasks", (), COLUMNS, [table_row(row) for row in report["tasks"]]),
        *_curves(settings),
        Section("Where the time went", (), ("stage", "seconds"), [(k, v) for k, v in report["stages"].items()]),
        _settings(settings),
    )
    return Page(f"EAGLE-3 draft for {report['target']}", summary, sections)


def _differing(report: Mapping[str, Any]) -> str:
    count = report["prompts"] - report["identical"]
    return f"{count} answers differ from plain greedy decoding, {report['differences_at_ties']} of them at near ties"


def _result(report: Mapping[str, Any]) -> Section:
    replies, rows = report["replies"], report["rows"]
    made = f"{replies['generated']:,} generated, {replies['recorded']:,} recorded earlier, {replies['errors']:,} failed"
    lines: Sequence[Sequence[object]] = [
        ("acceptance length, engine", report["acceptance_length"]),
        ("acceptance length, walk over the same replies", report["acceptance_by_walk"].get(str(report["k"]))),
        ("draft steps k", report["k"]),
        ("held-out prompts", report["prompts"]),
        ("answers equal to plain greedy decoding", f"{report['identical']} of {report['prompts']}"),
        ("accepted per position", " ".join(f"{share:.2f}" for share in report["accepted_per_position"])),
        ("replies of the target", made),
        ("training and held-out rows", f"{rows['train_rows']:,} and {rows['eval_rows']:,}"),
        ("optimiser steps", report["steps"]),
        ("draft", report["draft"]),
    ]
    return Section("Result", (), ("", "value"), lines)


def _by_k(report: Mapping[str, Any]) -> Section:
    walk = [(int(k), float(value)) for k, value in report["acceptance_by_walk"].items()]
    text = "By the walk over held-out replies; k draft steps accept at most k tokens and add one."
    chart = line_chart({"acceptance length": walk}, "draft steps k", "acceptance length")
    return Section("Acceptance by k", (text,), ("k", "acceptance length"), walk, chart)


def _speed(report: Mapping[str, Any]) -> Section:
    speeds = {int(k): float(value) for k, value in report["tokens_per_s"].items()}
    rows = [(k, speed, f"{speed / speeds[0]:.2f}x") for k, speed in speeds.items()]
    best = f"Best tokens/s: k = {report['best_k']}." if report["best_k"] else SLOWER
    return Section("Speed, one answer at a time", (best,), ("k (0: without the draft)", "tokens/s", "speed-up"), rows)


def _curves(settings: Settings) -> list[Section]:
    from eagle3cli.training.history import read_history

    history = read_history(settings.train.output_dir)
    steps = [row for row in history if row["event"] == "step"]
    loss = line_chart({"loss": [(row["step"], row["loss"]) for row in steps]}, "step", "loss")
    depths = max((len(row["accuracy"]) for row in steps), default=0)
    accuracy = {f"depth {d}": [(row["step"], row["accuracy"][d]) for row in steps] for d in range(depths)}
    evals = [row for row in history if row["event"] == "eval"]
    widest = max((len(row["acceptance_length"]) for row in evals), default=0)
    acceptance = {
        f"k = {k}": [(row["seconds"] / 60, row["acceptance_length"][k - 1]) for row in evals]
        for k in sorted({1, 2, 3, widest})
        if 1 <= k <= widest
    }
    return [
        Section("Loss", chart=loss),
        Section("Accuracy by depth, training", chart=line_chart(accuracy, "step", "accuracy")),
        Section("Held-out acceptance during training", chart=line_chart(acceptance, "minutes", "acceptance length")),
    ]


def _settings(settings: Settings) -> Section:
    rows = []
    for name, table in settings:
        for key, value in table:
            if key in table.model_fields_set and value is not None:
                rows.append((f"{name}.{key}", str(value)))
    return Section("Settings of this run", (), ("setting", "value"), rows, on_terminal=False)
