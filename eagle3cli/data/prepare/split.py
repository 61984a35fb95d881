"""Drawing rows: exact sizes, from a seed, in bounded memory, and no prompt or id on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eagle3cli.data.prepare.dispositions import APART, HELD_OUT, KEPT, LEFT_OUT, Fates, kept, mix
from eagle3cli.data.prepare.external_sort import Block, Records

_GROUP = np.dtype([("prompt", "u8"), ("size", "u8"), ("bound", "u8"), ("draw", "u8")])
"""Rows with an equal first user message; ``bound`` is more than 0 where they share an id with another prompt."""
_BLOCK = 1 << 16


def sample(fates: Fates, size: int, seed: int, start: int = 0, end: int | None = None) -> int:
    """Leave all but ``size`` of the kept rows ``start`` to ``end - 1`` out; every choice is equally likely.

    Returns how many stay: fewer than ``size`` where there are not so many.
    """
    end = len(fates) if end is None else end
    rng = np.random.default_rng([seed, start])
    parts = [(at, min(at + _BLOCK, end)) for at in range(start, end, _BLOCK)]
    left = sum(int(np.count_nonzero(fates[a:b] == KEPT)) for a, b in parts)
    wanted = size = min(size, left)
    for a, b in parts:
        found = np.flatnonzero(fates[a:b] == KEPT) + a
        share = len(found) if wanted == left else 0
        if 0 < wanted < left and len(found):
            share = int(rng.hypergeometric(wanted, left - wanted, len(found)))
        fates[np.delete(found, rng.choice(len(found), share, replace=False))] = LEFT_OUT
        wanted, left = wanted - share, left - len(found)
    return size


def hold_out(rows: Records, fates: Fates, size: int, seed: int, folder: Path) -> int:
    """Mark ``size`` of the kept rows as HELD_OUT; returns how many could be, fewer only where rows are too few.

    Rows with an equal first user message stay on one side; where a group of them is larger than what is still to be
    held out, what is over is left APART. A prompt that shares an id with another prompt is never held out.
    """
    groups = _groups(rows, fates, seed, folder)
    whole, (cut_prompt, cut_size) = _choose(groups, size)
    groups.close()
    held = 0
    for block in kept(rows.blocks(), fates):
        chosen = block["row"][np.isin(block["prompt"], whole)]
        fates[chosen] = HELD_OUT
        held += len(chosen)
        if cut_prompt is not None:
            over = block["row"][block["prompt"] == cut_prompt]
            fates[over] = APART
            fates[over[:cut_size]] = HELD_OUT
            held += min(cut_size, len(over))
            cut_size -= min(cut_size, len(over))
    return held


def _choose(groups: Records, size: int) -> tuple[npt.NDArray[np.uint64], tuple[int | None, int]]:
    """Prompts that are held out in whole, and one of which only some rows are (and how many)."""
    whole, too_large = [], None
    for block in groups.sorted_by("draw"):
        for prompt, count in zip(block["prompt"].tolist(), block["size"].tolist(), strict=True):
            if not size:
                break
            if count <= size:
                whole.append(prompt)
                size -= count
            elif too_large is None:
                too_large = prompt
    cut = (too_large, size) if size and too_large is not None else (None, 0)
    return np.array(sorted(whole), np.uint64), cut


def _groups(rows: Records, fates: Fates, seed: int, folder: Path) -> Records:
    """A record for each prompt that may be held out."""
    marks = Records(_GROUP, folder)
    for block in kept(rows.blocks(), fates):
        marks.extend(_marks(block["prompt"], size=1, bound=0))
    for prompts in _sharing_a_name(kept(rows.sorted_by("name"), fates)):
        marks.extend(_marks(prompts, size=0, bound=1))
    groups = Records(_GROUP, folder)
    salt = np.random.default_rng(seed).integers(0, 2**63, dtype=np.uint64)

    def close(sums: Block) -> None:
        free = sums[sums["bound"] == 0]
        free["draw"] = mix(free["prompt"] ^ salt)
        groups.extend(free)

    last = np.empty(0, _GROUP)
    for block in marks.sorted_by("prompt"):
        sums = _summed(np.concatenate([last, block]))
        close(sums[:-1])
        last = sums[-1:].copy()
    close(last)
    marks.close()
    return groups


def _marks(prompts: npt.NDArray[np.uint64], **values: Any) -> Block:
    block = np.zeros(len(prompts), _GROUP)
    block["prompt"] = prompts
    for name, value in values.items():
        block[name] = value
    return block


def _summed(block: Block) -> Block:
    """Sizes and bounds of neighbouring records with equal prompts, added up."""
    starts = np.flatnonzero(np.append(True, block["prompt"][1:] != block["prompt"][:-1]))
    sums = block[starts].copy()
    for name in ("size", "bound"):
        sums[name] = np.add.reduceat(block[name], starts)
    return sums


def _sharing_a_name(blocks: Iterator[Block]) -> Iterator[npt.NDArray[np.uint64]]:
    """Prompts of rows that share an id with a row of another prompt; ``blocks`` are sorted by name."""
    last: Block | None = None
    for block in blocks:
        joined = block if last is None else np.concatenate([last, block])
        names, prompts = joined["name"], joined["prompt"]
        differ = np.flatnonzero((names[1:] == names[:-1]) & (prompts[1:] != prompts[:-1]))
        yield np.unique(np.concatenate([prompts[differ], prompts[differ + 1]]))
        last = joined[-1:].copy()
