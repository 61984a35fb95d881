"""A few rows' states before the others': what an encoding is fitted to, its loss, and how fast the target is here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from eagle3cli.backends.hf import HfTarget
from eagle3cli.backends.passes import length_batches, run_batch
from eagle3cli.data.encodings import Encoding, relative_error
from eagle3cli.data.rows import TokenRow, TokenRows
from eagle3cli.data.store_rows import LAST, TOKENS, RowCodec, RowCounts, StateRow, row_codec

CPU_TOKENS = 2048
"""Tokens of a pass on a CPU, where a larger one is no faster."""
PASSES = 2
"""The first one warms up, the last one is timed."""
STATES_KEPT = 4096


@dataclass(frozen=True)
class Sample:
    """A codec fitted to states of rows from all over the data, and what was seen on the way."""

    codec: RowCodec
    error: dict[str, float]
    """Relative error of auxiliary and last states, to three digits."""
    tokens: int
    tokens_per_second: float
    """Of the target and the encoding."""


def sample_rows(counts: RowCounts, tokens: int) -> list[int]:
    """Numbers of rows with loss, evenly over the data, of about ``tokens`` in all (at least one row)."""
    useful = (counts.counts_N3[:, LAST] > 0).nonzero()[:, 0]
    mean = float(counts.counts_N3[useful, TOKENS].double().mean())
    wanted = min(len(useful), max(1, round(tokens / mean)))
    chosen: list[int] = useful[torch.arange(wanted) * len(useful) // wanted].tolist()
    return chosen


def take_sample(
    target: HfTarget, rows: Sequence[TokenRow] | TokenRows, counts: RowCounts, encoding: Encoding, batch_tokens: int
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
        codec = fit(encoding, states)
        began = time.perf_counter()
        codec.to(target.device).pack(found)
        seconds += time.perf_counter() - began
        tokens = sum(len(rows[n]) for n in batch)
    return Sample(codec, sample_error(codec, states), sum(len(rows[n]) for n in chosen), tokens / seconds)


def fit(encoding: Encoding, states: Sequence[StateRow]) -> RowCodec:
    """The codec for rows like these."""
    aux_RC, last_RH = (torch.cat([getattr(row, name) for row in states]) for name in ("aux_UC", "last_RH"))
    hidden = last_RH.shape[1]
    thin = {"aux_RC": aux_RC[:: _every(len(aux_RC))], "last_RH": last_RH[:: _every(len(last_RH))]}
    return row_codec(encoding, layers=aux_RC.shape[1] // hidden, hidden=hidden, **thin)


def sample_error(codec: RowCodec, states: Sequence[StateRow]) -> dict[str, float]:
    """Relative error of these states once encoded, to three digits."""
    found = {}
    for name, one, parts in (
        ("aux", codec.aux, [row.aux_UC for row in states]),
        ("last", codec.last, [row.last_RH for row in states]),
    ):
        wanted = torch.cat(parts)
        wanted, one = wanted[:: _every(len(wanted))], one.to(wanted.device)
        found[name] = float(f"{relative_error(wanted, one.decode(one.encode(wanted))):.3g}")
    return found


def _every(states: int) -> int:
    return max(1, -(-states // STATES_KEPT))
