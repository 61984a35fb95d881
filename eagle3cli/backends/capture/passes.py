"""Passes of the target over token rows: batches of similar length, and of each row what a store keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from eagle3cli.backends.target.target import LiveTarget
from eagle3cli.data.hidden_states.rows import StateRow, aux_count, teacher_positions
from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.errors import ModelError
from eagle3cli.runtime.out_of_memory import failed_allocation, is_out_of_memory, release


class PassTooLarge(ModelError):
    """Memory did not suffice for a pass of the target over ``rows`` rows, padded to ``longest`` tokens."""

    def __init__(self, what: str, rows: int, longest: int) -> None:
        fix = "lower --batch-tokens (or --max-length) and run the same command again"
        super().__init__(what, where=f"{rows} rows of up to {longest} tokens", fix=fix)
        self.rows, self.longest = rows, longest


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


def run_batch(target: LiveTarget, rows: Sequence[TokenRow]) -> list[StateRow]:
    """One pass of the target; of each row what a store keeps, states and top tokens where the target is.

    Raises PassTooLarge when memory does not suffice.
    """
    try:
        states = target.capture([row.token_ids.tolist() for row in rows])
        found = []
        for row, (aux_SC, last_SH) in zip(rows, states, strict=True):
            mask = torch.from_numpy(row.loss_mask.astype(bool))
            where = teacher_positions(mask)
            last_RH = last_SH[where.to(last_SH.device)]
            found.append(
                StateRow(
                    token_ids_S=torch.from_numpy(row.token_ids.astype("int64")),
                    loss_mask_S=mask,
                    aux_UC=aux_SC[: aux_count(where)],
                    last_RH=last_RH,
                    top_R=target.head.top_tokens(last_RH),
                )
            )
        return found
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        what = f"memory did not suffice for a pass{failed_allocation(error)}"
        release(error)
    raise PassTooLarge(what, len(rows), max(map(len, rows)))
