"""eagle3 check-template: whether a named template is the tokenizer's own, and whether masks under it are right."""

from __future__ import annotations

from dataclasses import asdict, replace

from eagle3cli.cli.command import Command
from eagle3cli.console.out import Out
from eagle3cli.errors import FAILED, ModelError
from eagle3cli.settings.tables import Settings


def run(settings: Settings, out: Out) -> int | None:
    """Compare the named template, or all that fit, with the tokenizer's own; judge its masks.

    Returns exit code 1 where named templates fit and none renders every probing conversation as the tokenizer's own
    does, and where a mask is wrong.
    """
    from eagle3cli.cli.local_target import with_local_target
    from eagle3cli.console.template_check import comparison_data, comparison_lines, mask_lines
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
            raise ModelError(
                "unknown-template", "the tokenizer knows the tokens of no named template", where=target.model_path
            )
    judge = judge_of(replace(encoder_config(settings), chat_template=name, is_preformatted=False, text_marks=None))
    judged = judge_probes(judge)
    wrong = [probe for probe, judgement in judged if judgement.verdict == "wrong"]
    equal = [name for name, comparisons in checked if all(comparison.equal for comparison in comparisons)]
    lines = [
        line for name, comparisons in checked for line in comparison_lines(name, comparisons, details=len(checked) == 1)
    ]
    if len(checked) > 1:
        lines.append(f"equal: {', '.join(equal)}" if equal else "none is equal; name one to see where it differs")
    lines += mask_lines(judged, judge.configured, judge.written)
    out.result(
        {
            "tokenizer": target.model_path,
            "equal": equal,
            "templates": {
                name: [comparison_data(comparison) for comparison in comparisons] for name, comparisons in checked
            },
            "stops": list(judge.configured),
            "end_of_reply": judge.written,
            "masks": [{"probe": probe, **asdict(judgement)} for probe, judgement in judged],
        },
        "\n".join(lines),
    )
    return FAILED if wrong or (checked and not equal) else None


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
