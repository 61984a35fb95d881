"""What eagle3 check-template says of templates and masks, for people and for scripts."""

from __future__ import annotations

from dataclasses import asdict

from eagle3cli.data.chat.template_check import Comparison
from eagle3cli.data.tokens.mask_check import Judgement


def comparison_data(comparison: Comparison) -> dict[str, object]:
    """One conversation's comparison for ``--json``."""
    difference = asdict(comparison.difference) if comparison.difference else None
    return {
        "probe": comparison.sample,
        "equal": comparison.equal,
        "detail": comparison.detail,
        "difference": difference,
    }


def comparison_lines(name: str, comparisons: list[Comparison], *, details: bool) -> list[str]:
    """How many conversations a named template renders as the tokenizer's own; with ``details`` each of them."""
    same = sum(comparison.equal for comparison in comparisons)
    lines = [f"{name}: {same} of {len(comparisons)} conversations render as the tokenizer's own template renders them"]
    for comparison in comparisons if details else ():
        lines.append(f"  {'equal' if comparison.equal else 'DIFFERS':<8} {comparison.sample}: {comparison.detail}")
        if comparison.difference is not None:
            lines.append(f"           tokenizer's own: {comparison.difference.own!r}")
            lines.append(f"           {name}: {comparison.difference.named!r}")
    return lines


def mask_lines(judged: list[tuple[str, Judgement]], stops: tuple[str, ...], end: str) -> list[str]:
    """What the judge says: a line in all where every mask is right, and one more for each probe that has none."""
    right = sum(judgement.verdict == "right" for _, judgement in judged)
    written = f"the template ends a reply with {end!r}" if end else "the template ends no reply, so eos does"
    lines = [f"stops: {' '.join(stops)}; {written}", f"masks: {right} of {len(judged)} probing rows are right"]
    for probe, judgement in judged:
        if judgement.verdict != "right":
            word = judgement.verdict.upper() if judgement.verdict == "wrong" else judgement.verdict
            lines.append(f"  {word:<8} {probe}: {judgement.detail}")
        if judgement.verdict == "wrong":
            lines += [f"           {line}" for line in judgement.shown.splitlines()]
    return lines
