"""References to images: where they are looked for, what refuses them, and a file that has changed."""

from __future__ import annotations

import base64
import io
import os
import random
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.data.images.reference import find_image
from eagle3cli.errors import DataError
from tests.failing import fails

pytest.importorskip("PIL", reason="needs pillow")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from PIL import Image

    (tmp_path / "in here").mkdir()
    path = tmp_path / "in here" / "a.png"
    Image.new("RGB", (6, 4), (200, 10, 20)).save(path)
    return path


def test_the_same_image_by_every_name(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    beside = find_image("in here/a.png", picture.parent.parent)
    monkeypatch.chdir(picture.parent)
    named = [beside, find_image(str(picture)), find_image(picture.as_uri()), find_image("a.png"), find_image(data)]
    assert len({image.sha256 for image in named}) == 1
    assert [image.source for image in named] == [*[str(picture)] * 4, data]
    assert all(image.open().size == (6, 4) for image in named)
    assert {image.as_url() for image in named} == {data}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("https://example.org/a.png", "a remote address (https://example.org/a.png); download it"),
        (f"https://example.org/a.png?signature={'s' * 300}", "a remote address (https://example.org/a.png?sig"),
        ("file://elsewhere/a.png", "on another machine"),
        ("gone.png", "no such image: gone.png"),
        ("text.png", "not an image that can be read"),
        ("cut.png", "not an image that can be read"),
        ("data:image/png;base64,####", "base64 is damaged"),
        ("data:text/plain,hello", "no image in base64"),
    ],
)
def test_what_is_no_image_is_refused_with_its_reason(picture: Path, source: str, reason: str) -> None:
    (picture.parent / "text.png").write_text("no picture")
    (picture.parent / "cut.png").write_bytes(picture.read_bytes()[:50])
    with pytest.raises(DataError) as caught:
        find_image(source, picture.parent)
    assert reason in caught.value.message


def test_no_program_is_run_for_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    def ghostscript(*_: object, **__: object) -> None:
        raise AssertionError("Ghostscript runs what a row brought")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    (tmp_path / "page.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n")
    with fails("bad-image"):
        find_image("page.png", tmp_path)


def test_a_file_that_changed_is_noticed(picture: Path) -> None:
    from PIL import Image

    image = find_image(str(picture))
    Image.new("RGB", (6, 4), (0, 10, 20)).save(picture)
    os.utime(picture, ns=(1, 1))
    with fails("row-images"):
        image.open()
    assert find_image(str(picture)).sha256 != image.sha256


def test_an_image_is_upright_and_in_rgb(tmp_path: Path) -> None:
    from PIL import Image

    photo = Image.new("RGB", (6, 4))
    photo.getexif()[0x0112] = 6  # a camera that was held on its side
    photo.save(tmp_path / "a.jpg", exif=photo.getexif())
    Image.new("RGBA", (6, 4)).save(tmp_path / "b.png")
    images = [find_image(str(tmp_path / name)).open() for name in ("a.jpg", "b.png")]
    assert [(image.size, image.mode) for image in images] == [((4, 6), "RGB"), ((6, 4), "RGB")]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@given(seed=st.integers(0, 2**32))
def test_a_damaged_image_is_an_image_or_refused(kind: str, seed: int) -> None:
    from PIL import Image

    generator = random.Random(seed)
    buffer = io.BytesIO()
    Image.frombytes("RGB", (6, 5), generator.randbytes(90)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for _ in range(generator.randint(1, 6)):
        content[generator.randrange(len(content))] = generator.randrange(256)
    url = "data:image/png;base64," + base64.b64encode(content[: generator.randint(0, 2 * len(content))]).decode()
    with suppress(DataError), warnings.catch_warnings(action="ignore"):
        assert find_image(url).open().mode == "RGB"
