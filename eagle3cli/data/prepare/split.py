"""Drawing rows: exact sizes, from a seed, in bounded memory, and no prompt or id on both sides."""

from __future__ import annotations

import numpy as np

from eagle3cli.data.prepare.row_table import APART, HELD_OUT, KEPT, LEFT_OUT, RowTable

_BLOCK = 1 << 16
_KEPT_ROWS = f"SELECT row FROM rows WHERE disposition = {KEPT} AND row >= ? AND row < ? ORDER BY row"
_GROUPS = f"""
SELECT prompt, count(*) FROM rows WHERE disposition = {KEPT} GROUP BY prompt HAVING prompt NOT IN (
  SELECT prompt FROM rows WHERE disposition = {KEPT} AND name IN (
    SELECT name FROM rows WHERE disposition = {KEPT} GROUP BY name HAVING min(prompt) <> max(prompt)
  )
) ORDER BY prompt"""
"""Prompts in the order in which they are drawn, with their rows; not those of a row that shares its id with another
prompt."""


def sample(rows: RowTable, size: int, seed: int, start: int = 0, end: int | None = None) -> int:
    """Leave all but ``size`` of the kept rows ``start`` to ``end - 1`` out; every choice is equally likely.

    Returns how many stay: fewer than ``size`` where there are not so many.
    """
    end = len(rows) if end is None else end
    rng = np.random.default_rng([seed, start])
    left = rows.count(KEPT, first=start, end=end)
    to_draw = size = min(size, left)
    for at in range(start, end, _BLOCK):
        block = [row for (row,) in rows.run(_KEPT_ROWS, at, min(at + _BLOCK, end))]
        drawn = len(block) if to_draw == left else 0
        if 0 < to_draw < left and block:
            drawn = int(rng.hypergeometric(to_draw, left - to_draw, len(block)))
        stay = rng.choice(len(block), drawn, replace=False)
        rows.mark(np.delete(block, stay).tolist(), LEFT_OUT)
        to_draw -= drawn
        left -= len(block)
    return size


def hold_out(rows: RowTable, size: int) -> int:
    """Mark ``size`` of the kept rows as HELD_OUT; returns how many could be, fewer only where rows are too few.

    Rows with an equal first user message stay on one side; where a group of them is larger than what is still to be
    held out, what is over is left APART. A prompt that shares an id with another prompt is never held out.
    """
    left = size
    whole: list[int] = []
    too_large: int | None = None
    for prompt, count in rows.run(_GROUPS):
        if not left:
            break
        if count <= left:
            whole.append(prompt)
            left -= count
        elif too_large is None:
            too_large = prompt
    rows.run_many("INSERT INTO held_out_prompts VALUES (?)", ((prompt,) for prompt in whole))
    rows.run(
        f"UPDATE rows SET disposition = {HELD_OUT} "
        f"WHERE disposition = {KEPT} AND prompt IN (SELECT prompt FROM held_out_prompts)"
    )
    if left and too_large is not None:
        of_prompt = f"SELECT row FROM rows WHERE disposition = {KEPT} AND prompt = ? ORDER BY row"
        rows.run(f"UPDATE rows SET disposition = {HELD_OUT} WHERE row IN ({of_prompt} LIMIT ?)", too_large, left)
        rows.run(f"UPDATE rows SET disposition = {APART} WHERE disposition = {KEPT} AND prompt = ?", too_large)
        left = 0
    return size - left
