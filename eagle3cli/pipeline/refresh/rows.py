"""From rows of a log to rows that the target wrote: a reply is judged by the target, kept, written anew or left out.

A reply is the target's own where nearly all of its tokens are those that the target would have taken, whatever the log
says, and not only because they repeat what somebody else began. One that the log calls the target's greedy reply and
that is not, or that the target finds all but impossible, is foreign: nobody can say what it is, so nothing of its row
is used.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eagle3cli.data.conversations.conversation import to_conversation
from eagle3cli.data.conversations.filters import unwanted_reply
from eagle3cli.data.sources.lines import read_raw_lines
from eagle3cli.data.traffic.select import ORIGIN
from eagle3cli.errors import DataError
from eagle3cli.runtime.files import write_json, writing
from eagle3cli.training.eval.own_replies import JudgedReply

OWN_SHARE = 0.9
"""Share of the target's most likely tokens, near ties among them, from which on a reply is its own."""
UNLIKELY = 0.65
"""Replies less likely than this share of the logarithm of the vocabulary a token are garbage; 1 is blind chance."""
OWN, REGENERATED, FOREIGN, UNJUDGED, LOOPS = "own", "to regenerate", "foreign", "no reply to judge", "repeats itself"
SORTED = "sorted.json"


@dataclass
class Sorted:
    """How the rows of a log were sorted."""

    counts: Counter[str] = field(default_factory=Counter)
    best_share: float = 0.0
    """Mean share of the target's most likely tokens."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON files."""
        return {"counts": dict(self.counts), "best_share": self.best_share}


def sort_rows(traffic: Path, judged: Mapping[str, JudgedReply], vocab_size: int, folder: Path) -> Sorted:
    """Write the rows of ``traffic`` that are the target's own to ``own.jsonl`` and those that it is to answer anew to
    ``off_policy.jsonl``, and what became of all to ``sorted.json``."""
    result = Sorted()
    with writing(folder / "own.jsonl", "wb") as own, writing(folder / "off_policy.jsonl", "wb") as off_policy:
        for _, raw in read_raw_lines(traffic):
            row = json.loads(raw)
            kind = kind_of_row(row, judged.get(row["id"]), vocab_size)
            result.counts[kind] += 1
            if kind in (OWN, REGENERATED):
                (own if kind == OWN else off_policy).write(raw)
    shares = [reply.best_share for reply in judged.values()]
    result.best_share = round(sum(shares) / max(1, len(shares)), 4)
    write_json(folder / SORTED, result.as_dict())
    return result


def kind_of_row(row: Mapping[str, Any], reply: JudgedReply | None, vocab_size: int) -> str:
    """OWN, REGENERATED, FOREIGN or UNJUDGED."""
    if reply is None:
        return UNJUDGED
    if reply.own_share >= OWN_SHARE and row[ORIGIN] != "edited":
        return OWN
    if row[ORIGIN] == "greedy" or reply.mean_logprob < -UNLIKELY * math.log(vocab_size):
        return FOREIGN
    return REGENERATED


def write_shard(sources: Iterable[Path], output: Path) -> Counter[str]:
    """Write the rows of some files as one shard, those that go round in a loop left out; what became of them."""
    counts: Counter[str] = Counter()
    with writing(output, "wb") as file:
        for path in sources:
            for _, raw in read_raw_lines(path) if path.is_file() else ():
                try:
                    looping = unwanted_reply(to_conversation(json.loads(raw)), ["loops"])
                except (DataError, ValueError, RecursionError):
                    looping = "unreadable"
                counts[LOOPS if looping else "usable"] += 1
                if not looping:
                    file.write(raw.rstrip(b"\r\n") + b"\n")
    return counts


def split_rows(rows: Path, train: Path, held_out: Path, count: int) -> int:
    """Write ``count`` rows to ``held_out`` and the others to ``train``: the same ones every time.

    Rows with an equal first message are on one side, but for those of one group where whole ones do not add up to
    ``count``: every request of a program may begin alike. Returns how many held-out rows are of such a group.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for number, (_, raw) in enumerate(read_raw_lines(rows)):
        groups[to_conversation(json.loads(raw)).prompt_key].append(number)
    chosen: set[int] = set()
    others: list[list[int]] = []
    for key in sorted(groups, key=lambda key: hashlib.blake2b(key.encode("utf-8", "surrogatepass")).digest()):
        fits = len(chosen) + len(groups[key]) <= count
        if fits:
            chosen.update(groups[key])
        else:
            others.append(groups[key])
    largest = max(others, key=len, default=[])
    # The last ones: of a conversation that is logged at each turn, later rows hold the replies of those before.
    mixed = largest[len(largest) - min(len(largest), count - len(chosen)) :]
    chosen.update(mixed)
    with writing(train, "wb") as to_train, writing(held_out, "wb") as to_hold_out:
        for number, (_, raw) in enumerate(read_raw_lines(rows)):
            (to_hold_out if number in chosen else to_train).write(raw)
    return len(mixed)
