"""eagle3 export: a trained draft as a folder that servers load."""

from __future__ import annotations

from eagle3cli.cli.command import Command
from eagle3cli.console.out import Out
from eagle3cli.settings.tables import Settings


def run(settings: Settings, out: Out) -> None:
    """Write, check and reload the draft; print the lines that serve it; upload it where asked."""
    from eagle3cli.cli.preflight.preflight import preflight

    preflight(COMMAND, settings, out)
    import torch

    from eagle3cli.models.hub import check_repository, push
    from eagle3cli.serving.draft_folder import write_draft

    options = settings.export
    if options.push:
        check_repository(options.push)
    written = write_draft(settings, out, dtype=getattr(torch, options.dtype), layout=options.layout)
    draft = written.draft
    dtype = options.outtype or options.dtype
    is_gguf = draft.layout == "gguf"
    lines = written.served.lines
    serving = ["serve it:", *(f"  {line}" for line in lines.values())] if lines else ["no server that is known runs it"]
    text = (
        f"{written.source} -> {options.output_path} ({draft.layout}, {dtype})\n"
        f"names, shapes, types and config checked; reloads to the same logits; {dtype} kept the best token on "
        f"{draft.same_proposals:.1%} of random states\n" + "\n".join([*serving, *written.served.notes(draft.config)])
    )
    url = push(options.output_path, options.push, private=options.private) if options.push else None
    if url:
        text += f"\nuploaded to {url}"
    values = {"draft.path": str(options.output_path), "target.model_path": written.target}
    out.next("bench", {"bench.engine": "llama.cpp", **values} if is_gguf else values)
    data = {"source": written.source, "draft": options.output_path, "layout": draft.layout, "dtype": dtype}
    shares = {"same_proposals": draft.same_proposals, "largest_change": draft.largest_change}
    served = {"served_by": list(lines), "serve": next(iter(lines.values()), None), "serve_lines": lines, "url": url}
    why = {"refused_by": written.served.refused, "needs": written.served.needs}
    out.result({**data, "aux_layers": draft.config.aux_layers, **shares, **served, **why}, text)


COMMAND = Command(
    name="export",
    summary="Write a trained draft for SGLang and vLLM, or as a GGUF file for llama.cpp, checked tensor by tensor.",
    examples=(
        "eagle3 export --draft-model-path runs/train --output-path runs/draft",
        "eagle3 export --layout gguf --outtype q8_0 --draft-model-path runs/train --output-path runs/draft-gguf",
    ),
    fields=("draft.path", "draft.aux_layers", "target.model_path", "target.adapter", "target.revision", "export.*"),
    run=run,
    loads_torch=True,
)
