"""What export and import share: a draft read, checked against its target and written to a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eagle3cli.console.out import Out
from eagle3cli.settings.tables import Settings

if TYPE_CHECKING:
    from eagle3cli.models.contract import Layout
    from eagle3cli.models.export import Exported


@dataclass(frozen=True)
class WrittenDraft:
    """The folder that was written, and what it came from."""

    source: Path
    target: str | None
    draft: Exported
    serve: dict[str, str]
    """The line that serves it, by server."""


def write_draft(settings: Settings, out: Out, *, dtype: Any, layout: Layout | None) -> WrittenDraft:
    """Write the draft's files and its model card to ``export.output_path``; ``dtype`` and ``layout`` None: its own."""
    from eagle3cli.backends.target.gguf import local_folder
    from eagle3cli.backends.target.head import read_config, read_embedding_and_head
    from eagle3cli.models.card import model_card, origin_of, public_name
    from eagle3cli.models.checkpoint import has_embedding
    from eagle3cli.models.export import export_draft, find_draft, serve_lines
    from eagle3cli.runtime.files import refuse_existing, write_folder, write_text

    options = settings.export
    folder = options.output_path
    source = find_draft(Path(settings.draft.path) if settings.draft.path else settings.train.output_dir)
    origin = origin_of(source)
    name = settings.target.model_path or origin.target
    target = local_folder(name, settings.data.cache_dir / "models", out) if name else None
    config = read_config(target, revision=settings.target.revision) if target else None
    embedding = None
    if target and has_embedding(source):
        embedding, _ = read_embedding_and_head(target, revision=settings.target.revision)
    if not options.overwrite:
        refuse_existing(folder, overwrite=False)
    exported: list[Exported] = []

    def fill(temporary: Path) -> None:
        draft = export_draft(
            source,
            temporary,
            dtype=dtype,
            layout=layout,
            target=config,
            target_embedding=embedding,
            aux_layers=settings.draft.aux_layers,
        )
        repository = options.push or folder.name
        serve = serve_lines(public_name(name or "TARGET"), repository, draft.config, steps=settings.run.k)
        title = repository.rpartition("/")[2]
        card = model_card(title, draft.config, origin, serve, licence=options.license, target=name)
        write_text(temporary / "README.md", card)
        exported.append(draft)

    write_folder(folder, fill)
    for note in exported[0].notes:
        out.info(note)
    if not target:
        out.warn("the target is not known: context length and vocabulary were not checked; give --target-model-path")
    lines = serve_lines(target or "TARGET", folder, exported[0].config, steps=settings.run.k)
    return WrittenDraft(source, target, exported[0], lines)
