"""Images in the contents of messages: the forms that data sets write them in, brought to one.

A message with images keeps its parts in order under ``PARTS``: texts as they are, and ``{"type": "image", "image":
source, "sha256": hash}`` for each image. Its content has the texts alone.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eagle3cli.data.conversations.messages import PARTS, Message, image_parts
from eagle3cli.data.images.reference import ImageRef, find_image, shown
from eagle3cli.errors import DataError

COLUMNS = ("images", "image")
"""Columns that hold a row's images, in the order of their placeholders."""
_PLACEHOLDER = re.compile(r"\n?<image>\n?")
"""As LLaVA's data has it: the line end that parts it from the question is none of the text."""

MEDIA = {"video": "video", "videos": "video", "audio": "audio", "audios": "audio"}
"""Columns that hold what no target is shown here, and what stands for it in the text."""
_MEDIA_FILE = re.compile(
    r"data:(video|audio)/|.+\.(mp4|m4v|mkv|webm|mov|avi|mpe?g|wmv|flv|gif|wav|mp3|flac|ogg|opus|m4a|aac)\Z", re.I | re.S
)


def left_out_media(raw: Mapping[str, Any], messages: Sequence[Message], images: Sequence[str]) -> tuple[str, ...]:
    """What is said of a row whose columns hold a video or a sound that its messages do not speak of: it is left out.

    Raises DataError where the messages have a place for it: the target would be asked about what it is not shown.
    Columns of other content that have such a name are no matter.
    """
    said = []
    for column, kind in MEDIA.items():
        if not _holds_media(raw.get(column)):
            continue
        marks = [kind] if images or any(image_parts(message) for message in messages) else [kind, "image"]
        places = re.compile(rf"<\|?(?:{'|'.join(marks)})(?:_?pad)?\|?>", re.I)
        if any(places.search(message["content"]) for message in messages if message["role"] == "user"):
            raise DataError(
                "row-images", f"the row has a column {column!r} that its messages ask about; only images can be shown"
            )
        said.append(f"column {column!r} left out: no message has a place for it")
    return tuple(said)


def _holds_media(value: Any) -> bool:
    """Whether a column has files of video or sound, or their content as `datasets` has it."""
    values = value if isinstance(value, list) else [value]
    for item in values:
        if isinstance(item, Mapping):
            named = any(isinstance(item.get(key), str) and _MEDIA_FILE.match(item[key]) for key in ("path", "url"))
            if named or item.get("bytes") or item.get("array") is not None:
                return True
        elif isinstance(item, str) and _MEDIA_FILE.match(item.strip()):
            return True
    return False


def row_images(raw: Mapping[str, Any]) -> list[str]:
    """The images in the columns of a row, as paths or URLs; raises DataError for what names none."""
    for name in COLUMNS:
        value = raw.get(name)
        values = value if isinstance(value, list) else [value]
        if not any(item and isinstance(item, str | Mapping) for item in values):
            continue
        return [_source(item, f"{name} {number}") for number, item in enumerate(values, 1) if item is not None]
    return []


def place_images(messages: Sequence[Message], images: Sequence[str]) -> list[Message]:
    """The messages with a row's images where they belong: at the parts that name none, at ``<image>`` in the text, else
    before the first question. Raises DataError where there are more or fewer of them than places.
    """
    waiting = sum(part.get("image") is None for message in messages for part in image_parts(message))
    if waiting:
        return _filled(messages, images, waiting)
    if not images or any(image_parts(message) for message in messages):
        return list(messages)
    marks = sum(len(_PLACEHOLDER.findall(m["content"])) for m in messages if m["role"] == "user")
    if marks not in (0, len(images)):
        raise DataError("row-images", f"{marks} <image> in the text for {len(images)} images of the row")
    left = iter(images)
    if not marks:
        first = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
        return [_with(m, [*map(_part, images), *_texts(m)]) if i == first else m for i, m in enumerate(messages)]
    return [_split(message, left) if message["role"] == "user" else message for message in messages]


