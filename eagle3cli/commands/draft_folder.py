"""What export and import share: a draft read, checked against its target and written to a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eagle3cli.console.out import Out
from eagle3cli.errors import UsageError
from eagle3cli.settings.tables import Settings

if TYPE_CHECKING:
    from eagle3cli.models.contract import Layout
    from eagle3cli.models.export import Exported
    from eagle3cli.models.gguf_file import Field
    from eagle3cli.models.serve import Served
    from eagle3cli.models.speculators import Verifier


@dataclass(frozen=True)
class WrittenDraft:
    """The folder that was written, and what it came from."""

    source: Path
    target: str | None
    draft: Exported
    served: Served
    """Who serves it, and how."""


def write_draft(settings: Settings, out: Out, *, dtype: Any, layout: Layout | None) -> WrittenDraft:
    """Write the draft's files and its model card to ``export.output_path``; ``dtype`` and ``layout`` None: its own."""
    from eagle3cli.backends.target.gguf import find_gguf, local_folder
    from eagle3cli.backends.target.head import read_config, read_embedding_and_head
    from eagle3cli.models.card import model_card, origin_of, public_name
    from eagle3cli.models.checkpoint import has_embedding
    from eagle3cli.models.checkpoint import read_config as read_draft
    from eagle3cli.models.export import export_draft
    from eagle3cli.models.folders import check_made_for, find_draft
    from eagle3cli.models.gguf_draft import file_name
    from eagle3cli.models.gguf_file import OUTTYPES
    from eagle3cli.models.serve import serve
    from eagle3cli.runtime.files import is_filled_so, refuse_existing, write_folder, write_text

    options = settings.export
    folder = options.output_path
    source = find_draft(Path(settings.draft.path) if settings.draft.path else settings.train.output_dir)
    origin = origin_of(source)
    name = settings.target.model_path or origin.target or _verifier_folder(source)
    target = local_folder(name, settings.data.cache_dir / "models", out) if name else None
    config = read_config(target, revision=settings.target.revision) if target else None
    if config is not None:
        check_made_for(source, read_draft(source), config)
    embedding = None
    if target and has_embedding(source):
        embedding, _ = read_embedding_and_head(target, revision=settings.target.revision)
    mark = "draft-*.gguf" if layout == "gguf" else "config.json"
    stands = any(folder.glob(mark)) and not options.overwrite
    if not options.overwrite and not stands:
        refuse_existing(folder, overwrite=False)
    outtype = (options.outtype or OUTTYPES[dtype]) if layout == "gguf" else None
    vocabulary = _vocabulary(settings, name, config) if outtype else []
    verifier = _verifier(target, config or {}, settings.run.k, out) if layout == "speculators" and target else None
    target_hash = _hash(target, settings.target.revision) if target else None
    exported: list[Exported] = []

    k = settings.run.k
    revision = settings.target.revision
    served_by = partial(serve, steps=k, target_config=config, revision=revision, backend=origin.backend)

    def draft_at(place: Path | str) -> str:
        """What a server is given of the draft in the folder ``place``."""
        return f"{place}/{file_name(outtype)}" if outtype else str(place)

    def fill(temporary: Path) -> None:
        draft = export_draft(
            source,
            temporary,
            dtype=dtype,
            layout=layout,
            target=config,
            target_embedding=embedding,
            aux_layers=settings.draft.aux_layers,
            verifier=verifier,
            outtype=outtype,
            vocabulary=vocabulary,
        )
        repository = options.push or folder.name
        served = served_by(public_name(name or "TARGET"), draft_at(repository), draft.config, layout=draft.layout)
        card = model_card(
            repository.rpartition("/")[2],
            draft.config,
            origin,
            {str(engine): line for engine, line in served.lines.items()},
            licence=options.license,
            target=name,
            target_hash=target_hash,
            notes=[*served.notes(draft.config), *_about_types(draft, outtype)],
        )
        write_text(temporary / "README.md", card)
        exported.append(draft)

    if not stands:
        write_folder(folder, fill)
    elif is_filled_so(folder, fill, apart=("README.md",)):
        out.info(f"{folder} holds this draft already; nothing was written")
    else:
        what = "already exists, made from another draft or with other options"
        raise UsageError(what, where=str(folder), fix="choose another --output-path, or pass --overwrite")
    for note in exported[0].notes:
        out.info(note)
    if not target:
        out.warn("the target is not known: context length and vocabulary were not checked; give --target-model-path")
    draft = exported[0]
    given = str(find_gguf(name) or name) if layout == "gguf" and name else target
    served = served_by(given or "TARGET", draft_at(folder), draft.config, layout=draft.layout)
    return WrittenDraft(source, target, draft, served)


def _vocabulary(settings: Settings, name: str | None, config: Mapping[str, Any] | None) -> list[Field]:
    """The target's tokenizer for a GGUF file. Raises UsageError where the target is not known."""
    from eagle3cli.backends.target.gguf_vocabulary import read_vocabulary
    from eagle3cli.models.config import text_part
    from eagle3cli.models.gguf_file import require_gguf

    require_gguf("--layout gguf")
    if name is None or config is None:
        what = "a GGUF draft carries its target's tokenizer, and the target is not known"
        raise UsageError(
            what, where="--layout gguf", fix="give --target-model-path: a folder, a hub id or a .gguf file"
        )
    target = settings.target
    size = int(text_part(config)["vocab_size"])
    return read_vocabulary(name, size, revision=target.revision, trust_remote_code=target.trust_remote_code)


def _about_types(draft: Exported, outtype: str | None) -> list[str]:
    if outtype is None:
        return [f"target and draft run in one type, {draft.config.dtype}"]
    return [f"its weights are {outtype}; the target may have any type, and each proposes what it was trained on best"]


def _verifier(target: str, config: Mapping[str, Any], steps: int, out: Out) -> Verifier:
    """The target as a speculators config names it: by its hub id, or by its folder on this machine."""
    from eagle3cli.models.speculators import Verifier

    local = Path(target).exists()
    if local:
        out.info(f"the draft names its target by the folder {Path(target).absolute()}; for others give its hub id")
    name = str(Path(target).absolute()) if local else target
    return Verifier(name, tuple(config.get("architectures") or ()), steps)


def _verifier_folder(source: Path) -> str | None:
    """The target that a draft of speculators names, where that is a folder here."""
    from eagle3cli.models.checkpoint import read_config
    from eagle3cli.models.speculators import verifier_of

    name = verifier_of(read_config(source))
    return name if name and Path(name).is_dir() else None


def _hash(target: str, revision: str | None) -> str | None:
    """A local target's fingerprint; None for one of the hub, which has a name, and for a folder without weights."""
    from eagle3cli.backends.target.head import fingerprint
    from eagle3cli.errors import ModelError

    if not Path(target).expanduser().is_dir():
        return None
    try:
        return fingerprint(target, revision=revision)
    except ModelError:
        return None
