"""Several runs side by side: what they reached, how they went, and in which settings they differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eagle3cli.console.chart import Bars, Chart, Lines
from eagle3cli.console.report import Page, Section
from eagle3cli.runs.folder import Run
from eagle3cli.runs.page import acceptance_points, breakdown, peak_memory, points, tokens_per_s
from eagle3cli.runs.settings_used import differing_settings
from eagle3cli.runs.state import state_of

OF_THE_LOSS = {f"train.{name}" for name in ("loss", "loss_decay", "ttt_length", "alignment", "kl_scale", "kl_decay")}
"""Settings that change what the loss is."""
OF_THE_ROWS = {"target.model_path", "data.eval_path", "data.eval_hidden_states_path", "train.eval_rows"}
"""Settings that change what acceptance is measured on."""


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison: its training, and what a benchmark measured, each where there is one."""

    name: str
    training: Run | None = None
    bench: Sequence[Mapping[str, Any]] = ()

    def numbers(self) -> dict[str, Any]:
        """What it came to, for scripts."""
        return (final_numbers(self.training) if self.training else {}) | {"configurations": list(self.bench)}


def distinct_names(paths: Sequence[tuple[str, str]]) -> list[str]:
    """A name for each ``(name, whole path)``: the short one where that is enough to tell them apart."""
    short = [name for name, _ in paths]
    return [name if short.count(name) == 1 else path for name, path in paths]


def comparison_page(runs: Sequence[ComparedRun]) -> Page:
    """The page of several runs."""
    trained = [(run.name, run.training) for run in runs if run.training is not None]
    k = common_k([run for _, run in trained])
    best = {name: best_at(run, k) for name, run in trained if k and run.measured}
    summary = f"{len(runs)} runs."
    if best:
        first = max(best, key=lambda name: best[name])
        summary += f" Best held-out acceptance length: {best[first]:.3f} (k = {k}), by {first}."
    sections = [_numbers(trained, k), _charts(trained, k, best), _benchmarks(runs), _settings(trained)]
    return Page(f"Comparison of {', '.join(run.name for run in runs)}", summary, sections)


def common_k(runs: Sequence[Run]) -> int:
    """The deepest k that all evaluated runs were measured at; 0 where none was."""
    return min((len(event["acceptance_length"]) for run in runs for event in run.measured), default=0)


def best_at(run: Run, k: int) -> float:
    """The best acceptance length with k draft steps."""
    return max(float(event["acceptance_length"][k - 1]) for event in run.measured)


def final_numbers(run: Run) -> dict[str, object]:
    """What a run came to, for scripts."""
    best = run.best
    last = run.measured[-1] if run.measured else None
    return {
        "folder": run.folder,
        "state": state_of(run.folder, run.metadata).name,
        "steps": run.last_step,
        "total_steps": run.metadata.get("total_steps"),
        "seconds": run.seconds,
        "loss": run.steps[-1]["loss"] if run.steps else None,
        "acceptance_length": last["acceptance_length"] if last else None,
        "best_acceptance_length": best["acceptance_length"][-1] if best else None,
        "best_step": best["step"] if best else None,
        "tokens": run.total("tokens"),
        "tokens_per_s": tokens_per_s(run) if run.steps else None,
        "peak_memory": peak_memory(run),
        "time": breakdown(run.steps),
    }


def _numbers(trained: Sequence[tuple[str, Run]], k: int) -> Section:
    columns = ("run", "state", "steps", "minutes", f"best acceptance, k = {k}", "last", "loss", "tokens/s", "peak GB")
    return Section("Numbers", (), columns, [(name, *_cells(run, k)) for name, run in trained])


def _cells(run: Run, k: int) -> tuple[object, ...]:
    numbers = final_numbers(run)
    measured = k > 0 and bool(run.measured)
    memory = peak_memory(run)
    return (
        numbers["state"],
        run.last_step,
        f"{run.seconds / 60:.1f}",
        best_at(run, k) if measured else None,
        run.measured[-1]["acceptance_length"][k - 1] if measured else None,
        numbers["loss"],
        numbers["tokens_per_s"] and round(tokens_per_s(run)),
        None if memory is None else round(memory / 1e9, 2),
    )


