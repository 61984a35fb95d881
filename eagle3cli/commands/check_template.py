"""eagle3 check-template: whether a named template is the tokenizer's own, and whether masks under it are right."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from eagle3cli.cli.command import Command
from eagle3cli.console.out import Out
from eagle3cli.errors import FAILED, ModelError
from eagle3cli.settings.tables import Settings

if TYPE_CHECKING:
    from eagle3cli.data.chat.template_check import Comparison
    from eagle3cli.data.tokens.mask_check import Judgement


def run(settings: Settings, out: Out) -> int | None:
    """Compare the named template, or all that fit, with the tokenizer's own; judge its masks.

    Returns exit code 1 where named templates fit and none renders every probing conversation as the tokenizer's own
    does, and where a mask is wrong.
    """
    from eagle3cli.cli.local_target import with_local_target
    from eagle3cli.data.chat.template_check import check_template, fitting_templates
    from eagle3cli.data.chat.tokenizer import load_tokenizer
    from eagle3cli.data.tokens.cache import encoder_config
    from eagle3cli.data.tokens.mask_check import judge_of, judge_probes

    settings = with_local_target(settings, out)
    target = settings.target
    name = settings.view.check_template or "auto"
    tokenizer = load_tokenizer(target.model_path, revision=target.revision, trust_remote_code=target.trust_remote_code)
    name = settings.data.chat_template if name == "auto" else name
    if name != "auto":
        checked = [(name, check_template(tokenizer, name))]
    else:
        checked = fitting_templates(tokenizer)
        if not checked and not tokenizer.chat_template:
            raise ModelError("the tokenizer knows the tokens of no named template", where=target.model_path)
    judge = judge_of(replace(encoder_config(settings), chat_template=name, is_preformatted=False, text_marks=None))
    judged = judge_probes(judge)
    wrong = [probe for probe, judgement in judged if judgement.verdict == "wrong"]
    equal = [name for name, comparisons in checked if all(comparison.equal for comparison in comparisons)]
    lines = [line for name, comparisons in checked for line in _lines(name, comparisons, details=len(checked) == 1)]
    if len(checked) > 1:
        lines.append(f"equal: {', '.join(equal)}" if equal else "none is equal; name one to see where it differs")
    lines += _mask_lines(judged, judge.configured, judge.written)
    out.result(
        {
            "tokenizer": target.model_path,
            "equal": equal,
            "templates": {name: [_as_data(comparison) for comparison in comparisons] for name, comparisons in checked},
            "stops": list(judge.configured),
            "end_of_reply": judge.written,
            "masks": [{"probe": probe, **asdict(judgement)} for probe, judgement in judged],
        },
        "\n".join(lines),
    )
    return FAILED if wrong or (checked and not equal) else None


def _as_data(comparison: Comparison) -> dict[str, object]:
    difference = asdict(comparison.difference) if comparison.difference else None
    return {
        "probe": comparison.sample,
        "equal": comparison.equal,
        "detail": comparison.detail,
        "difference": difference,
    }


def _lines(name: str, comparisons: list[Comparison], *, details: bool) -> list[str]:
    same = sum(comparison.equal for comparison in comparisons)
    lines = [f"{name}: {same} of {len(comparisons)} conversations render as the tokenizer's own template renders them"]
    for comparison in comparisons if details else ():
        lines.append(f"  {'equal' if comparison.equal else 'DIFFERS':<8} {comparison.sample}: {comparison.detail}")
        if comparison.difference is not None:
            lines.append(f"           tokenizer's own: {comparison.difference.own!r}")
            lines.append(f"           {name}: {comparison.difference.named!r}")
    return lines


def _mask_lines(judged: list[tuple[str, Judgement]], stops: tuple[str, ...], end: str) -> list[str]:
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


COMMAND = Command(
    name="check-template",
    summary="Judge a chat template: is it the tokenizer's own, which tokens end a reply, and are the masks of probing "
    "rows (tools, reasoning, chains of calls, empty and cut replies) what the target would write?",
    examples=("eagle3 check-template qwen --target-model-path TARGET",),
    fields=(
        *("target.model_path", "target.revision", "target.trust_remote_code"),
        *("data.chat_template", "data.chat_template_kwargs", "data.system_prompt"),
    ),
    arguments=("view.check_template",),
    run=run,
)
