"""eagle3 cache: token rows with masks, and the draft's vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eagle3cli.commands.command import Command
from eagle3cli.errors import SOME_ROWS_FAILED

if TYPE_CHECKING:
    from eagle3cli.console.out import Out
    from eagle3cli.settings.tables import Settings


def run(settings: Settings, out: Out) -> int | None:
    """Build the cache (or find it) and say what is in it."""
    from eagle3cli.backends.hf import read_target_config
    from eagle3cli.commands.local_target import with_local_target
    from eagle3cli.data.cache import open_or_build
    from eagle3cli.data.ledger import ERRORS
    from eagle3cli.models.config import read_draft_config

    settings = with_local_target(settings, out)
    wished, target = settings.draft, read_target_config(settings.target)
    draft = read_draft_config(wished.config, target, draft_vocab_size=wished.vocab_size, aux_layers=wished.aux_layers)
    cached = open_or_build(settings, draft.draft_vocab_size, draft.vocab_size, out)
    summary = {name: value for name, value in cached.summary.items() if name != "special_ids"}
    if settings.cache.view_train_data:
        from eagle3cli.console.tokens import page
        from eagle3cli.data.show import show

        out.print(page(show(settings, rows=settings.cache.view_train_data), colour=out.colour))
    splits = [name for name in ("train", "eval") if name in summary]
    lines = ["cached" if summary["built"] else "already cached, nothing to do"]
    for name in splits:
        lines += split_lines(name, summary[name])
    vocab = summary["vocab"]
    sizes = ", ".join(f"{size:,}: {share:.1%}" for size, share in vocab["coverage_by_size"].items())
    lines.append(f"draft vocabulary: {vocab['size']:,} of {vocab['target_size']:,} tokens")
    lines.append(f"  reply tokens of {vocab['coverage_of']} that it covers, by size: {sizes}")
    if any(summary[name]["rejected"] or summary[name]["no_span"] for name in splits):
        lines.append(f"rows that need a look: {cached.folder / ERRORS}")
    lines += [
        f"rows: {cached.folder}",
        f"vocabulary: {vocab['file']}",
        "next: eagle3 train, with the same flags or settings file",
    ]
    out.result({"folder": cached.folder, **summary}, "\n".join(lines))
    return SOME_ROWS_FAILED if any(summary[name]["rejected"] for name in splits) else None


def split_lines(name: str, counts: dict[str, Any]) -> list[str]:
    """What a person should know of one split."""
    share = counts["loss_tokens"] / max(1, counts["tokens"])
    lines = [
        f"{name}: {counts['rows']:,} rows, {counts['tokens']:,} tokens, {counts['loss_tokens']:,} trained, {share:.0%}",
        f"  truncated {counts['truncated']:,}, without a reply {counts['no_span']:,}, rejected {counts['rejected']:,}",
    ]
    lines += [f"  {count:,} x {reason}" for reason, count in counts["reasons"].items()]
    return lines + [f"  {count:,} repaired: {repair}" for repair, count in counts["repaired"].items()]


COMMAND = Command(
    name="cache",
    summary="Tokenise conversations, mask the target's replies, choose the draft's vocabulary.",
    examples=(
        "eagle3 cache --target-model-path TARGET --train-data-path cache/dataset/train.jsonl --view-train-data 1 2",
    ),
    fields=(
        *("target.model_path", "target.revision", "target.trust_remote_code"),
        *("draft.config", "draft.vocab_size"),
        *(
            f"data.{name}"
            for name in ("train_path", "eval_path", "cache_dir", "chat_template", "max_length", "num_proc")
        ),
        *("data.is_preformatted", "data.last_turn_only", "cache.*"),
    ),
    run=run,
)
