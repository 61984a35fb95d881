"""The forms in which data sets write images, brought to parts in order; what names none is refused."""

from __future__ import annotations

from typing import Any

import pytest

from eagle3cli.data.conversations.conversation import to_conversation
from eagle3cli.data.conversations.messages import PARTS
from eagle3cli.errors import DataError

ANSWER = {"role": "assistant", "content": "A cat."}
TEXT = {"type": "text", "text": "What?"}


def image(source: str) -> dict[str, str]:
    return {"type": "image", "image": source}


def asked(*parts: Any, **columns: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}, ANSWER], **columns}


def said(text: str, **columns: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, ANSWER], **columns}


BYTES = {"bytes": b"abc", "path": None}
AS_URL = "data:image/png;base64,YWJj"


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        (asked({"type": "image_url", "image_url": {"url": "a.png"}}, TEXT), [image("a.png"), "What?"]),
        (asked(TEXT, {"type": "image_url", "image_url": "a.png"}), ["What?", image("a.png")]),
        (asked({"type": "input_image", "image_url": "a.png"}, TEXT), [image("a.png"), "What?"]),
        (asked({"type": "image", "image": "a.png"}), [image("a.png")]),
        (asked({"type": "image", "path": "a.png"}, TEXT), [image("a.png"), "What?"]),
        (
            asked({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "YWJj"}}, TEXT),
            [image(AS_URL), "What?"],
        ),
        (asked({"type": "image", "text": None}, TEXT, images=["a.png"]), [image("a.png"), "What?"]),
        (asked({"type": "image"}, TEXT, images=[BYTES]), [image(AS_URL), "What?"]),
        (said("<image>\nWhat?", image="a.png"), [image("a.png"), "What?"]),
        (said("See <image> and\n<image>", images=["a", {"path": "b"}]), ["See ", image("a"), " and", image("b")]),
        (said("What?", images=["a.png", "b.png"]), [image("a.png"), image("b.png"), "What?"]),
        ({"question": "What?", "answer": "A cat.", "image": BYTES}, [image(AS_URL), "What?"]),
    ],
)
def test_every_form_becomes_parts_in_order(row: dict[str, Any], parts: list[Any]) -> None:
    conversation = to_conversation(row)
    assert conversation.messages[0][PARTS] == parts
    assert conversation.messages[0]["content"] == "\n".join(part for part in parts if isinstance(part, str))
    assert to_conversation(conversation.to_row()).messages == conversation.messages


@pytest.mark.parametrize("column", [None, [], "", 3, [None], {}])
def test_a_column_without_images_leaves_the_text_alone(column: Any) -> None:
    message = to_conversation(said("What is <image> in HTML?", image=column)).messages[0]
    assert message == {"role": "user", "content": "What is <image> in HTML?"}


@pytest.mark.parametrize(
    ("column", "said_of_it"),
    [
        ({"video": "clips/a.mp4"}, ("column 'video' left out: no message has a place for it",)),
        ({"audios": [{"array": [0.5]}]}, ("column 'audios' left out: no message has a place for it",)),
        ({"video": "https://example.com/watch?v=1", "audio": None, "videos": 3}, ()),
    ],
)
def test_a_video_or_sound_beside_a_text_of_its_own_is_left_out(
    column: dict[str, Any], said_of_it: tuple[str, ...]
) -> None:
    conversation = to_conversation(said("What is an image?", **column))
    assert conversation.messages[0] == {"role": "user", "content": "What is an image?"}
    assert conversation.repairs == said_of_it


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (said("<image> <image>", images=["a.png"]), "2 <image> in the text for 1 images"),
        (asked({"type": "image"}, TEXT), "1 parts of type 'image' that name no image, for 0 images"),
        (asked({"type": "image"}, TEXT, images=["a", "b"]), "name no image, for 2 images"),
        (asked({"type": "image_url", "image_url": {"url": 3}}, TEXT), "whose image is a number"),
        (asked({"type": "video", "video": "a.mp4"}, TEXT), "a part of type 'video'"),
        (said("<image>\nWhat happens?", video="clips/a.mp4"), "a column 'video' that its messages ask about"),
        (said("<|AUDIO|> Who speaks?", audio={"path": None, "bytes": b"RIFF"}), "a column 'audio' that its messages"),
        (said("What?", images=["a.png", 7]), "images 2 of the row names no image"),
        (
            {"messages": [{"role": "user", "content": "Draw."}, {**ANSWER, "content": [image("a.png")]}]},
            "message 2 (assistant): an image in a message that is not the user's",
        ),
    ],
)
def test_what_names_no_image_is_refused(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError) as caught:
        to_conversation(row)
    assert reason in caught.value.message
