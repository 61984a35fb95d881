"""What a whole run came to: the numbers of ``report.json``, and the page that people read."""

from __future__ import annotations

import json
import shlex
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from eagle3cli.console.benchmark import COLUMNS, table_row
from eagle3cli.console.chart import Bars, Lines
from eagle3cli.console.progress import duration
from eagle3cli.console.report import Page, Section, html, markdown
from eagle3cli.errors import DataError
from eagle3cli.runs.find import STAGES
from eagle3cli.runs.folder import read_run
from eagle3cli.runs.page import training_sections
from eagle3cli.runs.settings_used import settings_section
from eagle3cli.runtime.files import read_json, write_json, write_text
from eagle3cli.runtime.machine import cpu_name, machine
from eagle3cli.settings.tables import Settings
from eagle3cli.settings.toml import to_toml

Row = dict[str, Any]
SLOWER = (
    "No k was faster than plain decoding here. On a CPU and with a target of this size a verification of k + 1 tokens "
    "costs more than the accepted ones save: what this run shows is acceptance, not speed. On a GPU, where a pass is "
    "bound by memory, the same acceptance is what makes a large target faster."
)


def write_report(settings: Settings, stages: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, object], Page]:
    """Write the settings and the report of a finished run to its folder; returns the numbers and the page."""
    folder = settings.run.output_dir
    report = report_numbers(settings, stages)
    page = report_page(report, settings)
    whole_run = settings.updated("run", from_stage=None, to_stage=None, only_stage=None)
    write_text(folder / "settings.toml", to_toml(whole_run))
    write_json(folder / "report.json", report)
    write_text(folder / "report.md", markdown(page))
    write_text(folder / "report.html", html(page))
    return report, page


def report_numbers(settings: Settings, stages: Mapping[str, Mapping[str, Any]]) -> dict[str, object]:
    """``report.json`` from the stages' results."""
    bench = stages["bench"]["result"]
    chain = next(row for row in bench["held_out"] if row["steps"])
    speeds = {str(row["steps"]): row["tokens_per_s"] for row in bench["speed"]}
    simulated = stages["eval"]["result"]["acceptance_length"]
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
        "simulated_acceptance": simulated,
        "acceptance_by_walk": simulated,  # its name before, for scripts that read it
        "tokens_per_s": speeds,
        "best_k": int(max(speeds, key=lambda k: float(speeds[k]))),
        "tasks": bench["tasks"],
        "stages": seconds,
        "replies": {name: stages["regenerate"]["result"][name] for name in ("recorded", "generated", "errors")},
        "rows": {name: stages["merge"]["result"][name] for name in ("train_rows", "eval_rows")},
        "steps": stages["train"]["result"]["steps"],
        "speedup": speedup_of(speeds)[1],
        "speedup_k": speedup_of(speeds)[0],
        "speedup_rounds": {
            str(row["steps"]): row["speedup_rounds"] for row in bench["speed"] if "speedup_rounds" in row
        },
        "speedup_cpu": {str(row["steps"]): row["speedup_cpu"] for row in bench["speed"] if "speedup_cpu" in row},
        "engine": "local",
        "dtype": (chain.get("environment") or {}).get("dtype"),
        "machine": machine(),
        "device": device_of(settings),
        "made": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": shlex.join(["eagle3", *sys.argv[1:]]),
    }


def speedup_of(speeds: Mapping[str, Any]) -> tuple[int | None, float | None]:
    """The fastest k with the draft, and its speed over that without; None where either was not measured."""
    drafted = {int(k): float(speed) for k, speed in speeds.items() if int(k)}
    plain = float(speeds.get("0") or 0.0)
    if not drafted or not plain:
        return None, None
    k = max(drafted, key=lambda k: drafted[k])
    return k, drafted[k] / plain


def device_of(settings: Settings) -> str:
    """What the numbers were measured on, in few words: a GPU's name, or the processor's."""
    run = read_run(settings.train.output_dir)
    return str(run.metadata.get("device_name") or cpu_name() or "this machine")


