"""eagle3 import: a draft of another program as a folder of ours, to measure it or to train it on."""

from __future__ import annotations

from eagle3cli.cli.command import Command
from eagle3cli.console.out import Out
from eagle3cli.errors import UsageError
from eagle3cli.settings.tables import Settings


def run(settings: Settings, out: Out) -> None:
    """Read the folder, write it under our names with what its config leaves out, and say what to do next."""
    from eagle3cli.cli.preflight.preflight import preflight

    preflight(COMMAND, settings, out)
    from eagle3cli.serving.draft_folder import write_draft

    if not settings.draft.path:
        raise UsageError(
            "missing-draft", "no draft to read", where="--draft-model-path", fix="give the folder of a draft"
        )
    written = write_draft(settings, out, dtype=None, layout=None)
    draft = written.draft
    folder = settings.export.output_path
    text = (
        f"{written.source} -> {folder} ({draft.layout}; weights bit for bit); reloads to the same logits\n"
        f"train it on: eagle3 train --draft-init draft --draft-model-path {folder}"
    )
    out.next("eval", {"draft.path": str(folder), "target.model_path": written.target})
    data = {"source": written.source, "draft": folder, "layout": draft.layout, "aux_layers": draft.config.aux_layers}
    out.result({**data, "served_by": list(written.served.lines)}, text)


COMMAND = Command(
    name="import",
    summary="Read a draft of SGLang, vLLM, SpecForge, EAGLE or speculators, to measure it or to train it on.",
    examples=("eagle3 import --draft-model-path EAGLE3-LLaMA3.1-Instruct-8B --output-path runs/imported",),
    fields=(
        *("draft.path", "draft.aux_layers", "target.model_path", "target.revision"),
        *("export.output_path", "export.overwrite"),
    ),
    run=run,
    loads_torch=True,
)
