"""The files that a llama-server is started with: the target's and the draft's, written from folders where needed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from eagle3cli.backends.target.gguf.files import target_gguf
from eagle3cli.backends.target.gguf.folder import local_folder
from eagle3cli.models.folders import find_draft, gguf_draft
from eagle3cli.models.gguf.file import Outtype, require_gguf
from eagle3cli.runtime.files import write_folder
from eagle3cli.runtime.provenance import digest_file
from eagle3cli.runtime.report import Reporter
from eagle3cli.settings.tables import Settings

OUTTYPES: dict[str, Outtype] = {"float32": "f32", "float16": "f16"}
"""Types that a target's folder is written in where ``--dtype`` asks for them; else bf16."""


def target_file(settings: Settings, report: Reporter) -> Path:
    """The target as a .gguf file: its own, or one below ``cache_dir/models`` that its folder is written to, once."""
    target = settings.target
    outtype = OUTTYPES.get(target.dtype, "bf16")
    parent = settings.data.cache_dir / "models"
    return target_gguf(
        target.model_path, parent, report, outtype=outtype, trust_remote_code=target.trust_remote_code
    ).absolute()


def target_folder(settings: Settings, report: Reporter) -> str:
    """The target as a folder, whose tokenizer and config are read here."""
    return local_folder(settings.target.model_path, settings.data.cache_dir / "models", report)


def draft_file(settings: Settings, report: Reporter) -> Path:
    """The draft as a .gguf file: its own, or one that its folder or run is exported to, once, in its own type.

    Raises ModelError for a draft that llama.cpp cannot serve as it was trained.
    """
    path = Path(settings.draft.path or "")
    own = gguf_draft(path)
    if own is not None:
        return own.absolute()
    from eagle3cli.backends.target.gguf.vocabulary import read_vocabulary
    from eagle3cli.backends.target.head import read_config
    from eagle3cli.models.aux_layers import text_part
    from eagle3cli.models.export import export_draft

    require_gguf("--engine llama.cpp")
    folder = find_draft(path)
    target = settings.target
    config = read_config(target_folder(settings, report), revision=target.revision)
    digest = "".join(digest_file(file)[:12] for file in sorted(folder.glob("*.safetensors")))
    place = settings.data.cache_dir / "models" / f"draft-{digest[:24]}"
    if gguf_draft(place) is None:
        report.info(f"writing {folder} for llama.cpp (once); eagle3 export --layout gguf keeps such a file")
        size = int(text_part(config)["vocab_size"])
        vocabulary = read_vocabulary(
            target.model_path, size, revision=target.revision, trust_remote_code=target.trust_remote_code
        )
        export = partial(export_draft, folder, dtype=None, layout="gguf", target=config, vocabulary=vocabulary)
        write_folder(place, lambda temporary: _notes(export(temporary).notes, report))
    draft = gguf_draft(place)
    assert draft is not None, "it was written"
    return draft.absolute()


def _notes(notes: list[str], report: Reporter) -> None:
    for note in notes:
        report.info(note)