def report_page(report: Mapping[str, Any], settings: Settings) -> Page:
    """The report for people."""
    lossless = (
        "every answer equals plain greedy decoding, token by token" if report["lossless"] else _differences(report)
    )
    summary = (
        f"Acceptance length {report['acceptance_length']:.3f} (k = {report['k']}) on {report['prompts']} held-out "
        f"prompts; {lossless}; {report['seconds'] / 60:.1f} minutes in all.{_speedup_text(report)}"
    )
    sections = (
        _result(report),
        _by_k(report),
        _speed(report),
        Section("Benchmark tasks", (), COLUMNS, [table_row(row) for row in report["tasks"]]),
        *_training(settings.train.output_dir),
        Section("Where the time went", (), ("stage", "seconds"), list(report["stages"].items())),
        _provenance(report),
        settings_section(tomllib.loads(to_toml(settings))),
    )
    tiles = [
        *_speedup_tile(report),
        (f"acceptance length, k = {report['k']}", f"{report['acceptance_length']:.3f}"),
        ("answers equal to plain decoding", f"{report['identical']} of {report['prompts']}"),
        (f"best tokens/s, {_k_text(report['best_k'])}", f"{max(report['tokens_per_s'].values()):,.1f}"),
        ("whole run", duration(report["seconds"])),
    ]
    return Page(f"EAGLE-3 draft for {report['target']}", summary, sections, tiles)


