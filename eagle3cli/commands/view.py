"""eagle3 view: what is trained on, token by token."""

from __future__ import annotations

from eagle3cli.cli.command import TOKENIZE_FIELDS, Command
from eagle3cli.console.out import Out
from eagle3cli.settings.tables import Settings


def run(settings: Settings, out: Out) -> int | None:
    """Show rows in the terminal, and as an HTML page where one was asked for."""
    if settings.view.check_template is not None:
        from eagle3cli.commands.check_template import run as check

        return check(settings, out)
    from eagle3cli.cli.local_target import with_local_target
    from eagle3cli.console.report import refuse_foreign
    from eagle3cli.console.tokens import PAGE_START, Style, as_data, html, page
    from eagle3cli.data.inspect.show import show
    from eagle3cli.runtime.files import write_text

    settings = with_local_target(settings, out)
    shown = show(settings)
    view = settings.view
    style = Style(out.colour, view.ids, view.whitespace)
    text = page(shown, style)
    if view.html is not None:
        refuse_foreign(view.html, PAGE_START, "page of eagle3 view", "--html")
        write_text(view.html, html(shown, style))
        text += f"\n\npage: {view.html}"
    data: dict[str, object] = {"source": shown.source, "draft_vocab": shown.draft_vocab}
    out.result({**data, "html": view.html, "rows": as_data(shown)}, text)
    return None


FIELDS = (
    *("view.path", "view.id", "view.random", "view.worst", "view.seed", "view.ids", "view.whitespace", "view.html"),
    "view.check_template",
    *("target.model_path", "target.revision", "target.trust_remote_code"),
    *("data.train_path", "data.eval_path", "data.cache_dir", *TOKENIZE_FIELDS),
)

COMMAND = Command(
    name="view",
    summary="Show rows token by token: green is trained, red is not, underlined is unknown to the draft.",
    examples=(
        "eagle3 view 1 2 --path cache/dataset/train.jsonl --target-model-path TARGET",
        "eagle3 view --random 3 --seed 1 --html rows.html",
        "eagle3 view --worst 3 --path cache/hidden_states/train",
        "eagle3 view 7 --path cache/hidden_states/train --ids --whitespace",
        "eagle3 view --check-template qwen --target-model-path TARGET",
    ),
    fields=FIELDS,
    arguments=("view.rows",),
    run=run,
)
