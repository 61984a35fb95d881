"""eagle3 export: a trained draft as a folder that SGLang loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from eagle3cli.commands.command import Command

if TYPE_CHECKING:
    from eagle3cli.console.out import Out
    from eagle3cli.settings.tables import Settings


def run(settings: Settings, out: Out) -> None:
    """Write, check and reload the draft; print the line that serves it."""
    import torch

    from eagle3cli.backends.gguf import local_folder
    from eagle3cli.backends.head import read_config, read_embedding_and_head
    from eagle3cli.models.checkpoint import has_embedding
    from eagle3cli.models.export import Exported, export_draft, find_draft, serve_lines, target_of
    from eagle3cli.runtime.files import refuse_existing, write_folder

    wanted = settings.export
    source = find_draft(Path(settings.draft.path) if settings.draft.path else settings.train.output_dir)
    target = settings.target.model_path or target_of(source)
    target = local_folder(target, settings.data.cache_dir / "models", out) if target else None
    config = read_config(target, revision=settings.target.revision) if target else None
    embedding = None
    if target and has_embedding(source):
        embedding, _ = read_embedding_and_head(target, revision=settings.target.revision)
    if not wanted.overwrite:
        refuse_existing(wanted.output_path, overwrite=False)
    made: list[Exported] = []
    write_folder(
        wanted.output_path,
        lambda folder: made.append(
            export_draft(
                source,
                folder,
                dtype=getattr(torch, wanted.dtype),
                layout=wanted.layout,
                target=config,
                target_embedding=embedding,
                aux_layers=settings.draft.aux_layers,
            )
        ),
    )
    draft = made[0]
    for note in draft.notes:
        out.info(note)
    if not target:
        out.warn("the target is not known: context length and vocabulary were not checked; give --target-model-path")
    lines = serve_lines(target or "TARGET", wanted.output_path, draft.config, steps=settings.run.k)
    shares = {"same_proposals": draft.same_proposals, "largest_change": draft.largest_change}
    data = {"source": source, "draft": wanted.output_path, "layout": wanted.layout, "dtype": wanted.dtype}
    text = (
        f"{source} -> {wanted.output_path} ({wanted.layout}, {wanted.dtype})\n"
        f"names, shapes, types and config checked; reloads to the same logits; {wanted.dtype} kept the best token on "
        f"{draft.same_proposals:.1%} of random states\nserve it:"
    )
    text += "".join(f"\n  {line}" for line in lines.values())
    served = {"served_by": list(lines), "serve": next(iter(lines.values())), "serve_lines": lines}
    out.result({**data, "aux_layers": draft.config.aux_layers, **shares, **served}, text)


COMMAND = Command(
    name="export",
    summary="Write a trained draft as a folder that SGLang loads, checked tensor by tensor.",
    examples=("eagle3 export --draft-model-path runs/train --output-path runs/draft",),
    fields=("draft.path", "draft.aux_layers", "target.model_path", "target.revision", "export.*"),
    run=run,
)
