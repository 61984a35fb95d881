"""How many prompts a target answers itself where the recorded replies are another one's: those of about the time that
the training takes, by what this machine is seen to decode."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from eagle3cli.runtime.units import parse_duration

if TYPE_CHECKING:
    from eagle3cli.runtime.report import Reporter
    from eagle3cli.settings.tables import Settings

UNTIMED_ROWS = 1000
"""Where no time is set for the training, or servers write the replies."""
LEAST_SPLITS = 3
"""At least so many times the held-out rows: fewer teach next to nothing."""
PROMPT_TOKENS = 100
"""Of a prompt that is timed: about the mean of ShareGPT's of up to 200 words."""
STEPS = 5
STEP_SECONDS = 10.0
"""After so long no further step is timed."""


@dataclass(frozen=True)
class OwnReplies:
    """Prompts that the target answers; ``row_seconds`` is what one takes at most, None where nobody timed it."""

    rows: int
    row_seconds: float | None


def why_own(settings: Settings, *, planned: bool = False) -> list[str]:
    """Why recorded replies that the settings name are not those of this target, which is here; nothing where they are,
    or where none are named. ``planned``: of a target on the hub, whose weights are not fetched for it, the name tells.
    """
    from eagle3cli.backends.target.gguf.folder import find_gguf, source_of
    from eagle3cli.serving.regenerate.engines import identify_target
    from eagle3cli.serving.regenerate.recorded import differences_of
    from eagle3cli.serving.regenerate.regenerate import prompt_with, reply_settings

    name = settings.regenerate.recorded
    if name is None:
        return []
    path = settings.target.model_path
    file = find_gguf(path)
    if file is None:
        if planned and path and not Path(path).is_dir():
            return differences_of(name, {"target": Path(path).name, **reply_settings(settings)})
        made_with = identify_target(settings) | reply_settings(settings)
        return differences_of(name, made_with, partial(prompt_with, settings))
    made_with = {"target": file.stem, "target_source": source_of(path)}  # as of the folder that it becomes
    return differences_of(name, made_with | reply_settings(settings))


def own_replies(settings: Settings, report: Reporter) -> OwnReplies:
    """How many prompts to keep; the target is loaded and timed where this process is what writes the replies."""
    from eagle3cli.serving.engine import resolve_engine

    is_local = resolve_engine(settings.regenerate.engine, settings.server) == "local"
    if not is_local or settings.train.time_budget is None:
        return OwnReplies(rows_within(settings, None), None)
    report.info("timing the target: how many replies can it write here?")
    seconds = _row_seconds(settings, report)
    return OwnReplies(rows_within(settings, seconds), seconds)


def rows_within(settings: Settings, row_seconds: float | None) -> int:
    """The prompts that are answered in the time of the training, a few at least; where nothing is timed, 1,000."""
    budget = parse_duration(settings.train.time_budget)
    most = settings.prepare.sample_size
    rows = UNTIMED_ROWS if budget is None or row_seconds is None else int(budget / max(row_seconds, 1e-9))
    rows = max(rows, LEAST_SPLITS * settings.merge.eval_size)
    return rows if most is None else min(rows, most)


def _row_seconds(settings: Settings, report: Reporter) -> float:
    """Seconds for a prompt and a reply of all the tokens that it may have, by steps of a full batch."""
    import torch

    from eagle3cli.backends.target.hf import load_target
    from eagle3cli.runtime.devices import set_threads
    from eagle3cli.serving.decode.batches import decoding

    config = settings.regenerate
    set_threads(settings.target.threads)
    model = load_target(settings.target, report).model
    prompt = [number % model.config.get_text_config().vocab_size for number in range(1, PROMPT_TOKENS + 1)]
    with torch.inference_mode():
        ids = torch.tensor([prompt], device=model.device)
        # What is read back makes the host wait for the device.
        reading = min(_timed(lambda: model(input_ids=ids).logits[0, -1, 0].item()) for _ in range(2))
    with decoding(model, config.batch_size, frozenset()) as decoder:
        for row in range(config.batch_size):  # one of full length: the others are read in no time and attend as far
            decoder.add(row, prompt if row == 0 else prompt[:2], STEPS + 2)
        decoder.step()
        steps: list[float] = []
        while len(steps) < STEPS and sum(steps) < STEP_SECONDS:
            steps.append(_timed(decoder.step))
    step = sorted(steps)[len(steps) // 2]
    return reading + config.max_tokens * step / config.batch_size


def _timed(work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start
