"""What an evaluation says: tables and a line for people, numbers for scripts."""

from __future__ import annotations

from typing import Any

from eagle3cli.models.sampling import Sampling
from eagle3cli.training.eval.evaluate import Evaluation, lengths_by
from eagle3cli.training.eval.sampled import SampledAcceptance

Table = tuple[str, tuple[str, ...], list[tuple[object, ...]]]
"""Title, columns, rows."""


def tables(evaluation: Evaluation) -> list[Table]:
    """Acceptance by depth, by place in the reply and in the context, and at every temperature that was asked for."""
    by_depth: list[tuple[object, ...]] = [
        (
            k,
            f"{counts.acceptance_length:.3f}",
            f"{counts.per_position[-1] if counts.steps else 0:.3f}",
            f"{accuracy:.3f}",
        )
        for k, (counts, accuracy) in enumerate(zip(evaluation.simulated, evaluation.accuracy, strict=True), start=1)
    ]
    by_place, by_context = (
        [(name, f"{counts.acceptance_length:.3f}", round(counts.steps)) for name, counts in by_range.items()]
        for by_range in (evaluation.by_position, evaluation.by_context)
    )
    lengths: Table = ("By length of the context", ("tokens before", "acceptance length", "steps"), [*by_context])
    depth_columns = ("draft steps k", "acceptance length", "accepted at k", "accuracy at depth")
    return [
        ("Simulated acceptance", depth_columns, by_depth),
        ("By place in the reply", ("tokens known", "acceptance length", "steps"), [*by_place]),
        *((lengths,) if len(by_context) > 1 else ()),  # a single one says again what the first table says
        *(
            (f"Expected acceptance, {_name_of(sampled.sampling)}", *_sampled_rows(sampled))
            for sampled in evaluation.sampled
        ),
    ]


def as_data(evaluation: Evaluation) -> dict[str, object]:
    """For ``--json``."""
    turns = {"first": evaluation.first_turns, "later": evaluation.later_turns}
    places = evaluation.by_position
    contexts = evaluation.by_context
    deepest = evaluation.simulated[-1]
    return {
        "acceptance_length": {k: round(length, 4) for k, length in enumerate(evaluation.acceptance_lengths, start=1)},
        "accepted_per_position": [round(share, 4) for share in deepest.per_position],
        "accuracy_per_depth": [round(value, 4) for value in evaluation.accuracy],
        "turns": {name: round(counts.acceptance_length, 4) for name, counts in turns.items() if counts.steps},
        "by_reply_position": {name: round(counts.acceptance_length, 4) for name, counts in places.items()},
        "by_context_length": {name: round(length, 4) for name, length in lengths_by(contexts).items()},
        "context_steps": {name: round(counts.steps) for name, counts in contexts.items()},
        **({"sampled": [_sampled_data(sampled) for sampled in evaluation.sampled]} if evaluation.sampled else {}),
        "rows": evaluation.rows,
        "replies": evaluation.replies,
        "tokens": round(deepest.tokens),
        "steps": round(deepest.steps),
    }


def evaluation_numbers(evaluation: Evaluation) -> dict[str, Any]:
    """For the listeners of a training run, as its history keeps them."""
    sampled: dict[str, Any] = {}
    for served in evaluation.sampled:
        sampled = {
            "temperature": served.sampling.temperature,
            "sampled_acceptance_length": served.acceptance_lengths,
            "sampled_accepted_per_position": served.by_k[-1].per_position,
            "overlap": served.overlap,
        }
    return {
        "acceptance_length": evaluation.acceptance_lengths,
        "accepted_per_position": evaluation.simulated[-1].per_position,
        "by_reply_position": lengths_by(evaluation.by_position),
        "by_context_length": lengths_by(evaluation.by_context),
        "context_steps": {name: round(counts.steps) for name, counts in evaluation.by_context.items()},
        "accuracy": list(evaluation.accuracy),
        "rows": evaluation.rows,
        **sampled,
    }


def as_text(evaluation: Evaluation) -> str:
    """The last line."""
    deepest = evaluation.simulated[-1]
    lines = [
        f"acceptance length {deepest.acceptance_length:.3f} for k={len(evaluation.simulated)} over "
        f"{evaluation.replies} replies of {evaluation.rows} rows "
        f"({deepest.tokens:.0f} tokens in {deepest.steps:.0f} steps)"
    ]
    for sampled in evaluation.sampled:
        length = sampled.by_k[-1].acceptance_length
        lines.append(f"{length:.3f} expected by {_name_of(sampled.sampling)}")
    return "\n".join(lines)


def _name_of(sampling: Sampling) -> str:
    """``temperature 0.7, top-p 0.95``."""
    parts = [f"temperature {sampling.temperature:g}"]
    parts += [f"top-p {sampling.top_p:g}"] if sampling.top_p < 1 else []
    parts += [f"top-k {sampling.top_k}"] if sampling.top_k else []
    return ", ".join(parts)


def _sampled_rows(sampled: SampledAcceptance) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """The columns and lines of a table."""
    columns = ("draft steps k", "acceptance length", "accepted at k", "sum of min(p, q) at depth")
    pairs = zip(sampled.by_k, sampled.overlap, strict=True)
    return columns, [
        (
            k,
            f"{counts.acceptance_length:.3f}",
            f"{counts.per_position[-1] if counts.steps else 0:.3f}",
            f"{overlap:.3f}",
        )
        for k, (counts, overlap) in enumerate(pairs, start=1)
    ]


def _sampled_data(sampled: SampledAcceptance) -> dict[str, object]:
    """The same for ``--json``, with how probable the replies' tokens are and would be if they were drawn so."""
    sampling = sampled.sampling
    has, should = sampled.text_probability
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "acceptance_length": {k: round(length, 4) for k, length in enumerate(sampled.acceptance_lengths, start=1)},
        "accepted_per_position": [round(share, 4) for share in sampled.by_k[-1].per_position],
        "overlap_per_depth": [round(value, 4) for value in sampled.overlap],
        "token_probability": round(has, 4),
        "token_probability_if_drawn": round(should, 4),
        "drawn_at_it": sampled.drawn_here,
    }
