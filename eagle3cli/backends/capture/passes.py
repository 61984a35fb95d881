"""Passes of the target over token rows: batches of similar length, and of each row what a store keeps.

A few rows go before the others, for what an encoding is fitted to, its loss, and how fast the target is here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from eagle3cli.backends.target.on_policy import OnPolicyMeter
from eagle3cli.backends.target.target import LiveTarget, tokens_of
from eagle3cli.data.hidden_states.calibration import describe_sample, fit_codec, sample_rows
from eagle3cli.data.hidden_states.quantize import Quantization
from eagle3cli.data.hidden_states.rows import RowCodec, RowCounts, StateRow, aux_count, teacher_positions
from eagle3cli.data.tokens.rows import TokenRow, TokenRows
from eagle3cli.errors import ModelError
from eagle3cli.runtime.out_of_memory import failed_allocation, is_out_of_memory, release

CPU_TOKENS = 2048
"""Tokens of a pass on a CPU, where a larger one is no faster."""
TopTokens = Callable[[Tensor], Tensor]
"""From last hidden states ``[R, H]`` to the target's most likely tokens ``[R]``."""
PASSES = 2
"""The first one warms up, the last one is timed."""


class PassTooLarge(ModelError):
    """Memory did not suffice for a pass of the target over ``rows`` rows, padded to ``longest`` tokens."""

    def __init__(self, message: str, rows: int, longest: int) -> None:
        fix = "lower --batch-tokens (or --max-length) and run the same command again"
        super().__init__("out-of-memory", message, where=f"{rows} rows of up to {longest} tokens", fix=fix)
        self.rows = rows
        self.longest = longest


def length_batches(
    numbers: Sequence[int], lengths: Sequence[int], batch_tokens: int, batch_size: int | None = None
) -> Iterator[list[int]]:
    """Rows grouped so that a group has at most ``batch_size`` rows and, padded to its longest row, at most
    ``batch_tokens`` tokens; longest rows first. A row longer than that comes alone.
    """
    order = sorted(range(len(numbers)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    longest = 0
    for i in order:
        if batch and ((len(batch) + 1) * longest > batch_tokens or len(batch) == batch_size):
            yield batch
            batch = []
        if not batch:
            longest = lengths[i]
        batch.append(numbers[i])
    if batch:
        yield batch


def run_batch(
    target: LiveTarget, rows: Sequence[TokenRow], meter: OnPolicyMeter | None = None, numbers: Sequence[int] = ()
) -> list[StateRow]:
    """One pass of the target; of each row what a store keeps, states and top tokens where the target is.

    ``meter`` judges the rows, which have these ``numbers`` there. Raises PassTooLarge when memory does not suffice.
    """
    head = target.head
    finders: list[TopTokens] = [head.top_tokens] * len(rows)
    if meter is not None:
        finders = [partial(meter.top_tokens, head, number, row) for number, row in zip(numbers, rows, strict=True)]
    try:
        states = target.capture([tokens_of(row) for row in rows])
        return [
            state_row(row, *of_row, top_tokens) for row, of_row, top_tokens in zip(rows, states, finders, strict=True)
        ]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        what = f"memory did not suffice for a pass{failed_allocation(error)}"
        release(error)
    raise PassTooLarge(what, len(rows), max(map(len, rows)))


def state_row(row: TokenRow, aux_SC: Tensor, last_SH: Tensor, top_tokens: TopTokens) -> StateRow:
    """What a store keeps of the states of all of a row's tokens."""
    mask = torch.from_numpy(row.loss_mask.astype(bool))
    teacher_R = teacher_positions(mask)
    last_RH = last_SH[teacher_R.to(last_SH.device)]
    return StateRow(
        token_ids_S=torch.from_numpy(row.token_ids.astype("int64")),
        loss_mask_S=mask,
        aux_UC=aux_SC[: aux_count(teacher_R)],
        last_RH=last_RH,
        top_R=top_tokens(last_RH),
    )


@dataclass(frozen=True)
class SampledRows:
    """A codec fitted to states of rows from all over the data, and what was seen on the way."""

    codec: RowCodec
    facts: dict[str, Any]
    """What a manifest says of it."""
    tokens_per_second: float
    """Of the target and the encoding."""


def take_sample(
    target: LiveTarget,
    rows: Sequence[TokenRow] | TokenRows,
    counts: RowCounts,
    encoding: Quantization,
    batch_tokens: int,
) -> SampledRows:
    """Run the target over a few rows."""
    at_once = min(batch_tokens, CPU_TOKENS) if target.device.type == "cpu" else batch_tokens
    chosen = sample_rows(counts, PASSES * at_once)
    states: list[StateRow] = []
    for batch in length_batches(chosen, [len(rows[n]) for n in chosen], at_once):
        began = time.perf_counter()
        batch_states = run_batch(target, [rows[n] for n in batch])
        seconds = time.perf_counter() - began
        states += batch_states
        codec = fit_codec(encoding, states)
        began = time.perf_counter()
        codec.to(target.device).pack(batch_states)
        seconds += time.perf_counter() - began
    tokens = sum(len(row.token_ids_S) for row in batch_states)
    return SampledRows(codec, describe_sample(codec, states), tokens / seconds)