def _filled(messages: Sequence[Message], images: Sequence[str], waiting: int) -> list[Message]:
    if waiting != len(images):
        raise DataError(
            "row-images", f"{waiting} parts of type 'image' that name no image, for {len(images)} images of the row"
        )
    left = iter(images)
    return [
        _with(m, [_part(next(left)) if _is_open(part) else part for part in m[PARTS]]) if image_parts(m) else m
        for m in messages
    ]


def _is_open(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("image") is None


def _split(message: Message, images: Iterator[str]) -> Message:
    """A message whose text has placeholders, in parts."""
    texts = [_PLACEHOLDER.split(text) for text in _texts(message)]
    if not any(len(pieces) > 1 for pieces in texts):
        return message
    parts: list[Any] = []
    for pieces in texts:
        parts += [pieces[0]] if pieces[0] else []
        for piece in pieces[1:]:
            parts.append(_part(next(images)))
            parts += [piece] if piece else []
    return _with(message, parts)


def _texts(message: Message) -> list[str]:
    return list(message.get(PARTS) or ([message["content"]] if message["content"] else []))


def _with(message: Message, parts: list[Any]) -> Message:
    texts = [part for part in parts if isinstance(part, str)]
    return {**message, "content": "\n".join(texts), PARTS: parts}


def _part(source: str) -> dict[str, Any]:
    return {"type": "image", "image": source}


def _source(value: Any, where: str) -> str:
    """What names an image: text, or an object as `datasets` has it ({bytes, path}) or with a URL."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, Mapping):
        content = value.get("bytes")
        if isinstance(content, bytes) and content:
            return f"data:image/png;base64,{base64.b64encode(content).decode()}"
        for key in ("path", "url", "image"):
            if isinstance(value.get(key), str) and value[key]:
                return str(value[key])
    raise DataError("row-images", f"{where} of the row names no image")


def with_checked_images(messages: Sequence[Message], folder: Path | None) -> tuple[Message, ...]:
    """The messages with the absolute path and the hash of every image; raises DataError, with the reason, for one that
    is not there, is no image, or is another one than the row was prepared with.
    """
    if not any(image_parts(message) for message in messages):
        return tuple(messages)
    return tuple(_checked(message, number, folder) for number, message in enumerate(messages, 1))


def _checked(message: Message, number: int, folder: Path | None) -> Message:
    if not image_parts(message):
        return message
    parts: list[Any] = []
    for part in message[PARTS]:
        if isinstance(part, str):
            parts.append(part)
            continue
        if not isinstance(part.get("image"), str):
            raise DataError(
                "row-images", f"message {number}: an image part names no image, and the row has no column of images"
            )
        found = find_image(part["image"], folder)
        if part.get("sha256") not in (None, found.sha256):
            what = f"message {number}: the image has changed since the row was prepared: {shown(found.source)}"
            raise DataError("row-images", what)
        parts.append({"type": "image", "image": found.source, "sha256": found.sha256})
    return {**message, PARTS: parts}


def images_of(messages: Sequence[Message]) -> tuple[ImageRef, ...]:
    """The images of checked messages, in their order."""
    return tuple(_ref(part) for message in messages for part in image_parts(message))


def as_data_urls(messages: Sequence[Message]) -> list[Message]:
    """Checked messages with every image as a ``data:`` URL, as servers take it; raises DataError for one that is gone
    or has changed."""
    return [
        {**message, PARTS: [part if isinstance(part, str) else _part(_ref(part).as_url()) for part in message[PARTS]]}
        if image_parts(message)
        else message
        for message in messages
    ]


def _ref(part: Mapping[str, Any]) -> ImageRef:
    return ImageRef(part["image"], part.get("sha256", ""))


def refuse_images(messages: Sequence[Message], who: str) -> None:
    """Raise DataError where a message has an image: ``who`` takes text alone, and would not see it."""
    if any(image_parts(message) for message in messages):
        raise DataError("images-unsupported", f"the row has images, which {who} cannot show the target")
