"""References to images: a file or a ``data:`` URL, and the SHA-256 of its bytes, so that a changed file is noticed."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import mimetypes
import re
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from eagle3cli.errors import DataError

INSTALL = "pip install 'eagle3[images]'"
LONGEST_SHOWN = 120
REMEMBERED = 4096
"""Files whose hash is remembered: many rows share an image."""
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP"),
    *("HEIF", "JXL"),
)
"""What Pillow reads by itself (or by a plugin): for others, EPS among them, it runs programs on what a row brings."""
DAMAGED = (
    *(OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, ArithmeticError),
    *(struct.error, zlib.error),
)
"""What Pillow raises for bytes that are no image, or a broken one."""
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:")
_DATA = re.compile(r"data:(?:image/[\w.+-]+)?(?:;[\w-]+=[^;,]*)*;base64,", re.IGNORECASE)


@dataclass(frozen=True)
class ImageRef:
    """An image of a row: ``source`` is a path or a ``data:`` URL, ``sha256`` the hash of the bytes behind it."""

    source: str
    sha256: str

    def read(self) -> bytes:
        """The file's bytes; raises DataError where it is gone, or is not the one that the row was made with."""
        content = _bytes_of(self.source)
        if hashlib.sha256(content).hexdigest() != self.sha256:
            fix = "put the file back, or run eagle3 prepare and eagle3 cache --overwrite again"
            raise DataError(
                "row-images", "the image has changed since its row was prepared", where=shown(self.source), fix=fix
            )
        return content

    def open(self) -> Any:
        """The image as transformers loads it: upright, in RGB. Raises as :meth:`read` does."""
        return _decoded(self.read(), self.source)

    def as_url(self) -> str:
        """A ``data:`` URL that holds the image, as servers take it; raises as :meth:`read` does."""
        if is_data_url(self.source):
            return self.source
        kind = mimetypes.guess_type(self.source)[0] or "image/png"
        return f"data:{kind};base64,{base64.b64encode(self.read()).decode()}"


def is_data_url(source: str) -> bool:
    """Whether an image stands in its name."""
    return source[:5].lower() == "data:"


def find_image(source: str, folder: Path | None = None) -> ImageRef:
    """The image that a row names: a path, a ``file:`` URL or a ``data:`` URL.

    A relative path is looked for below ``folder``, where the rows are, then in the working directory. Raises DataError
    for one that is not there or is no image, and where the package that reads images is missing.
    """
    if is_data_url(source):
        return ImageRef(source, _hash_of_image(source))  # not remembered: it is as long as the image
    place = str(_path_of(source, folder))
    status = Path(place).stat()
    return ImageRef(place, _checked(place, status.st_mtime_ns, status.st_size))


def shown(source: str) -> str:
    """A reference for people, on one line of bearable length."""
    return source if len(source) <= LONGEST_SHOWN else f"{source[: LONGEST_SHOWN - 3]}..."


def _path_of(source: str, folder: Path | None) -> Path:
    """Where a file is, absolute; raises DataError where it is not."""
    if source[:5].lower() == "file:":
        parts = urlsplit(source)
        if parts.netloc not in ("", "localhost"):
            raise DataError("bad-image", f"an image on another machine: {shown(source)}")
        path = Path(unquote(parts.path))
    elif _SCHEME.match(source) and not _exists(source):
        what = f"an image at a remote address ({shown(source)}); download it, and name the file"
        raise DataError("bad-image", what)
    else:
        path = Path(source).expanduser()
    places = [path] if path.is_absolute() or folder is None else [folder / path, path]
    try:
        found = next((place for place in places if place.is_file()), None)
    except (OSError, ValueError) as error:
        raise DataError("no-such-path", f"no such image: {shown(source)} ({type(error).__name__})") from error
    if found is None:
        raise DataError("no-such-path", f"no such image: {shown(source)}")
    return found.resolve()


def _exists(source: str) -> bool:
    """Whether this is a path that is there; an address is too long for one where it is signed."""
    try:
        return Path(source).exists()
    except (OSError, ValueError):
        return False


@lru_cache(maxsize=REMEMBERED)
def _checked(source: str, modified: int, size: int) -> str:
    """The hash of an image file that can be read; ``modified`` and ``size`` tell it from what it was before."""
    return _hash_of_image(source)


def _hash_of_image(source: str) -> str:
    content = _bytes_of(source)
    _decoded(content, source)
    return hashlib.sha256(content).hexdigest()


def _bytes_of(source: str) -> bytes:
    if not is_data_url(source):
        try:
            return Path(source).read_bytes()
        except (OSError, ValueError) as error:
            what = f"the image cannot be read: {type(error).__name__}"
            raise DataError(
                "row-images", what, where=shown(source), fix="put the file back, or leave the row out"
            ) from error
    head = _DATA.match(source)
    if head is None:
        raise DataError("bad-image", f"a data: URL that is no image in base64: {shown(source)}")
    try:
        return base64.b64decode(source[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError("bad-image", f"a data: URL whose base64 is damaged: {shown(source)}") from error


def _decoded(content: bytes, source: str) -> Any:
    """The image, turned as its EXIF data says, in RGB; raises DataError where the bytes are none, or break off."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DataError("missing-package", f"rows with images need pillow ({INSTALL})") from error
    try:
        Image.init()
        formats = [name for name in FORMATS if name in Image.OPEN]
        return ImageOps.exif_transpose(Image.open(io.BytesIO(content), formats=formats)).convert("RGB")
    except (*DAMAGED, Image.DecompressionBombError) as error:
        reason = "breaks off or is damaged" if len(content) else "is empty"
        raise DataError("bad-image", f"not an image that can be read: {shown(source)} {reason}") from error
