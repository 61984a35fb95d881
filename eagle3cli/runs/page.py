"""The report of a training run: what it reached, how it went, what it trained on and what it took."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eagle3cli.console.chart import TRAINED_ON, Bars, Chart, Lines, Points
from eagle3cli.console.dispositions import remarks
from eagle3cli.console.progress import duration
from eagle3cli.console.report import Page, Section
from eagle3cli.console.samples import html_samples
from eagle3cli.data.tokens.on_policy import lines
from eagle3cli.runs.decoded import html_decoded
from eagle3cli.runs.events import Event
from eagle3cli.runs.folder import Run, served_lengths
from eagle3cli.runs.settings_used import settings_section
from eagle3cli.runs.state import RUNNING, local_time, sessions_of, state_of
from eagle3cli.training.eval.context import context_warning

PART_NAMES = {
    "target": "target's pass",
    "reading": "reading hidden states",
    "forward": "draft forward and loss",
    "backward": "draft backward",
    "optimiser": "optimiser",
    "waiting": "waiting for other processes",
    "communication": "gradients between processes",
    "other": "other (planning, checkpoints, logs)",
}
APART = {"target": "waiting for the target's processes"}
"""Where the target has processes of its own."""
BETWEEN = ("waiting", "communication")
"""Parts that a single process has no time for."""
MOST_WARNINGS = 20


def training_page(run: Run) -> Page:
    """The report of one run, at whatever state it is."""
    return Page(f"Training run {run.name}", summary(run), training_sections(run), tiles(run))


def training_sections(run: Run) -> list[Section]:
    """All sections, those without content included."""
    return [
        _acceptance(run),
        _decoded(run),
        _loss(run),
        _speed(run),
        _samples(run),
        _data(run),
        Section("Cost", (), ("what", "value"), cost(run), on_terminal=False),
        Section("Where and when", (), ("what", "value"), provenance(run), on_terminal=False),
        Section("Warnings", run.warnings[-MOST_WARNINGS:], on_terminal=False),
        settings_section(run.settings),
    ]


def summary(run: Run) -> str:
    """The run in a sentence or two."""
    state = state_of(run.folder, run.metadata)
    total = run.metadata.get("total_steps")
    of = f" of {total:,}" if isinstance(total, int) else ""
    message = f"{state.message[:1].upper()}{state.message[1:]}"
    parts = [f"{message}: step {run.last_step:,}{of} after {duration(run.seconds)}."]
    if run.best is not None:
        k = f"k = {len(run.best['acceptance_length'])}{_temperature(run.best)}"
        parts.append(f"Best held-out acceptance length {_deepest(run.best)} ({k}) at step {run.best['step']:,}.")
    elif not run.steps:
        parts.append("Nothing has been logged yet.")
    else:
        parts.append("No evaluation yet." if state.name == RUNNING else "No held-out rows were evaluated.")
    if not state.ended:
        parts.append(f"Written {local_time(time.time())}.")
    return " ".join(parts)


def tiles(run: Run) -> list[tuple[str, str]]:
    """The numbers that matter most."""
    tiles = []
    if run.best is not None:
        k = f"k={len(run.best['acceptance_length'])}{_temperature(run.best)}"
        tiles.append((f"best acceptance ({k})", _deepest(run.best)))
        tiles.append(("last acceptance", _deepest(run.measured[-1])))
    if run.steps:
        tiles.append(("loss", f"{run.steps[-1]['loss']:.3f}"))
        tiles.append(("steps", f"{run.last_step:,}"))
        tiles.append(("tokens per second", f"{tokens_per_s(run):,.0f}"))
    if run.seconds:
        tiles.append(("training time", duration(run.seconds)))
    if (memory := peak_memory(run)) is not None:
        tiles.append(("peak memory", f"{memory / 1e9:.2f} GB"))
    return tiles


def _deepest(event: Event) -> str:
    """The acceptance length of the deepest k, as the draft is judged."""
    return f"{served_lengths(event)[-1]:.3f}"


def _temperature(event: Event) -> str:
    """At which temperature an evaluation is judged; nothing for greedy decoding."""
    sampled = {"sampled_acceptance_length", "temperature"} <= event.keys()
    return f", temperature {event['temperature']:g}" if sampled else ""


def tokens_per_s(run: Run) -> float:
    """Tokens per second over the whole run; of the last line where lines hold no counts."""
    tokens = run.total("tokens")
    if tokens is not None and run.steps[-1].get("seconds"):
        return tokens / float(run.steps[-1]["seconds"])
    return float(run.steps[-1].get("tokens_per_s", 0.0))


def peak_memory(run: Run) -> float | None:
    """Bytes; None where no line tells."""
    return max((float(event["peak_memory"]) for event in run.steps if event.get("peak_memory")), default=None)


def acceptance_points(events: Iterable[Event], k: int, axis: str, scale: float = 1.0) -> list[tuple[float, float]]:
    """The acceptance length with k draft steps of each evaluation over ``axis``, which is divided by ``scale``."""
    measured = ((event, event["acceptance_length"]) for event in events if axis in event)
    return [(event[axis] / scale, float(lengths[k - 1])) for event, lengths in measured if len(lengths) >= k]


def _acceptance(run: Run) -> Section:
    if not run.measured:
        return Section("Acceptance length")
    last = run.measured[-1]
    best = run.best or last
    by_position = {f"tokens {name}": length for name, length in (last.get("by_reply_position") or {}).items()}
    by_context = {f"{name} tokens": length for name, length in (last.get("by_context_length") or {}).items()}
    by_depth = {f"depth {i}": share for i, share in enumerate(last.get("accepted_per_position") or [], 1)}
    deepest = max(len(event["acceptance_length"]) for event in run.measured)
    some_k = [k for k in sorted({1, 2, 3, deepest}) if k <= deepest]
    over_steps = {f"k = {k}": acceptance_points(run.measured_curve, k, "step") for k in some_k}
    over_time = {f"k = {k}": acceptance_points(run.measured_curve, k, "seconds", 60) for k in some_k}
    over_steps |= on_training_rows(run, deepest)
    sampled = {e["step"]: e["sampled_acceptance_length"] for e in run.measured_curve if _temperature(e)}
    if sampled:
        over_steps[f"k = {deepest}{_temperature(last)}"] = [(step, lengths[-1]) for step, lengths in sampled.items()]
    charts: list[Chart] = [
        _over_steps(run, "Acceptance length over steps", "tokens per pass", over_steps),
        Lines("Acceptance length over time", "minutes", "tokens per pass", over_time),
        Bars("Accepted share by draft depth, last evaluation", by_depth, unit="%"),
        Bars("Acceptance length by position in the reply", by_position, 1.0),
    ]
    if len(by_context) > 1:
        charts.append(Bars("Acceptance length by length of the context", by_context, 1.0))
    rows = [
        (k, best["acceptance_length"][k - 1] if k <= len(best["acceptance_length"]) else None, length)
        for k, length in enumerate(last["acceptance_length"], 1)
    ]
    text = (
        f"Tokens per pass of the target with k draft steps, on {last.get('rows', '?')} held-out rows, simulated over "
        "the target's own replies; 1 is no help from the draft. Equal to what a server reports for greedy decoding."
    )
    columns = ("k", f"best, step {best['step']:,}", f"last, step {last['step']:,}")
    warning = context_warning(last.get("by_context_length") or {}, last.get("context_steps") or {})
    texts = (text, f"{warning[:1].upper()}{warning[1:]}.") if warning else (text,)
    return Section("Acceptance length", texts, columns, rows, charts)


def points(events: Iterable[Event], name: str, scale: float = 1.0) -> list[tuple[float, float]]:
    """One number of each event over the step."""
    return [(e["step"], float(e[name]) / scale) for e in events if isinstance(e.get(name), int | float)]


def _by_depth(events: Sequence[Event], name: str) -> dict[str, list[tuple[float, float]]]:
    depths = max((len(event.get(name) or ()) for event in events), default=0)
    deep = [[e for e in events if len(e.get(name) or ()) > d] for d in range(depths)]
    return {f"depth {d}": [(e["step"], float(e[name][d - 1])) for e in some] for d, some in enumerate(deep, 1)}


def _over_steps(run: Run, title: str, y: str, series: Mapping[str, Points], *, from_zero: bool = False) -> Lines:
    """A chart over the steps, with the beginning of each epoch marked."""
    return Lines(title, "step", y, series, from_zero, marks=run.epoch_starts, marked="an epoch begins")


def on_training_rows(run: Run, k: int) -> dict[str, list[tuple[float, float]]]:
    """The acceptance length with k draft steps of rows that are trained on; empty of older runs.

    It is measured as that of held-out rows is: a gap between the two that grows is learning by heart.
    """
    trained_on = [{**e, "acceptance_length": e.get("training_acceptance_length", ())} for e in run.measured_curve]
    measured = acceptance_points(trained_on, k, "step")
    return {f"{TRAINED_ON}, k = {k}": measured} if measured else {}


def _loss(run: Run) -> Section:
    norms = {"norm": points(run.steps, "grad_norm")}
    rates = {"rate": points(run.steps, "learning_rate")}
    accuracy = [*([{**run.start, "accuracy": run.start.get("training_accuracy")}] if run.start else []), *run.steps]
    charts = [
        _over_steps(run, "Loss, all depths weighted", "nats", {"loss": points(run.curve, "loss")}),
        _over_steps(run, "Loss by depth", "nats, cross-entropy", _by_depth(run.curve, "depth_losses")),
        _over_steps(
            run, "Right tokens by depth, in training", "share", _by_depth(accuracy, "accuracy"), from_zero=True
        ),
        _over_steps(run, "Learning rate", "rate", rates, from_zero=True),
        _over_steps(run, "Gradient norm before clipping", "norm", norms, from_zero=True),
    ]
    return Section("Loss", charts=charts)


def breakdown(events: Sequence[Event], since: float = 0.0) -> dict[str, float]:
    """The share of the training time after second ``since`` that each part took, the largest first."""
    spent: Counter[str] = Counter()
    for event in events:
        until = float(event.get("seconds", since))
        for part, share in (event.get("time") or {}).items():
            spent[part] += share * max(0.0, until - since)
        since = until
    total = sum(spent.values())
    return {part: seconds / total for part, seconds in spent.most_common()} if total else {}


def _speed(run: Run) -> Section:
    hidden = BETWEEN if run.metadata.get("processes") == 1 else ()
    spent = breakdown(run.steps).items()
    names = PART_NAMES | (APART if run.metadata.get("target_processes") else {})
    shares = {names.get(part, part): share for part, share in spent if part not in hidden}
    charts: list[Chart] = [
        _over_steps(run, "Throughput", "tokens/s", {"tokens/s": points(run.steps, "tokens_per_s")}, from_zero=True),
        Bars("Where the training time went", shares, unit="%"),
        _over_steps(run, "Peak memory so far", "GB", {"GB": points(run.steps, "peak_memory", 1e9)}, from_zero=True),
    ]
    of = "the GPU's, of tensors" if run.metadata.get("device") == "cuda" else "of the process, the target included"
    text = f"Memory is {of}; of the first process where there are several. Evaluations are not part of these times."
    split = (run.metadata.get("split") or {}).get("text")
    texts = (f"{split}.", text) if split else (text,)
    return Section("Speed and memory", texts if run.steps else (), charts=charts)


def _decoded(run: Run) -> Section:
    title = "A held-out reply, decoded with the draft"
    decoded = run.metadata.get("decoded")
    if not decoded:
        return Section(title)
    try:
        rendered = html_decoded(decoded)
        length = int(decoded["tokens"]) / int(decoded["passes"])
        text = f"{decoded['tokens']} tokens in {decoded['passes']} passes of the target: {length:.2f} each (k = 3)."
    except (KeyError, TypeError, ValueError, ZeroDivisionError):  # a run.json that somebody else wrote
        return Section(title)
    return Section(title, (text,), html=rendered)


def _samples(run: Run) -> Section:
    samples = run.metadata.get("samples")
    if not samples:
        return Section("Masks of samples")
    try:
        rendered = html_samples(samples)
    except (KeyError, TypeError, ValueError):  # a run.json that somebody else wrote
        rendered = ""
    text = "The first training rows: what the draft is trained on, and what it only reads."
    return Section("Masks of samples", (text,), html=rendered)


def _data(run: Run) -> Section:
    try:
        return _data_of(run.metadata.get("data") or {}, run.metadata.get("on_policy") or {})
    except (KeyError, TypeError, ValueError, AttributeError):  # a run.json that somebody else wrote
        return Section("Data")


def _data_of(data: dict[str, Any], on_policy: dict[str, Any]) -> Section:
    rows = []
    notes = [f"From {data['kind']}: {data.get('folder', '?')}"] if "kind" in data else []
    for split in ("train", "eval"):
        counts = data.get(split)
        if not counts:
            continue
        tokens = counts.get("tokens")
        trained = counts.get("loss_tokens")
        share = f"{trained / tokens:.0%}" if trained is not None and tokens else None
        dropped = [counts.get(name) for name in ("truncated", "no_span", "rejected")]
        rows.append((split, counts.get("rows"), tokens, trained, share, *dropped))
        if "reasons" in counts:
            notes += [f"{split}: {line.strip()}" for line in remarks({"repaired": {}, **counts})]
    for split, summary in on_policy.items():
        notes += [f"{split}, {line.strip()}" for line in lines(summary)]
    vocab = data.get("vocab") or {}
    if vocab:
        notes.append(_vocabulary(vocab))
    columns = ("split", "rows", "tokens", "trained on", "share", "truncated", "without a reply", "rejected")
    train = on_policy.get("train") or {}
    shares = {f"tokens {name}": part["share"] for name, part in (train.get("by_position") or {}).items()}
    by_source = {name: part["share"] for name, part in (train.get("by_source") or {}).items() if part["tokens"]}
    charts: list[Chart] = [
        Bars("Reply tokens that are the target's best, by position in the reply", shares, unit="%"),
        Bars("Reply tokens that are the target's best, by source", by_source, unit="%"),
    ]
    return Section("Data", notes, columns, rows, charts, on_terminal=False)


def _vocabulary(vocab: dict[str, Any]) -> str:
    text = f"Draft vocabulary: {vocab.get('size', 0):,} of {vocab.get('target_size', 0):,} tokens"
    if "coverage_of_train" in vocab:
        text += f"; it covers {vocab['coverage_of_train']:.1%} of the reply tokens trained on"
    if "coverage" in vocab:
        held_out = "evaluation rows" if vocab.get("coverage_of") == "eval" else "training rows left aside"
        text += f" and {vocab['coverage']:.1%} of those of {held_out}"
    return text + "."


def cost(run: Run) -> list[tuple[str, object]]:
    """What the run took, as lines of a table."""
    if not run.steps:
        return []
    evaluation = sum(float(event.get("evaluation_seconds", 0.0)) for event in run.evals)
    wall = run.seconds + evaluation
    lines: list[tuple[str, object]] = [("training", duration(run.seconds)), ("evaluation", duration(evaluation))]
    processes = int(run.metadata.get("processes") or 1)
    target_processes = int(run.metadata.get("target_processes") or 0)
    if run.metadata.get("device") == "cuda":
        lines.append(("GPU hours", round(wall * (processes + target_processes) / 3600, 3)))
    if (seconds := run.total("processor_seconds")) is not None:
        lines.append(("processor hours, evaluation included", round(seconds / 3600, 3)))
    if (tokens := run.total("tokens")) is not None:
        lines.append(("tokens trained through", int(tokens)))
    if run.steps[-1].get("steps_left_out"):
        lines.append(("steps left out", run.steps[-1]["steps_left_out"]))
    lines += [("sessions", len(sessions_of(run.metadata)) or None), ("processes", processes)]
    lines.append(("processes of the target", target_processes or None))
    if run.metadata.get("draft_weights"):
        lines.append(("weights of the draft", run.metadata["draft_weights"]))
    return [line for line in lines if line[1] is not None]


def provenance(run: Run) -> list[tuple[str, object]]:
    """When, by which command and on what the run was made, as lines of a table; what is not known is left out."""
    sessions = sessions_of(run.metadata)
    machine = run.metadata.get("machine") or {}
    versions = [
        f"{name} {run.metadata[name]}" for name in ("eagle3", "torch", "transformers", "python") if name in run.metadata
    ]
    cores, memory = machine.get("cores"), machine.get("memory_gib")
    gpus = Counter(map(str, machine.get("gpus") or ())) if isinstance(machine.get("gpus"), list) else Counter[str]()
    lines: list[tuple[str, object]] = [
        ("begun", sessions[0].get("began") if sessions else None),
        ("ended", sessions[-1].get("ended") if sessions else None),
        ("command", run.metadata.get("command")),
        ("device", run.metadata.get("device_name")),
        ("processor", f"{machine['cpu']}, {cores} cores, {memory} GiB" if machine.get("cpu") else None),
        ("GPUs", ", ".join(f"{count} x {name}" for name, count in gpus.items())),
        ("versions", ", ".join(versions)),
    ]
    return [line for line in lines if line[1]]
