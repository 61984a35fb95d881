"""What a training session leaves for people: ``run.json`` with its state, and ``report.html`` at every evaluation.

Nothing in here ends a run: what cannot be written is a warning.
"""

from __future__ import annotations

import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eagle3cli import __version__
from eagle3cli.console.report import html
from eagle3cli.console.samples import sample_of
from eagle3cli.data.chat.tokenizer import load_tokenizer
from eagle3cli.data.inspect.show import show
from eagle3cli.errors import Stopped
from eagle3cli.runs.decoded import decoded_text
from eagle3cli.runs.folder import METADATA, REPORT, read_metadata, read_run
from eagle3cli.runs.page import training_page
from eagle3cli.runs.state import FAILED, FINISHED, RUNNING, STOPPED, sessions_of, this_process
from eagle3cli.runtime.files import write_json, write_text
from eagle3cli.runtime.machine import cpu_name, machine
from eagle3cli.runtime.report import Reporter
from eagle3cli.settings.tables import Settings
from eagle3cli.training.on_policy import OnPolicyWatch, summaries
from eagle3cli.training.parallel import size
from eagle3cli.training.trainer import Trainer

SAMPLES = 3
COST = 20.0
"""A report is not written anew before this many times the seconds that the last one took have passed."""


@contextmanager
def record_session(trainer: Trainer, settings: Settings, report: Reporter) -> Iterator[None]:
    """Within the block the run is on; at its end ``run.json`` says how it ended. For the first rank."""
    folder = trainer.output_dir
    metadata = read_metadata(folder)
    sessions = [*sessions_of(metadata), {"state": RUNNING, "began": _now(), **this_process()}]
    try:
        samples = metadata.get("samples") or _samples(trainer, settings, report)
        metadata = {**_metadata(trainer), "samples": samples}
    except Exception as error:
        report.warn(f"{folder / METADATA} lacks what the run is: {error}")
    _write_metadata(folder, {**metadata, "sessions": sessions}, report)
    watch = OnPolicyWatch(trainer.meters, report)

    def keep_on_policy(event: str, numbers: dict[str, Any]) -> None:
        if event == "eval":
            metadata["on_policy"] = summaries(trainer.meters)
            _write_metadata(folder, {**metadata, "sessions": sessions}, report)

    # The report is written last: it shows what the others have found.
    trainer.listeners = [*trainer.listeners, watch.listen, keep_on_policy, _report_listener(folder, report)]
    try:
        yield
        ending: dict[str, Any] = {"state": FINISHED}
    except (Stopped, KeyboardInterrupt):
        ending = {"state": STOPPED}
        raise
    except BaseException as error:
        ending = {"state": FAILED, "reason": str(error).split("\n")[0] or type(error).__name__}
        raise
    finally:
        sessions[-1] |= {**ending, "ended": _now()}
        watch.finish()
        metadata |= {**_decoded(trainer, settings, report), "on_policy": summaries(trainer.meters)}
        metadata |= {"split": trainer.split} if trainer.split else {}
        _write_metadata(folder, {**metadata, "sessions": sessions}, report)
        write_report(folder, report)


def write_report(folder: Path, report: Reporter) -> None:
    """Write ``report.html`` from the run's files."""
    try:
        write_text(folder / REPORT, html(training_page(read_run(folder))))
    except Exception as error:
        report.warn(f"{folder / REPORT} was not written: {error}")


def _report_listener(folder: Path, report: Reporter) -> Callable[[str, dict[str, Any]], None]:
    """A listener that writes the report at evaluations, unless that would take much of the run's time."""
    next_report = 0.0

    def listen(event: str, numbers: dict[str, Any]) -> None:
        nonlocal next_report
        start = time.monotonic()
        if event != "eval" or start < next_report:
            return
        write_report(folder, report)
        end = time.monotonic()
        next_report = end + COST * (end - start)

    return listen


def _metadata(trainer: Trainer) -> dict[str, Any]:
    device = trainer.timers.device
    name = cpu_name() or platform.machine()
    if device.type == "cuda":
        import torch

        name = torch.cuda.get_device_name(device)
    return {
        "eagle3": __version__,
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "device": device.type,
        "device_name": name,
        "processes": trainer.ranks.world_size,
        "target_processes": 0 if trainer.ranks.job is None else trainer.ranks.job.targets,
        "draft_weights": size(trainer.draft),
        "total_steps": trainer.schedule.total_steps,
        "budget_seconds": trainer.schedule.budget_seconds,
        "steps_per_epoch": trainer.batches.sampler.steps_per_epoch,
        "data": trainer.data_summary,
        "command": command_line(),
        "machine": machine(),
    }


def command_line() -> str:
    """What was typed; of a process that another one started, what that one runs it with."""
    return shlex.join(["eagle3", *sys.argv[1:]])


def _decoded(trainer: Trainer, settings: Settings, report: Reporter) -> dict[str, Any]:
    """A held-out reply as it was decoded last, in words; empty where there is none, or no tokenizer for it."""
    if trainer.decoded is None:
        return {}
    target = settings.target
    try:
        tokenizer = load_tokenizer(
            target.model_path, revision=target.revision, trust_remote_code=target.trust_remote_code
        )
        return {"decoded": decoded_text(trainer.decoded, tokenizer.decode)}
    except Exception as error:
        report.warn(f"the report shows no decoded reply: {error}")
        return {}


def _samples(trainer: Trainer, settings: Settings, report: Reporter) -> list[dict[str, Any]]:
    """The first training rows, as they are trained on; none where they cannot be shown."""
    rows = tuple(range(1, 1 + min(SAMPLES, len(trainer.batches.source.lengths))))
    try:
        samples = show(settings, path=Path(trainer.data_summary["folder"]), rows=rows)
    except Exception as error:
        report.warn(f"the report shows no rows: {error}")
        return []
    return [sample_of(row) for row in samples.rows]


def _write_metadata(folder: Path, metadata: dict[str, Any], report: Reporter) -> None:
    try:
        write_json(folder / METADATA, metadata)
    except Exception as error:
        report.warn(f"{folder / METADATA} was not written: {error}")


def _now() -> str:
    return datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
