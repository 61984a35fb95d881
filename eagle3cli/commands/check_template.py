"""eagle3 view --check-template: whether a named template is the tokenizer's own."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from eagle3cli.console.out import Out
from eagle3cli.errors import FAILED, ModelError
from eagle3cli.settings.tables import Settings

if TYPE_CHECKING:
    from eagle3cli.data.chat.template_check import Comparison


def check(settings: Settings, name: str, out: Out) -> int | None:
    """Compare ``name`` (auto: the template of the settings, else all that fit) with the tokenizer's own.

    Returns exit code 1 where none renders every probing conversation as the tokenizer's own does.
    """
    from eagle3cli.cli.local_target import with_local_target
    from eagle3cli.data.chat.template_check import check_template, fitting_templates
    from eagle3cli.data.chat.tokenizer import load_tokenizer

    target = with_local_target(settings, out).target
    tokenizer = load_tokenizer(target.model_path, revision=target.revision, trust_remote_code=target.trust_remote_code)
    name = settings.data.chat_template if name == "auto" else name
    if name != "auto":
        checked = [(name, check_template(tokenizer, name))]
    else:
        checked = fitting_templates(tokenizer)
        if not checked:
            raise ModelError("the tokenizer knows the tokens of no named template", where=target.model_path)
    equal = [name for name, comparisons in checked if all(comparison.equal for comparison in comparisons)]
    templates = {name: [_as_data(comparison) for comparison in comparisons] for name, comparisons in checked}
    lines = [line for name, comparisons in checked for line in _lines(name, comparisons, details=len(checked) == 1)]
    if len(checked) > 1:
        lines.append(f"equal: {', '.join(equal)}" if equal else "none is equal; name one to see where it differs")
    out.result({"tokenizer": target.model_path, "equal": equal, "templates": templates}, "\n".join(lines))
    return None if equal else FAILED


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
