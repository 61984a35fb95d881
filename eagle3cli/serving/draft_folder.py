"""A draft as the folder or file that servers load, checked against its target: what export and import share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eagle3cli.backends.target.adapter import MARK, adapter_of, merged_folder
from eagle3cli.backends.target.gguf.folder import find_gguf, local_folder
from eagle3cli.backends.target.gguf.vocabulary import read_vocabulary
from eagle3cli.backends.target.head import fingerprint, read_config, read_embedding_and_head
from eagle3cli.backends.target.weights.quantization import Quantization, folder_quantization
from eagle3cli.errors import ModelError, UsageError
from eagle3cli.models.aux_layers import text_part
from eagle3cli.models.card import Origin, model_card, origin_of, public_name
from eagle3cli.models.checkpoint import has_embedding
from eagle3cli.models.checkpoint import read_config as read_draft
from eagle3cli.models.contract import Layout
from eagle3cli.models.engines import ENGINES
from eagle3cli.models.export import Exported, export_draft
from eagle3cli.models.folders import check_made_for, find_draft
from eagle3cli.models.gguf.draft import file_name
from eagle3cli.models.gguf.file import OUTTYPES, Field, Outtype, require_gguf
from eagle3cli.models.serve import Served, check_served, engines_of, serve
from eagle3cli.models.speculators import Verifier, verifier_of
from eagle3cli.runtime.files import is_filled_so, refuse_existing, write_folder, write_text
from eagle3cli.runtime.report import Reporter
from eagle3cli.settings.tables import Settings


@dataclass(frozen=True)
class WrittenDraft:
    """The folder that was written, and what it came from."""

    source: Path
    target: str | None
    draft: Exported
    served: Served
    """Who serves it, and how."""


@dataclass(frozen=True)
class _Target:
    """The target that a draft is written for, as far as it is known."""

    name: str | None
    """As people call it: a hub id, a folder, a .gguf file."""
    folder: str | None
    """The same as a folder or hub id."""
    config: Mapping[str, Any] | None
    revision: str | None

    @property
    def quantization(self) -> Quantization | None:
        """How its weights are stored, where they are quantised."""
        return folder_quantization(self.config, Path(self.folder)) if self.config and self.folder else None


def write_draft(settings: Settings, report: Reporter, *, dtype: Any, layout: Layout | None) -> WrittenDraft:
    """Write the draft's files and its model card to ``export.output_path``; ``dtype`` and ``layout`` None: its own.

    A folder that holds just this draft stays as it is. Raises UsageError for one that holds something else, and
    ModelError for a draft of another target.
    """
    options = settings.export
    folder = options.output_path
    source = find_draft(Path(settings.draft.path) if settings.draft.path else settings.train.output_dir)
    origin = origin_of(source)
    if layout == "sglang" and origin.serve_with == "llama.cpp" and "layout" not in options.model_fields_set:
        layout = "gguf"
    if options.outtype is not None and layout != "gguf":
        fix = "add --layout gguf, or use --export-dtype"
        raise UsageError("invalid-value", "the type of a GGUF file, which this is not", where="--outtype", fix=fix)
    target = _target_of(settings, source, origin, report)
    mark = "draft-*.gguf" if layout == "gguf" else "config.json"
    stands = any(folder.glob(mark)) and not options.overwrite
    if not options.overwrite and not stands:
        refuse_existing(folder, overwrite=False)
    outtype = (options.outtype or OUTTYPES[dtype]) if layout == "gguf" else None
    files = _Files(
        settings,
        source,
        origin,
        target,
        dtype=dtype,
        layout=layout,
        outtype=outtype,
        vocabulary=_vocabulary(settings, target) if outtype else [],
        verifier=_verifier(target, settings.run.k, report) if layout == "speculators" and target.folder else None,
    )
    exported: list[Exported] = []
    if not stands:
        write_folder(folder, lambda temporary: exported.append(files.write(temporary)))
    elif is_filled_so(folder, lambda temporary: exported.append(files.write(temporary)), apart=("README.md",)):
        report.info(f"{folder} holds this draft already; nothing was written")
    else:
        what = "already exists, made from another draft or with other options"
        raise UsageError(
            "foreign-files", what, where=str(folder), fix="choose another --output-path, or pass --overwrite"
        )
    draft = exported[0]
    for note in draft.notes:
        report.info(note)
    _tell_engine(origin.serve_with, draft.layout, report)
    if not target.folder:
        report.warn("the target is not known: context length and vocabulary were not checked; give --target-model-path")
    base = str(find_gguf(target.name) or target.name) if layout == "gguf" and target.name else target.folder
    return WrittenDraft(source, base, draft, files.served(base or "TARGET", folder, draft))


@dataclass(frozen=True)
class _Files:
    """What the files of a draft are made of."""

    settings: Settings
    source: Path
    origin: Origin
    target: _Target
    dtype: Any
    layout: Layout | None
    outtype: Outtype | None
    """Of a GGUF file's weights; None for a folder."""
    vocabulary: Sequence[Field]
    verifier: Verifier | None

    def write(self, folder: Path) -> Exported:
        """Write them all, the model card too."""
        options = self.settings.export
        target = self.target
        embedding = None
        if target.folder and has_embedding(self.source):
            embedding, _ = read_embedding_and_head(target.folder, revision=target.revision)
        draft = export_draft(
            self.source,
            folder,
            dtype=self.dtype,
            layout=self.layout,
            target=target.config,
            target_embedding=embedding,
            aux_layers=self.settings.draft.aux_layers,
            verifier=self.verifier,
            outtype=self.outtype,
            vocabulary=self.vocabulary,
        )
        check_served(draft.config, target.config or {}, self.origin.serve_with, backend=self.origin.backend)
        repository = options.push or options.output_path.name
        served = self.served(public_name(target.name or "TARGET"), repository, draft)
        card = model_card(
            repository.rpartition("/")[2],
            draft.config,
            self.origin,
            {str(engine): line for engine, line in served.lines.items()},
            licence=options.license,
            target=target.name,
            target_hash=_hash(target.folder, target.revision) if target.folder else None,
            adapter=adapter_of(target.config),
            quantization=str(target.quantization) if target.quantization else None,
            notes=[*served.notes(draft.config), *_about_types(draft, self.outtype)],
        )
        write_text(folder / "README.md", card)
        return draft

    def served(self, target: str, place: Path | str, draft: Exported) -> Served:
        """Who serves the draft in the folder ``place``, and how."""
        quantization = self.target.quantization
        about = None if quantization is None else _about_weights(quantization, self.origin.backend)
        served = serve(
            target,
            f"{place}/{file_name(self.outtype)}" if self.outtype else str(place),
            draft.config,
            layout=draft.layout,
            steps=self.settings.run.k,
            target_config=self.target.config,
            revision=self.target.revision,
            backend=self.origin.backend,
        )
        return replace(served, about_target=about)


