"""What the words of `eagle3 prepare` name: presets, hub data sets and local paths, each perhaps with a weight."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from eagle3cli.data.sources.files import SUFFIXES, files_of, read_file
from eagle3cli.data.sources.lines import SourceRow
from eagle3cli.data.sources.presets import ALIASES, PRESETS, SELF, Preset
from eagle3cli.errors import DataError, UsageError


@dataclass(frozen=True)
class HubSource:
    """A split of a hub data set."""

    name: str
    split: str
    subset: str | None = None


@dataclass(frozen=True)
class DatasetSpec:
    """One source: local files, or hub data sets, or (neither) the target itself."""

    name: str
    weight: float | None = None
    path: Path | None = None
    files: tuple[Path, ...] = ()
    hub: tuple[HubSource, ...] = ()
    preset: Preset | None = None
    remark: str = ""

    @property
    def endless(self) -> bool:
        """The target writes as many rows as are wanted."""
        return not self.files and not self.hub


def split_weight(word: str) -> tuple[str, float | None]:
    """``NAME`` or ``NAME:WEIGHT``; a path that exists is a path, colons and all. Raises UsageError for weights <= 0."""
    name, colon, weight = word.rpartition(":")
    if not colon or not re.fullmatch(r"-?\d*\.?\d+", weight) or Path(word).expanduser().exists():
        return word, None
    if float(weight) <= 0:
        raise UsageError(
            "invalid-value", f"the weight {weight} is not above 0", where=word, fix="leave out the source, or raise it"
        )
    return name, float(weight)


def resolve(
    words: Sequence[str], *, data_path: Path | None = None, split: str | None = None, subset: str | None = None
) -> list[DatasetSpec]:
    """The sources that ``words`` name. ``split`` and ``subset`` go for hub data sets.

    Raises UsageError for an unknown name or weights for some only, DataError for a path that is not there.
    """
    parted = [split_weight(word) for word in words]
    if not parted:
        raise UsageError(
            "missing-data", "no source given", where="prepare.source", fix=f"presets: {', '.join(PRESETS)}"
        )
    weights = [weight for _, weight in parted]
    if any(weights) and not all(weights):
        raise UsageError(
            "conflicting-options",
            "some sources have a weight and some have none",
            where="prepare.source",
            fix="give all one",
        )
    if data_path is not None and len(parted) > 1:
        raise UsageError(
            "conflicting-options", "goes with one preset only", where="--data-path", fix="pass the files as sources"
        )
    specs = [_resolve(name, weight, data_path, split, subset) for name, weight in parted]
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):  # ids made of the names must differ
        specs = [replace(spec, name=f"{spec.name}-{i}") for i, spec in enumerate(specs, 1)]
    return specs


def _resolve(
    name: str, weight: float | None, data_path: Path | None, split: str | None, subset: str | None
) -> DatasetSpec:
    name = ALIASES.get(name, name)
    preset = PRESETS.get(name)
    if preset is None:
        if data_path is not None:
            fix = "pass the file itself as the source"
            raise UsageError("invalid-value", f"{name!r} is not a preset", where="--data-path", fix=fix)
        return _resolve_unnamed(name, weight, split or "train", subset)
    if data_path is not None:
        return DatasetSpec(name, weight, data_path, tuple(files_of(data_path)), preset=preset)
    if name == SELF:
        return DatasetSpec(name, weight, preset=preset, remark="self: the target writes the prompts")
    packaged = preset.package.find() if preset.package else None
    if packaged is not None:
        package = f"{packaged.parent.parent.name} ({packaged.name})"
        remark = f"{name}: reading the installed package {package}; terms: {preset.licence}"
        return DatasetSpec(name, weight, packaged, (packaged,), preset=preset, remark=remark)
    if preset.hub:
        hub = tuple(
            HubSource(each, one_split, one_subset)
            for each in preset.hub
            for one_subset in ([subset] if subset else preset.subsets or (None,))
            for one_split in ([split] if split else preset.splits)
        )
        remark = f"{name}: streaming {', '.join(preset.hub)} from the hub; licence: {preset.licence}"
        return DatasetSpec(name, weight, hub=hub, preset=preset, remark=remark)
    what = f"the preset {name!r} needs a package that is not installed"
    raise DataError("missing-package", what, fix=preset.package.install if preset.package else None)


def _resolve_unnamed(name: str, weight: float | None, split: str, subset: str | None) -> DatasetSpec:
    path = Path(name).expanduser()
    if path.exists():
        stem = path.name
        for suffix in sorted(SUFFIXES, key=len, reverse=True):
            stem = stem.removesuffix(suffix)
        if not stem.strip("."):  # `.` and `..` are no names for a result
            stem = path.resolve().name.strip(".")
        return DatasetSpec(stem or "data", weight, path, tuple(files_of(path)))
    looks_local = name.startswith((".", "/", "~")) or name.endswith((*SUFFIXES, "/")) or name.count("/") > 1
    if looks_local:
        raise DataError("no-such-path", "no such file or folder", where=name, fix="check the path")
    if name.count("/") == 1:
        remark = f"streaming {name} from the hub; its card tells the licence"
        return DatasetSpec(name.replace("/", "_"), weight, hub=(HubSource(name, split, subset),), remark=remark)
    matches = get_close_matches(name, [*PRESETS, *ALIASES], n=1)
    fix = f"did you mean {matches[0]!r}? " if matches else ""
    fix += f"presets: {', '.join(PRESETS)}; a hub data set is OWNER/NAME; else a local file or folder"
    raise UsageError("unknown-name", f"unknown source {name!r}", where="prepare.source", fix=fix)


def read_rows(spec: DatasetSpec, *, shuffle_seed: int | None) -> Iterator[SourceRow]:
    """Rows of local files or of the hub; a file that cannot be read is one SourceRow with the reason."""
    for path in spec.files:
        try:
            yield from read_file(path)
        except DataError as error:
            yield SourceRow(1, None, f"{error.message} ({error.fix})" if error.fix else error.message, path=str(path))
    if spec.hub:
        from eagle3cli.data.sources.hub import read_hub

        for source in spec.hub:
            yield from read_hub(source.name, source.split, source.subset, shuffle_seed=shuffle_seed)
