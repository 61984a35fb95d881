"""Rows of the result file: one for each answer, one for each configuration with its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev

from eagle3cli.serving.bench.accuracy import is_right
from eagle3cli.serving.bench.questions import Question
from eagle3cli.serving.bench.results import Case, Row
from eagle3cli.serving.bench.session import Measured
from eagle3cli.serving.bench.ties import first_difference
from eagle3cli.serving.client.protocol import Acceptance, Answer

LOOSE = 0.02
"""Share of the tokens by which counters may be off before they are called wrong."""
Margin = Callable[[Sequence[int], int, int], float | None]


def request_rows(
    case: Case,
    repeat: int,
    measured: Measured,
    questions: Sequence[Question],
    text: Callable[[str, Sequence[int] | None], str],
) -> list[Row]:
    """One row per answer, in the order of the questions."""
    rows = []
    for heard in sorted(measured.heard, key=lambda heard: (heard.number, heard.turn)):
        answer, question = heard.answer, questions[heard.number]
        told = answer.acceptance
        spoken = {} if told is None else _counts(told)
        place = {"repeat": repeat, "question": heard.number, "id": question.id, "turn": heard.turn + 1}
        size = {"prompt_tokens": len(heard.prompt), "tokens": answer.tokens, "finish": answer.finish}
        said = {
            "answer": text(answer.text, answer.token_ids),
            "token_ids": None if answer.token_ids is None else list(answer.token_ids),
        }
        times = {"seconds": _round(answer.seconds), "ttft": _round(ttft(answer)), "inter_token": _round(pace(answer))}
        rows.append({"kind": "request", **case.name, **place, **size, **times, **spoken, **said})
    return rows


def judge(rows: Sequence[Row], questions: Sequence[Question], *, run_code: bool) -> None:
    """Write into every row of a first turn whether its answer is right, where that can be told."""
    for row in rows:
        check = questions[row["question"]].check
        if check is not None and row["turn"] == 1:
            right = is_right(row["answer"], check, run_code=run_code)
            if right is not None:
                row["correct"] = right


def compare(
    rows: Sequence[Row], baseline: Sequence[Row], prompts: Mapping[tuple[int, int], Sequence[int]], margin: Margin
) -> None:
    """Write into every row whether its answer is the baseline's, token by token, and where not how near a tie.

    A later turn that follows another answer is another question and is not compared.
    """
    expected = {(row["question"], row["turn"]): row for row in baseline if row["repeat"] == 0}
    parted: set[tuple[int, int]] = set()
    for row in rows:
        place = (row["question"], row["turn"])
        other = expected.get(place)
        if other is None or (row["repeat"], row["question"]) in parted:
            continue
        one, two = row["token_ids"], other["token_ids"]
        if one is None or two is None:
            row["identical"] = row["answer"] == other["answer"]
        else:
            at = first_difference(one, two)
            row["identical"] = at is None
            if at is not None:
                row["first_difference"] = at
                inside = at < min(len(one), len(two))
                gap = margin([*prompts[place], *one[:at]], one[at], two[at]) if inside else None
                row["margin"] = None if gap is None or math.isinf(gap) else round(gap, 5)
        if not row["identical"]:
            parted.add((row["repeat"], row["question"]))


def configuration_row(
    case: Case, passes: Sequence[Measured], rows: Sequence[Row], baseline: Row | None, tie: float, notes: Sequence[str]
) -> Row:
    """The numbers of a configuration over all its repeats, and beside its baseline's."""
    config = case.config
    told: Row = {"kind": "configuration", **case.name, "batch": config.batch, "steps": config.steps}
    told |= {"topk": config.topk, "draft_tokens": config.tokens, "repeats": len(passes), "requests": len(rows)}
    told |= _speed(passes, None if config.is_baseline else baseline)
    told |= _accuracy(rows, None if config.is_baseline else baseline)
    if not config.is_baseline:
        told |= _acceptance(passes, rows, config.steps) | _sameness(rows, tie)
    return told | ({"notes": list(notes)} if notes else {})


