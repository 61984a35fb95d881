"""Some of the target's states, in memory, from which a draft's initial weights are solved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from eagle3cli.backends.batches.batch import TargetBatch


@dataclass(frozen=True)
class Sample:
    """Sequences with the target's states, side by side, and the rows among their positions: some p of replies."""

    token_N: Tensor
    aux_NC: Tensor
    """In the type they came in."""
    cu_seqlens: tuple[int, ...]
    position_R: Tensor
    """Packed position p of every row, ascending."""
    last_RH: Tensor
    """The target's last hidden state at p+1, before the final norm's weight; fp32."""

    @property
    def aux_RC(self) -> Tensor:
        """The rows' auxiliary states, a copy in fp32."""
        return self.aux_NC[self.position_R].float()

    @property
    def token_R(self) -> Tensor:
        """``x_{p+1}`` of every row."""
        return self.token_N[self.position_R + 1]


def gather_sample(batches: Iterable[TargetBatch], final_norm_H: Tensor, rows: int) -> Sample:
    """Collect up to ``rows`` rows from batches, and at most twice as many positions in all once a batch was read."""
    tokens: list[Tensor] = []
    aux: list[Tensor] = []
    last: list[Tensor] = []
    positions: list[Tensor] = []
    bounds = [0]
    count = 0
    for batch in batches:
        mask = batch.loss_mask_N
        next_has_loss = torch.cat((mask[1:], mask.new_zeros(1)))
        second_has_loss = torch.cat((mask[2:], mask.new_zeros(min(2, len(mask)))))[: len(mask)]
        useful = next_has_loss & second_has_loss
        for begin, end in pairwise(batch.cu_seqlens):
            useful[max(begin, end - 2) : end] = False  # what comes next there is another row's
        at = useful.nonzero()[:, 0].to(batch.aux_NC.device)
        tokens.append(batch.token_ids_N)
        aux.append(batch.aux_NC)
        last.append(batch.last_NH[at + 1].float() / final_norm_H.float())
        positions.append(at + bounds[-1])
        before = bounds[-1]
        bounds += [before + end for end in batch.cu_seqlens[1:]]
        count += len(at)
        if count >= rows or bounds[-1] >= 2 * rows:
            break
    return Sample(torch.cat(tokens), torch.cat(aux), tuple(bounds), torch.cat(positions)[:rows], torch.cat(last)[:rows])
