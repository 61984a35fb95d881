"""eagle3 eval: acceptance length of a draft on held-out text, simulated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eagle3cli.cli.command import Command
from eagle3cli.cli.dry_run import planner
from eagle3cli.console.out import Out
from eagle3cli.settings.tables import Settings

if TYPE_CHECKING:
    from eagle3cli.models.sampling import Sampling
    from eagle3cli.training.eval.sampled import SampledAcceptance


def run(settings: Settings, out: Out) -> int | None:
    """Simulate acceptance on the held-out replies and show it by depth and turn."""
    from eagle3cli.cli.preflight.preflight import preflight

    preflight(COMMAND, settings, out)
    from eagle3cli.backends.target.auto import load_backend
    from eagle3cli.backends.target.group import single_tp_group
    from eagle3cli.cli.local_target import with_local_target
    from eagle3cli.training.eval.measure import EVAL_BATCH, measure
    from eagle3cli.training.forecast.eval_out_of_memory import evaluation_explained

    with single_tp_group(settings.target, load_backend) as works:
        if not works:
            return None
        settings = with_local_target(settings, out)
        with evaluation_explained(settings, EVAL_BATCH):
            result = measure(settings, out)
    if not result.replies:
        out.warn("no reply in these rows: nothing was measured")
    rows = [
        (
            k,
            f"{counts.acceptance_length:.3f}",
            f"{counts.per_position[-1] if counts.steps else 0:.3f}",
            f"{accuracy:.3f}",
        )
        for k, (counts, accuracy) in enumerate(zip(result.simulated, result.accuracy, strict=True), start=1)
    ]
    out.table(
        "Simulated acceptance", ("draft steps k", "acceptance length", "accepted at k", "accuracy at depth"), rows
    )
    out.table(
        "By place in the reply",
        ("tokens known", "acceptance length", "steps"),
        [(name, f"{counts.acceptance_length:.3f}", counts.steps) for name, counts in result.by_position.items()],
    )
    for sampled in result.sampled:
        out.table(f"Expected acceptance, {name_of(sampled.sampling)}", *sampled_rows(sampled))
    turns = {"first": result.first_turns, "later": result.later_turns}
    deepest = result.simulated[-1]
    data: dict[str, object] = {
        "acceptance_length": {k: round(length, 4) for k, length in enumerate(result.acceptance_lengths, start=1)},
        "accepted_per_position": [round(share, 4) for share in deepest.per_position],
        "accuracy_per_depth": [round(value, 4) for value in result.accuracy],
        "turns": {name: round(counts.acceptance_length, 4) for name, counts in turns.items() if counts.steps},
        "by_reply_position": {name: round(counts.acceptance_length, 4) for name, counts in result.by_position.items()},
        **({"sampled": [sampled_data(sampled) for sampled in result.sampled]} if result.sampled else {}),
        "rows": result.rows,
        "replies": result.replies,
        "tokens": deepest.tokens,
        "steps": deepest.steps,
    }
    text = (
        f"acceptance length {deepest.acceptance_length:.3f} for k={len(result.simulated)} over "
        f"{result.replies} replies of {result.rows} rows ({deepest.tokens} tokens in {deepest.steps} steps)"
    )
    for sampled in result.sampled:
        deepest_sampled = sampled.by_k[-1]
        text += f"\n{deepest_sampled.acceptance_length:.3f} expected by {name_of(sampled.sampling)}"
    out.next("export", {"draft.path": settings.draft.path})
    out.result(data, text)
    return None


def name_of(sampling: Sampling) -> str:
    """``temperature 0.7, top-p 0.95``."""
    parts = [f"temperature {sampling.temperature:g}"]
    parts += [f"top-p {sampling.top_p:g}"] if sampling.top_p < 1 else []
    parts += [f"top-k {sampling.top_k}"] if sampling.top_k else []
    return ", ".join(parts)


def sampled_rows(sampled: SampledAcceptance) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
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


def sampled_data(sampled: SampledAcceptance) -> dict[str, object]:
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


COMMAND = Command(
    name="eval",
    summary="Measure a draft's acceptance length on held-out replies, without a server.",
    examples=(
        "eagle3 eval --target-model-path MODEL --draft-model-path runs/train/best --eval-data-path eval.jsonl",
        "eagle3 eval --target-model-path MODEL --draft-model-path runs/train/best --eval-data-path at-0.7.jsonl "
        "--temperature 0.7 --top-p 0.95",
    ),
    fields=("eval.*", "draft.path", "target.*", "data.*"),
    run=run,
    loads_torch=True,
    plan=planner("eagle3cli.training.forecast.eval_plan:plan_eval"),
)