def _other_losses(trained: Sequence[tuple[str, Run]]) -> str:
    """Why the losses of these runs cannot be compared; empty where they can."""
    differ = OF_THE_LOSS & _differing(trained)
    return f"Of another kind, by {', '.join(sorted(differ))}: compare acceptance, not loss." if differ else ""


def _other_rows(trained: Sequence[tuple[str, Run]]) -> str:
    """Why the acceptance lengths cannot be compared: other held-out rows or another target; empty where they can."""
    differ = OF_THE_ROWS & _differing(trained)
    rows = {event.get("rows") for _, run in trained for event in run.measured[-1:]}
    if len(rows) > 1:
        differ |= {f"{' and '.join(sorted(map(str, rows)))} rows"}
    return f"Measured on other things, by {', '.join(sorted(differ))}: do not compare." if differ else ""


def _differing(trained: Sequence[tuple[str, Run]]) -> set[str]:
    return {key for key, _ in differing_settings([run.settings for _, run in trained])} if len(trained) > 1 else set()


def _charts(trained: Sequence[tuple[str, Run]], k: int, best: Mapping[str, float]) -> Section:
    def each(extract: Callable[[Run], list[tuple[float, float]]]) -> dict[str, list[tuple[float, float]]]:
        return {name: extract(run) for name, run in trained}

    over_steps = each(lambda run: acceptance_points(run.measured_curve, k, "step"))
    over_time = each(lambda run: acceptance_points(run.measured_curve, k, "seconds", 60))
    rows = _other_rows(trained)
    bars = {name: best.get(name, math.nan) for name, _ in trained}  # a place, and so a colour, for each
    title = f"Acceptance length, k = {k}, over"
    charts: list[Chart] = [
        Lines(f"{title} steps", "step", "tokens per pass", over_steps, note=rows),
        Lines(f"{title} time", "minutes", "tokens per pass", over_time, note=rows),
        Lines("Loss", "step", "nats", each(lambda run: points(run.curve, "loss")), note=_other_losses(trained)),
        Lines("Throughput", "step", "tokens/s", each(lambda run: points(run.steps, "tokens_per_s")), from_zero=True),
        Bars(f"Best acceptance length, k = {k}", bars, 1.0, by_series=True, note=rows),
    ]
    return Section("Curves", charts=charts)


def _benchmarks(runs: Sequence[ComparedRun]) -> Section:
    """A line for each configuration that any of the runs was measured with."""
    measured = [run for run in runs if run.bench]
    keys = dict.fromkeys((row["task"], row["config"], row["temperature"]) for run in measured for row in run.bench)
    rows = []
    for task, config, temperature in keys:
        cells: list[object] = [task, config, f"{temperature:g}"]
        for run in measured:
            key = (task, config, temperature)
            row = next((r for r in run.bench if (r["task"], r["config"], r["temperature"]) == key), {})
            speedup = row.get("speedup")
            cells += [row.get("acceptance_length"), row.get("tokens_per_s"), speedup and f"{speedup:.2f}x"]
        rows.append(cells)
    names = ("acceptance length", "tokens/s", "speed-up")
    columns = ["task", "config", "temperature", *(f"{run.name}: {name}" for run in measured for name in names)]
    return Section("Benchmarks", (), columns, rows)


def _settings(trained: Sequence[tuple[str, Run]]) -> Section:
    if not all(run.settings for _, run in trained):
        return Section("Settings", ("Not all of these runs hold a settings.toml.",) if trained else ())
    rows = differing_settings([run.settings for _, run in trained])
    text = [] if rows or len(trained) < 2 else ["These runs have the same settings."]
    if OF_THE_LOSS & {key for key, _ in rows}:
        text.append("Their losses are not of the same kind: compare acceptance, not loss.")
    columns = ("setting", *(name for name, _ in trained))
    return Section("Settings that differ", text, columns, [(key, *values) for key, values in rows])
