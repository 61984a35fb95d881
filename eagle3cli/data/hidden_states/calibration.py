"""What an encoding is fitted to, and what it loses: a few rows from all over the data."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eagle3cli.data.hidden_states.quantize import Quantization, relative_error
from eagle3cli.data.hidden_states.rows import LAST, TOKENS, RowCodec, RowCounts, StateRow, row_codec

STATES_KEPT = 4096


def sample_rows(counts: RowCounts, tokens: int) -> list[int]:
    """Numbers of rows with loss, evenly over the data, of about ``tokens`` in all (at least one row)."""
    useful = (counts.counts_N3[:, LAST] > 0).nonzero()[:, 0]
    mean = float(counts.counts_N3[useful, TOKENS].double().mean())
    wanted = min(len(useful), max(1, round(tokens / mean)))
    chosen: list[int] = useful[torch.arange(wanted) * len(useful) // wanted].tolist()
    return chosen


def fit_codec(encoding: Quantization, states: Sequence[StateRow]) -> RowCodec:
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
