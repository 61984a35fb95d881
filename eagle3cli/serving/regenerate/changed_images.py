"""Whether the images of rows that an earlier run finished are still those that the target saw."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eagle3cli.data.conversations.images import images_of
from eagle3cli.data.images.reference import ImageRef, is_data_url, shown
from eagle3cli.errors import UsageError


def refuse_changed_images(folder: Path) -> None:
    """Raises UsageError where a file has another image than the finished rows in ``folder`` were made with. One that is
    gone, or cannot be read, says nothing against its rows."""
    changed = [image for image in dict.fromkeys(_images(folder)) if _is_changed(image)]
    if not changed:
        return
    what = f"the replies there are to another image than {shown(changed[0].source)} is now"
    if len(changed) > 1:
        what += f", and so for {len(changed):,} images in all"
    fix = "put the images back, choose another --output-dir, or pass --overwrite to start over"
    raise UsageError("made-differently", what, where=str(folder), fix=fix)


def _images(folder: Path) -> Iterator[ImageRef]:
    """The images in files of the rows that are finished, in shards and in part files."""
    for path in sorted([*folder.glob("shard_*.jsonl"), *folder.glob(".part_*.jsonl")]):
        with path.open("rb") as file:
            for line in file:
                if b'"sha256"' in line:  # rows of text alone are not looked at any further
                    images = images_of(_messages(line))
                    yield from (image for image in images if image.sha256 and not is_data_url(image.source))


def _messages(line: bytes) -> list[dict[str, Any]]:
    """The messages of a line; none where a kill tore it."""
    try:
        row = json.loads(line)
        messages: list[dict[str, Any]] = row.get("value", row).get("conversations", [])
    except (ValueError, AttributeError):
        return []
    return messages


def _is_changed(image: ImageRef) -> bool:
    try:
        content = Path(image.source).read_bytes()
    except (OSError, ValueError):
        return False
    return hashlib.sha256(content).hexdigest() != image.sha256