def _speed(passes: Sequence[Measured], baseline: Row | None) -> Row:
    tokens = [sum(heard.answer.tokens for heard in one.heard) for one in passes]
    speeds = [count / max(1e-9, one.seconds) for count, one in zip(tokens, passes, strict=True)]
    answers = [heard.answer for one in passes for heard in one.heard]
    speed = mean(speeds)
    found: Row = {
        "tokens": sum(tokens),
        "seconds": _round(sum(one.seconds for one in passes)),
        "tokens_per_s": round(speed, 2),
        "tokens_per_s_spread": round(stdev(speeds), 2) if len(speeds) > 1 else None,
        "ttft_ms": _milliseconds([ttft(answer) for answer in answers]),
        "inter_token_ms": _milliseconds([pace(answer) for answer in answers]),
        "gap_ms": _milliseconds([gap for answer in answers for gap in gaps(answer)]),
    }
    if baseline is not None:
        found["speedup"] = round(speed / baseline["tokens_per_s"], 3)
    return found


def _acceptance(passes: Sequence[Measured], rows: Sequence[Row], steps: int) -> Row:
    parts = [heard.answer.acceptance for one in passes for heard in one.heard]
    parts += [one.acceptance for one in passes]
    total = sum((part for part in parts if part is not None), Acceptance(0, 0, 0))
    if not total.passes:
        return {"acceptance_length": None, "tokens_per_pass": None, "accepted_per_position": None}
    after_first = sum(row["tokens"] for row in rows) - len(rows)
    over = total.accepted + total.passes - after_first
    slack = LOOSE * after_first
    return {
        "passes": total.passes,
        "acceptance_length": round(total.length, 4),
        "tokens_per_pass": round(after_first / total.passes, 4),
        # The last pass of an answer may accept tokens behind its end, so the counters may say a little more.
        "counters_fit": -slack <= over <= len(rows) * steps + slack,
        "accepted_per_position": [round(rate, 4) for rate in total.rates] or None,
    }


def _sameness(rows: Sequence[Row], tie: float) -> Row:
    compared = [row for row in rows if "identical" in row]
    if not compared:
        return {}
    differing = [row for row in compared if not row["identical"]]
    same = len(compared) - len(differing)
    return {
        "compared": len(compared),
        "identical": same,
        "identical_share": round(same / len(compared), 4),
        "differences_at_ties": sum((row.get("margin") is not None and row["margin"] < tie) for row in differing),
        "tie_limit": tie,
    }


def _accuracy(rows: Sequence[Row], baseline: Row | None) -> Row:
    judged = [row["correct"] for row in rows if "correct" in row]
    if not judged:
        return {}
    found: Row = {"judged": len(judged), "accuracy": round(sum(judged) / len(judged), 4)}
    return found | ({} if baseline is None else {"accuracy_baseline": baseline.get("accuracy")})


def ttft(answer: Answer) -> float | None:
    """Seconds until the first token."""
    return answer.frames[0][0] if answer.frames else None


def pace(answer: Answer) -> float | None:
    """Seconds from one token to the next, on average."""
    if not answer.frames or answer.frames[-1][1] == answer.frames[0][1]:
        return None
    (first, some), (last, all_of_them) = answer.frames[0], answer.frames[-1]
    return (last - first) / (all_of_them - some)


def gaps(answer: Answer) -> list[float]:
    """Seconds in which a reader waits for more text: a pass may bring several tokens at once."""
    times = [time for time, _ in answer.frames]
    return [after - before for before, after in zip(times, times[1:], strict=False)]


def _milliseconds(values: Sequence[float | None]) -> Row | None:
    known = sorted(1000 * value for value in values if value is not None)
    if not known:
        return None
    places = {"p50": 0.5, "p99": 0.99}
    found = {name: round(known[min(len(known) - 1, int(share * len(known)))], 2) for name, share in places.items()}
    return {"mean": round(mean(known), 2), **found}


def _counts(told: Acceptance) -> Row:
    return {
        "passes": told.passes,
        "accepted": told.accepted,
        "proposed": told.proposed,
        "accepted_at": list(told.positions),
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def prompts_of(measured: Measured) -> dict[tuple[int, int], Sequence[int]]:
    """What was asked, by question and turn."""
    return {(heard.number, heard.turn + 1): heard.prompt for heard in measured.heard}