def _speedup_tile(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The card that people look for first: how much faster, with which k, by which engine, on what."""
    k, speedup = speedup_of(report["tokens_per_s"])
    if k is None or speedup is None:
        return []
    where = ", ".join(filter(None, [f"{report.get('engine', 'local')} engine", report.get("device")]))
    return [(f"speed-up, k = {k}; {where}", f"{speedup:.2f}x")]


def _speedup_text(report: Mapping[str, Any]) -> str:
    """`` Speed-up 1.21 at k = 3 (1.18 to 1.24 in rounds, 1.20 by CPU seconds), local engine, bfloat16.``"""
    k, speedup = speedup_of(report["tokens_per_s"])
    if k is None or speedup is None:
        return ""
    rounds = (report.get("speedup_rounds") or {}).get(str(k))
    by_cpu = (report.get("speedup_cpu") or {}).get(str(k))
    more = [f"{rounds['min']:.2f} to {rounds['max']:.2f} in rounds"] if rounds and rounds["min"] < rounds["max"] else []
    more += [f"{by_cpu:.2f} by CPU seconds"] if by_cpu else []
    where = ", ".join(filter(None, [f"{report.get('engine', 'local')} engine", report.get("dtype")]))
    what = "Speed-up" if speedup > 1 else "No k is faster than plain decoding here; the best speed-up is"
    spread = f" ({', '.join(more)})" if more else ""
    return f" {what} {speedup:.2f} at k = {k}{spread}, {where}."


def _k_text(k: int) -> str:
    return f"k = {k}" if k else "without the draft"


def _provenance(report: Mapping[str, Any]) -> Section:
    """When, by which command and on what; reports of before say nothing of it."""
    machine = report.get("machine") or {}
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("eagle3", "torch", "transformers", "python") if machine.get(name)
    )
    processor = (
        f"{machine['cpu']}, {machine.get('cores')} cores, {machine.get('memory_gib')} GiB"
        if machine.get("cpu")
        else None
    )
    lines = [
        ("made", report.get("made")),
        ("command", report.get("command")),
        ("processor", processor),
        ("GPUs", ", ".join(machine.get("gpus") or ())),
        ("versions", versions),
    ]
    return Section("Where and when", (), ("what", "value"), [line for line in lines if line[1]], on_terminal=False)


def _differences(report: Mapping[str, Any]) -> str:
    count = report["prompts"] - report["identical"]
    return f"{count} answers differ from plain greedy decoding, {report['differences_at_ties']} of them at near ties"


def _result(report: Mapping[str, Any]) -> Section:
    replies = report["replies"]
    rows = report["rows"]
    reply_counts = (
        f"{replies['generated']:,} generated, {replies['recorded']:,} recorded earlier, {replies['errors']:,} failed"
    )
    lines: Sequence[Sequence[object]] = [
        ("acceptance length, engine", report["acceptance_length"]),
        ("acceptance length, simulated over the same replies", _simulated(report).get(report["k"])),
        ("draft steps k", report["k"]),
        ("held-out prompts", report["prompts"]),
        ("answers equal to plain greedy decoding", f"{report['identical']} of {report['prompts']}"),
        ("accepted per position", " ".join(f"{share:.2f}" for share in report["accepted_per_position"] or ())),
        ("replies of the target", reply_counts),
        ("training and held-out rows", f"{rows['train_rows']:,} and {rows['eval_rows']:,}"),
        ("optimiser steps", report["steps"]),
        ("draft", report["draft"]),
    ]
    return Section("Result", (), ("what", "value"), lines)


def _simulated(report: Mapping[str, Any]) -> dict[int, float]:
    """Simulated acceptance length by k; reports of before have it by its old name alone."""
    lengths = report.get("simulated_acceptance", report["acceptance_by_walk"])
    return {int(k): float(length) for k, length in lengths.items()}


def _by_k(report: Mapping[str, Any]) -> Section:
    points = list(_simulated(report).items())
    text = "Simulated over held-out replies; k draft steps accept at most k tokens and add one."
    chart = Lines("Acceptance length by k", "draft steps k", "tokens per pass", {"acceptance length": points})
    return Section("Acceptance by k", (text,), ("k", "acceptance length"), points, (chart,))


def _speed(report: Mapping[str, Any]) -> Section:
    speeds = {int(k): float(value) for k, value in report["tokens_per_s"].items()}
    rounds = report.get("speedup_rounds") or {}
    by_cpu = report.get("speedup_cpu") or {}
    rows = []
    for k, speed in speeds.items():
        spread = rounds.get(str(k))
        range_text = f"{spread['median']:.2f} ({spread['min']:.2f} to {spread['max']:.2f})" if spread else None
        rows.append((k, speed, f"{speed / speeds[0]:.2f}x", range_text, by_cpu.get(str(k))))
    best = f"Best tokens/s: k = {report['best_k']}." if report["best_k"] else SLOWER
    chart = Bars(
        "Tokens/s by k, one answer at a time", {f"k = {k}" if k else "without the draft": v for k, v in speeds.items()}
    )
    texts = (best, "k = 0 is without the draft.")
    columns = ("k", "tokens/s", "speed-up", "median of rounds (range)", "by CPU seconds")
    return Section("Speed, one answer at a time", texts, columns, rows, (chart,))


def _training(folder: Path) -> list[Section]:
    """The training run's own report, but for its settings and its machine, which are told of the whole run."""
    own = ("Settings", "Where and when")
    sections = training_sections(read_run(folder))
    return [replace(section, on_terminal=False) for section in sections if section.title not in own]


def training_folder(folder: Path) -> Path:
    """Where the training of the pipeline in a folder is: inside of it, unless its settings say otherwise."""
    output_dir = read_run(folder).setting("train.output_dir")
    return Path(output_dir) if output_dir and not (folder / "train").is_dir() else folder / "train"


def read_stages(folder: Path) -> dict[str, Row]:
    """The stages of a pipeline's folder. Raises DataError where its file is damaged."""
    content = read_json(folder / STAGES)
    stages = content.get("stages") if isinstance(content, dict) else None
    if not isinstance(stages, dict) or not all(isinstance(s, dict) and "state" in s for s in stages.values()):
        raise DataError("damaged-file", "not the stages of a run", where=str(folder / STAGES), fix="start the run anew")
    return stages


def folder_page(folder: Path) -> Page:
    """The report of a pipeline from its folder: the whole, or as far as it has come."""
    stages = read_stages(folder)
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        settings = Settings.model_validate(read_run(folder).settings)
    except (OSError, ValueError):
        report = None
    if report is not None and all(stage["state"] == "done" for stage in stages.values()):
        return report_page(report, settings.updated("train", output_dir=training_folder(folder)))
    rows = [(name, stage["state"], round(stage.get("seconds", 0.0), 1)) for name, stage in stages.items()]
    current = next((name for name, state, _ in rows if state != "done"), None)
    summary = f"Not finished: {f'in stage {current}' if current else 'between two stages'}. eagle3 run goes on with it."
    sections = [Section("Stages so far", (), ("stage", "state", "seconds"), rows), *_training(training_folder(folder))]
    return Page(f"Run {folder.resolve().name}", summary, sections)
