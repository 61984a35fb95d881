"""Rows of the result file: one for each reply, one for each configuration with its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import mean, stdev

from eagle3cli.serving.bench.accuracy import is_right
from eagle3cli.serving.bench.judge import identity
from eagle3cli.serving.bench.questions import Question
from eagle3cli.serving.bench.results import Case, ResultRow
from eagle3cli.serving.bench.session import Measurement
from eagle3cli.serving.client.protocol import Acceptance, Answer

SHORTEST_CONTEXT = 256
"""Tokens of the shortest prompts, which are told as one."""
COUNTER_SLACK = 0.02
"""Share of the tokens by which counters may be off before they are called wrong."""


def request_rows(
    case: Case,
    repeat: int,
    measurement: Measurement,
    questions: Sequence[Question],
    decode: Callable[[Sequence[int]], str],
) -> list[ResultRow]:
    """One row per reply, in the order of the questions."""
    rows = []
    for response in sorted(measurement.responses, key=lambda response: (response.index, response.turn)):
        answer = response.answer
        ids = answer.token_ids
        rows.append(
            {
                "kind": "request",
                **case.name,
                "repeat": repeat,
                "question": response.index,
                "id": questions[response.index].id,
                "category": questions[response.index].category,
                "turn": response.turn + 1,
                "prompt_tokens": len(response.prompt),
                "tokens": answer.tokens,
                "finish": answer.finish,
                "seconds": _round(answer.seconds),
                "ttft": _round(ttft(answer)),
                "inter_token": _round(inter_token(answer)),
                **_counters(answer.acceptance),
                "answer": answer.text if ids is None else decode(ids),
                "token_ids": None if ids is None else list(ids),
            }
        )
    return rows


def _counters(acceptance: Acceptance | None) -> ResultRow:
    if acceptance is None:
        return {}
    return {
        "passes": acceptance.passes,
        "accepted": acceptance.accepted,
        "proposed": acceptance.proposed,
        "accepted_at": list(acceptance.positions),
    }


def grade(rows: Sequence[ResultRow], questions: Sequence[Question], *, run_code: bool) -> None:
    """Write into every row of a first turn whether its answer is right, where that can be told."""
    for row in rows:
        check = questions[row["question"]].check
        if check is not None and row["turn"] == 1:
            right = is_right(row["answer"], check, run_code=run_code)
            if right is not None:
                row["correct"] = right


def configuration_row(
    case: Case,
    passes: Sequence[Measurement],
    rows: Sequence[ResultRow],
    baseline: ResultRow | None,
    tie_limit: float,
    notes: Sequence[str],
    environment: ResultRow,
) -> ResultRow:
    """The numbers of a configuration over all its repeats, and beside its baseline's (None for a baseline).

    ``notes`` say why its answers are not samples of the target; ``environment`` is what it was measured on.
    """
    config = case.config
    row: ResultRow = {
        "kind": "configuration",
        **case.name,
        "batch": config.batch,
        "steps": config.steps,
        "topk": config.topk,
        "draft_tokens": config.tokens,
        "repeats": len(passes),
        "requests": len(rows),
        **_speed(passes, baseline),
        **_accuracy(rows, baseline),
        "by_category": by_category(rows),
        "by_context": by_context(rows),
        "environment": environment,
    }
    if not config.is_baseline:
        row |= _acceptance(passes, rows, config.steps) | identity(rows, tie_limit)
    return row | ({"samples_of_target": False, "notes": list(notes)} if notes else {})


def _speed(passes: Sequence[Measurement], baseline: ResultRow | None) -> ResultRow:
    tokens = [sum(response.answer.tokens for response in one.responses) for one in passes]
    speeds = [count / max(1e-9, one.seconds) for count, one in zip(tokens, passes, strict=True)]
    answers = [response.answer for one in passes for response in one.responses]
    speed = mean(speeds)
    row: ResultRow = {
        "tokens": sum(tokens),
        "seconds": _round(sum(one.seconds for one in passes)),
        "tokens_per_s": round(speed, 2),
        "tokens_per_s_spread": round(stdev(speeds), 2) if len(speeds) > 1 else None,
        "ttft_ms": _milliseconds([ttft(answer) for answer in answers]),
        "inter_token_ms": _milliseconds([inter_token(answer) for answer in answers]),
        "gap_ms": _milliseconds([gap for answer in answers for gap in gaps(answer)]),
    }
    if baseline is not None:
        row["speedup"] = round(speed / baseline["tokens_per_s"], 3)
    return row


def _acceptance(passes: Sequence[Measurement], rows: Sequence[ResultRow], steps: int) -> ResultRow:
    parts = [response.answer.acceptance for one in passes for response in one.responses]
    parts += [one.acceptance for one in passes]
    total = sum((part for part in parts if part is not None), Acceptance(0, 0, 0))
    if not total.passes:
        return {"acceptance_length": None, "tokens_per_pass": None, "accepted_per_position": None}
    after_first = sum(row["tokens"] for row in rows) - len(rows)
    surplus = total.accepted + total.passes - after_first
    slack = COUNTER_SLACK * after_first
    return {
        "passes": total.passes,
        "acceptance_length": round(total.length, 4),
        "tokens_per_pass": round(after_first / total.passes, 4),
        # The last pass of a reply may accept tokens behind its end, so the counters may say a little more.
        "counters_fit": -slack <= surplus <= len(rows) * steps + slack,
        "accepted_per_position": [round(rate, 4) for rate in total.rates] or None,
    }


def by_category(rows: Sequence[ResultRow]) -> dict[str, ResultRow]:
    """The numbers of each category that the questions have, in the order of their names."""
    categories = sorted({row["category"] for row in rows if row["category"]})
    return {name: _part([row for row in rows if row["category"] == name]) for name in categories}


def by_context(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """The numbers by the prompts' length: up to 256 tokens, up to 512, and so on; ``prompt_tokens`` are the bounds."""
    buckets: dict[int, list[ResultRow]] = {}
    for row in rows:
        limit = SHORTEST_CONTEXT
        while limit < row["prompt_tokens"]:
            limit *= 2
        buckets.setdefault(limit, []).append(row)
    return [
        {"prompt_tokens": [0 if limit == SHORTEST_CONTEXT else limit // 2 + 1, limit], **_part(buckets[limit])}
        for limit in sorted(buckets)
    ]


def _part(rows: Sequence[ResultRow]) -> ResultRow:
    """The numbers of some of the replies; those of acceptance only where every reply has its counters."""
    tokens = sum(row["tokens"] for row in rows)
    part = {
        "requests": len(rows),
        "tokens": tokens,
        # As one reader sees it: other requests are under way in the same seconds.
        "request_tokens_per_s": round(tokens / max(1e-9, sum(row["seconds"] for row in rows)), 2),
    }
    if not all("passes" in row for row in rows):
        return part
    total = Acceptance(0, 0, 0)
    for row in rows:
        total += Acceptance(row["passes"], row["accepted"], row["proposed"], tuple(row["accepted_at"]))
    return part | {
        "passes": total.passes,
        "acceptance_length": round(total.length, 4),
        "tokens_per_pass": round((tokens - len(rows)) / max(1, total.passes), 4),
        "accepted_per_position": [round(rate, 4) for rate in total.rates] or None,
    }


def _accuracy(rows: Sequence[ResultRow], baseline: ResultRow | None) -> ResultRow:
    grades = [row["correct"] for row in rows if "correct" in row]
    if not grades:
        return {}
    row: ResultRow = {"judged": len(grades), "accuracy": round(sum(grades) / len(grades), 4)}
    return row | ({} if baseline is None else {"accuracy_baseline": baseline.get("accuracy")})


def ttft(answer: Answer) -> float | None:
    """Seconds until the first token."""
    return answer.frames[0][0] if answer.frames else None


def inter_token(answer: Answer) -> float | None:
    """Seconds from one token to the next, on average."""
    if not answer.frames:
        return None
    first_time, first_tokens = answer.frames[0]
    last_time, last_tokens = answer.frames[-1]
    return (last_time - first_time) / (last_tokens - first_tokens) if last_tokens != first_tokens else None


def gaps(answer: Answer) -> list[float]:
    """Seconds in which a reader waits for more text: a pass may bring several tokens at once."""
    return [after - before for (before, _), (after, _) in pairwise(answer.frames)]


def _milliseconds(seconds: Sequence[float | None]) -> ResultRow | None:
    values = sorted(1000 * value for value in seconds if value is not None)
    if not values:
        return None
    p50, p99 = (round(values[min(len(values) - 1, int(share * len(values)))], 2) for share in (0.5, 0.99))
    return {"mean": round(mean(values), 2), "p50": p50, "p99": p99}


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
