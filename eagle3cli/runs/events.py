"""The lines of a run's history as the rest may rely on them: of known fields those that are what they should be."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

Event = dict[str, Any]

NUMBERS = (
    *("step", "epoch", "loss", "grad_norm", "learning_rate", "tokens", "tokens_per_s", "processor_seconds"),
    *("peak_memory", "steps_left_out", "seconds", "rows", "evaluation_seconds", "temperature"),
)
LISTS = (
    "depth_losses",
    "accuracy",
    "training_accuracy",
    "training_acceptance_length",
    "acceptance_length",
    "accepted_per_position",
    *("sampled_acceptance_length", "sampled_accepted_per_position", "overlap"),
)
MAPS = ("time", "by_reply_position", "by_context_length", "context_steps")
LARGEST = 2.0**63


def start_event(events: Iterable[Event]) -> Event | None:
    """The draft before its first step, with fields of evaluations and of step lines; None where no line tells."""
    return next((_valid_fields(event) for event in events if event["event"] == "start"), None)


def valid_events(events: Iterable[Event]) -> tuple[list[Event], list[Event]]:
    """Step lines and evaluations, each without the fields that hold something else; a step has a loss."""
    steps: list[Event] = []
    evals: list[Event] = []
    for event in map(_valid_fields, events):
        if event["event"] == "start":
            continue
        if event["event"] == "eval":
            evals.append(event)
        elif "loss" in event and "step" in event:
            steps.append(event)
    return steps, [event for event in evals if "step" in event]


def _valid_fields(event: Event) -> Event:
    fields: Event = {"event": event["event"]}
    fields |= {name: event[name] for name in NUMBERS if _number(event.get(name))}
    for name in LISTS:
        values = event.get(name)
        if isinstance(values, list) and all(map(_finite, values)):
            fields[name] = values
    for name in MAPS:
        values = event.get(name)
        if isinstance(values, dict) and all(map(_finite, values.values())):
            fields[name] = values
    return fields


def _number(value: object) -> bool:
    """A number, also one that is not finite: a loss may become that."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and not (isinstance(value, int) and abs(value) >= LARGEST)


def _finite(value: object) -> bool:
    return _number(value) and isinstance(value, int | float) and math.isfinite(value) and abs(value) < LARGEST
