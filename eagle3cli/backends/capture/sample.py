"""A few rows' states before the others': what an encoding is fitted to, its loss, and how fast the target is here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from eagle3cli.backends.capture.passes import length_batches, run_batch
from eagle3cli.backends.target.target import LiveTarget
from eagle3cli.data.hidden_states.calibration import fit_codec, sample_error, sample_rows
from eagle3cli.data.hidden_states.quantize import Quantization
from eagle3cli.data.hidden_states.rows import RowCodec, RowCounts, StateRow
from eagle3cli.data.tokens.rows import TokenRow, TokenRows

CPU_TOKENS = 2048
"""Tokens of a pass on a CPU, where a larger one is no faster."""
PASSES = 2
"""The first one warms up, the last one is timed."""


@dataclass(frozen=True)
class Sample:
    """A codec fitted to states of rows from all over the data, and what was seen on the way."""

    codec: RowCodec
    error: dict[str, float]
    """Relative error of auxiliary and last states, to three digits."""
    tokens: int
    tokens_per_second: float
    """Of the target and the encoding."""


def take_sample(
    target: LiveTarget,
    rows: Sequence[TokenRow] | TokenRows,
    counts: RowCounts,
    encoding: Quantization,
    batch_tokens: int,
) -> Sample:
    """Run the target over a few rows."""
    at_once = min(batch_tokens, CPU_TOKENS) if target.device.type == "cpu" else batch_tokens
    chosen = sample_rows(counts, PASSES * at_once)
    states: list[StateRow] = []
    seconds, tokens = 0.0, 0
    for batch in length_batches(chosen, [len(rows[n]) for n in chosen], at_once):
        began = time.perf_counter()
        found = run_batch(target, [rows[n] for n in batch])
        seconds = time.perf_counter() - began
        states += found
        codec = fit_codec(encoding, states)
        began = time.perf_counter()
        codec.to(target.device).pack(found)
        seconds += time.perf_counter() - began
        tokens = sum(len(rows[n]) for n in batch)
    return Sample(codec, sample_error(codec, states), sum(len(rows[n]) for n in chosen), tokens / seconds)
