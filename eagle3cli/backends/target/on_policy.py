"""Judges, in passes that are made anyway, whether replies are the target's own: see ``data/tokens/on_policy.py``.

A row is judged the first time that it passes: later epochs cost nothing. Log-probabilities are taken where the pass
makes logits, which capture and online training do to find the target's best tokens. Nobody waits for a device.

The shape legend is in ``models/draft.py``.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eagle3cli.backends.target.logits import Head
from eagle3cli.data.hidden_states.rows import teacher_positions
from eagle3cli.data.tokens.on_policy import NEAR_TIE, POSITIONS, SUMS, Floats, OnPolicy, load_or_empty, summarize
from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.runtime.devices import HostCopy, to_device, to_host

ENDS = torch.tensor([int(end) for end in list(POSITIONS.values())[:-1]])


class OnPolicyMeter:
    """What passes have seen of some rows. ``folder`` holds the rows, and what earlier runs saw; None keeps nothing."""

    def __init__(self, rows: int, target: str, sources: Sequence[str] = (), folder: Path | None = None) -> None:
        self.folder = folder
        self.sources = sources
        self.known: OnPolicy = load_or_empty(folder, rows, target)
        self._pending: list[tuple[list[int], HostCopy]] = []
        self._changed = False
        self._lock = threading.Lock()

    def wants(self, rows: Sequence[int]) -> bool:
        """Whether some of these rows have not been judged yet."""
        return not self.known.known(rows)

    def add(
        self,
        rows: Sequence[int],
        token_ids_N: Tensor,
        loss_mask_N: Tensor,
        cu_seqlens: Sequence[int],
        top_N: Tensor,
        judged_2N: Tensor | None = None,
    ) -> None:
        """Add a packed batch of rows: the target's best tokens by position and, where they are known, what
        :meth:`Head.judge` says of the tokens behind. The mask is in the host's memory."""
        teacher_M, slot_M = judged_slots(loss_mask_N, cu_seqlens)
        device = top_N.device
        teacher_M, slot_M = (to_device(index, device) for index in (teacher_M, slot_M))
        answer_M = token_ids_N.to(device)[teacher_M + 1]
        agrees_M = (top_N[teacher_M] == answer_M).float()
        unknown_2M = torch.full((2, len(agrees_M)), float("nan"), device=device)
        judged_2M = unknown_2M if judged_2N is None else judged_2N[:, teacher_M]
        below_M = judged_2M[1].log() - judged_2M[0]  # of two logits
        ties_M = torch.where(below_M.isnan(), below_M, (1 - agrees_M) * (below_M < NEAR_TIE))
        sums = torch.zeros(len(rows) * len(POSITIONS), SUMS, device=device)
        sums.index_add_(0, slot_M, torch.stack((torch.ones_like(agrees_M), agrees_M, *judged_2M, ties_M), 1))
        with self._lock:
            self._pending.append((list(rows), to_host(sums)))

    def top_tokens(
        self, head: Head, number: int, row: TokenRow, last_RH: Tensor, known_R: Tensor | None = None
    ) -> Tensor:
        """The target's best tokens ``[R]`` at the teacher positions of one row, which is judged by the way; ``known_R``
        are they where the states have lost something since they were found."""
        mask_S = torch.from_numpy(row.loss_mask.astype(bool))
        ids_S = torch.from_numpy(row.token_ids.astype("int64"))
        teacher_R = teacher_positions(mask_S)
        if not len(teacher_R) or not self.wants([number]):
            return head.top_tokens(last_RH)
        answer_R = ids_S.roll(-1)[teacher_R].to(last_RH.device)
        top_R, judged_2R = head.judge(last_RH, answer_R)
        top_R = top_R if known_R is None else known_R.to(top_R)
        top_S = top_R.new_full((len(ids_S),), -1)
        judged_2S = judged_2R.new_zeros(2, len(ids_S))
        where = teacher_R.to(last_RH.device)
        top_S[where] = top_R
        judged_2S[:, where] = judged_2R
        self.add([number], ids_S, mask_S, (0, len(ids_S)), top_S, judged_2S)
        return top_R

    def summary(self) -> dict[str, Any]:
        """What is known by now, in numbers for people."""
        self._read()
        return summarize(self.known, self.sources)

    def totals(self) -> Floats:
        """What is known by now of each row, ``[N, 5]``: see :class:`OnPolicy`; zeros where nothing is."""
        self._read()
        return self.known.totals_N5.astype(np.float64)

    def save(self) -> None:
        """Keep what is new beside the rows; raises Eagle3Error where that cannot be written."""
        self._read()
        if self._changed and self.folder is not None:
            self.known.save(self.folder)
            self._changed = False

    def _read(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, []
        for rows, copy in pending:
            sums_BP5 = copy.read().numpy().reshape(len(rows), len(POSITIONS), SUMS)
            new_B = ~self.known.sums_NP5[rows, :, 0].any(1)
            self.known.sums_NP5[np.array(rows)[new_B]] = sums_BP5[new_B]
            self._changed |= bool(new_B.any())


def judged_slots(loss_mask_N: Tensor, cu_seqlens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The positions whose next token is judged, and of each ``row of the batch * ranges + range of its place``.

    Those inside of a reply: position t with ``m[t]`` and ``m[t+1]`` of the same row; a row's first teaches nothing.
    """
    bounds = torch.tensor(cu_seqlens)
    row_N = torch.repeat_interleave(torch.arange(len(bounds) - 1), bounds.diff())
    begins_N = torch.zeros_like(loss_mask_N)
    begins_N[bounds[:-1][bounds.diff() > 0]] = True
    before_N = loss_mask_N.roll(1) & ~begins_N
    position_N = torch.arange(len(loss_mask_N))
    first_N = torch.where(loss_mask_N & ~before_N, position_N, 0).cummax(0).values
    answer_M = (loss_mask_N & before_N & ~begins_N.roll(1)).nonzero()[:, 0]
    known_M = answer_M - first_N[answer_M]
    place_M = torch.bucketize(known_M, ENDS, right=True)
    return answer_M - 1, row_N[answer_M] * len(POSITIONS) + place_M
