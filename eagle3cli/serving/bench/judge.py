"""Whether a draft's greedy answers are those of plain decoding, and where not, whether it was a near tie.

How near a tie was is asked of an engine without the draft, after the measurement: a draft's own server is what is under
suspicion. All that is needed stands in the result file, so a stopped run judges what is left when it goes on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from eagle3cli.data.images.tokens import followed_by
from eagle3cli.serving.bench.logit_margin import first_difference
from eagle3cli.serving.bench.results import ResultRow
from eagle3cli.serving.bench.session import Engine, open_conversations
from eagle3cli.serving.bench.tasks import Task

Turn = tuple[int, int]
"""A question and one of its turns, from 1."""


def compare(rows: Sequence[ResultRow], baseline: Sequence[ResultRow]) -> None:
    """Write into every row whether its reply is the baseline's, token by token, and where they part.

    A later turn that follows another reply is another question and is not compared.
    """
    expected_rows = _by_turn(baseline)
    parted: set[tuple[int, int]] = set()
    for row in rows:
        expected = expected_rows.get(_turn(row))
        if expected is None or (row["repeat"], row["question"]) in parted:
            continue
        ids = row["token_ids"]
        expected_ids = expected["token_ids"]
        if ids is None or expected_ids is None:
            row["identical"] = row["answer"] == expected["answer"]
        else:
            at = first_difference(ids, expected_ids)
            row["identical"] = at is None
            if at is not None:
                row["first_difference"] = at
                if at >= min(len(ids), len(expected_ids)):  # one ends there: no two tokens to choose from
                    row["margin"] = None
        if not row["identical"]:
            parted.add((row["repeat"], row["question"]))


def unjudged(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """The rows whose difference nobody has judged yet."""
    return [row for row in rows if "first_difference" in row and "margin" not in row]


def judge(
    rows: Sequence[ResultRow], baseline: Sequence[ResultRow], task: Task, system: str | None, engine: Engine
) -> None:
    """Write into every unjudged row by how much ``engine``, which has no draft, prefers one of the two tokens; None
    where it is no tie at all or the engine does not say. ``rows`` are all of a configuration."""
    open_rows = unjudged(rows)
    expected_rows = _by_turn(baseline)
    for repeat in dict.fromkeys(row["repeat"] for row in open_rows):
        prompts = _prompts([row for row in rows if row["repeat"] == repeat], task, system, engine)
        for row in open_rows:
            if row["repeat"] == repeat:
                at = row["first_difference"]
                ids = row["token_ids"]
                other = expected_rows[_turn(row)]["token_ids"][at]
                margin = engine.logit_margin(followed_by(prompts[_turn(row)], ids[:at]), ids[at], other)
                row["margin"] = None if margin is None or math.isinf(margin) else round(margin, 5)


def identity(rows: Sequence[ResultRow], tie_limit: float) -> ResultRow:
    """How many of the compared answers are the baseline's, and what the others are."""
    compared = [row for row in rows if "identical" in row]
    if not compared:
        return {}
    differing = [row for row in compared if not row["identical"]]
    identical = len(compared) - len(differing)
    at_ties = sum((row.get("margin") is not None and row["margin"] < tie_limit) for row in differing)
    return {
        "compared": len(compared),
        "identical": identical,
        "identical_share": round(identical / len(compared), 4),
        "differences_at_ties": at_ties,
        "differences_beyond_ties": len(differing) - at_ties,
        "differences_unjudged": len(unjudged(rows)),
        "tie_limit": tie_limit,
    }


def _turn(row: ResultRow) -> Turn:
    return row["question"], row["turn"]


def _by_turn(rows: Sequence[ResultRow]) -> dict[Turn, ResultRow]:
    return {_turn(row): row for row in rows if row["repeat"] == 0}


def _prompts(rows: Sequence[ResultRow], task: Task, system: str | None, engine: Engine) -> dict[Turn, Sequence[int]]:
    """The prompt of every reply, as it was asked: the conversations once more, with the replies that they had."""
    replies = {_turn(row): row for row in rows}
    prompts = {}
    for conversation in open_conversations(task.questions, system, multi_turn=True):
        while not conversation.is_complete:
            turn = conversation.index, conversation.replies + 1
            row = replies.get(turn)
            if row is None:
                break
            prompts[turn] = engine.tokenizer.encode(conversation)
            ids = row["token_ids"]
            content = row["answer"] if ids is None else engine.tokenizer.parse_reply(ids).content
            conversation.append_reply(content, row["finish"])
    return prompts