def _target_of(settings: Settings, source: Path, origin: Origin, report: Reporter) -> _Target:
    """The target of the settings, else the one that the draft names. Raises ModelError where the draft is another's."""
    revision = settings.target.revision
    name = settings.target.model_path or origin.target or _verifier_folder(source)
    parent = settings.data.cache_dir / "models"
    folder = local_folder(name, parent, report) if name else None
    if folder and settings.target.adapter is not None:
        name = folder = merged_folder(folder, settings.target.adapter, parent, report, revision)
    config = read_config(folder, revision=revision) if folder else None
    if config is not None:
        _refuse_other_adapter(config, origin)
        check_made_for(source, read_draft(source), config)
    return _Target(name, folder, config, revision)


def _refuse_other_adapter(config: dict[str, Any], origin: Origin) -> None:
    """Raise UsageError where the draft's run had a target with an adapter, and this one lacks it."""
    folder = Path(origin.target or "")
    merged = read_config(str(folder)) if (folder / "config.json").is_file() else {}
    trained_for = adapter_of(merged)
    if trained_for is not None and merged[MARK] != config.get(MARK):
        what = (
            f"the draft was trained for {trained_for[0]} with the adapter {trained_for[1]}; the target named lacks it"
        )
        fix = f"add --target-adapter, or name {folder}"
        raise UsageError("other-target", what, where="--target-model-path", fix=fix)


def _vocabulary(settings: Settings, target: _Target) -> list[Field]:
    """The target's tokenizer for a GGUF file. Raises UsageError where the target is not known."""
    require_gguf("--layout gguf")
    if target.name is None or target.config is None:
        what = "a GGUF draft carries its target's tokenizer, and the target is not known"
        raise UsageError(
            "missing-target",
            what,
            where="--layout gguf",
            fix="give --target-model-path: a folder, a hub id or a .gguf file",
        )
    size = int(text_part(target.config)["vocab_size"])
    trusted = settings.target.trust_remote_code
    return read_vocabulary(target.name, size, revision=target.revision, trust_remote_code=trusted)


def _tell_engine(engine: str | None, layout: Layout, report: Reporter) -> None:
    """Say where a draft was written for another engine than the one that it was trained for."""
    for known, name in ENGINES.items():
        if known == engine and known not in engines_of(layout):
            layout = "gguf" if known == "llama.cpp" else known
            report.info(f"it was trained for {name}, which reads another layout: eagle3 export --layout {layout}")


def _about_weights(quantization: Quantization, backend: str | None) -> str:
    """What to know of a draft whose target is quantised; ``backend`` captured the states."""
    about = f"the target's weights are {quantization}: serve those, the draft was trained on their states"
    if quantization.activations and backend != "sglang":
        about += "; a server also rounds what the layers read, which those states do not show"
    return f"{about}. The draft itself is not quantised"


def _about_types(draft: Exported, outtype: str | None) -> list[str]:
    if outtype is None:
        return [f"target and draft run in one type, {draft.config.dtype}"]
    return [f"its weights are {outtype}; the target may have any type, and each proposes what it was trained on best"]


def _verifier(target: _Target, steps: int, report: Reporter) -> Verifier:
    """The target as a speculators config names it: by its hub id, or by its folder on this machine."""
    assert target.folder is not None
    name = target.folder
    if Path(name).exists():
        name = str(Path(name).absolute())
        report.info(f"the draft names its target by the folder {name}; for others give its hub id")
    return Verifier(name, tuple((target.config or {}).get("architectures") or ()), steps)


def _verifier_folder(source: Path) -> str | None:
    """The target that a draft of speculators names, where that is a folder here."""
    name = verifier_of(read_draft(source))
    return name if name and Path(name).is_dir() else None


def _hash(target: str, revision: str | None) -> str | None:
    """A local target's fingerprint; None for one of the hub, which has a name, and for a folder without weights."""
    if not Path(target).expanduser().is_dir():
        return None
    try:
        return fingerprint(target, revision=revision)
    except ModelError:
        return None
