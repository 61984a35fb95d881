"""What an encoding is fitted to, and what it loses: a few rows from all over the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eagle3cli.data.hidden_states.quantize import Codec, Quantization, relative_error
from eagle3cli.data.hidden_states.rows import LAST, TOKENS, RowCodec, RowCounts, StateRow, row_codec

STATES_KEPT = 4096


def sample_rows(counts: RowCounts, tokens: int) -> list[int]:
    """Numbers of rows with loss, evenly over the data, of about ``tokens`` in all (at least one row)."""
    useful = (counts.counts_N3[:, LAST] > 0).nonzero()[:, 0]
    mean = float(counts.counts_N3[useful, TOKENS].double().mean())
    number = min(len(useful), max(1, round(tokens / mean)))
    sample: list[int] = useful[torch.arange(number) * len(useful) // number].tolist()
    return sample


def fit_codec(encoding: Quantization, rows: Sequence[StateRow]) -> RowCodec:
    """The codec for rows like these."""
    aux_RC = _thinned([row.aux_UC for row in rows])
    last_RH = _thinned([row.last_RH for row in rows])
    hidden = last_RH.shape[1]
    return row_codec(encoding, layers=aux_RC.shape[1] // hidden, hidden=hidden, aux_RC=aux_RC, last_RH=last_RH)


def describe_sample(codec: RowCodec, rows: Sequence[StateRow]) -> dict[str, Any]:
    """What a manifest says of the sample: its tokens, and the relative error of its states, to three digits."""
    errors = {}
    for name, column in (("aux", "aux_UC"), ("last", "last_RH")):
        states = _thinned([getattr(row, column) for row in rows])
        part: Codec = getattr(codec, name).to(states.device)
        errors[name] = float(f"{relative_error(states, part.decode(part.encode(states))):.3g}")
    return {"tokens": sum(len(row.token_ids_S) for row in rows), "error": errors}


def _thinned(states: list[Tensor]) -> Tensor:
    """About STATES_KEPT of these states, evenly."""
    joined = torch.cat(states)
    return joined[:: max(1, -(-len(joined) // STATES_KEPT))]
