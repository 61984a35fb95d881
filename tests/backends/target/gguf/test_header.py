"""Damaged .gguf files are refused before anything reads them whole."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eagle3cli.backends.target.gguf.folder import local_folder
from eagle3cli.backends.target.gguf.header import check_header
from eagle3cli.errors import ModelError
from eagle3cli.runtime.report import Silent
from tests.data.sources.test_fuzz import damaged
from tests.failing import fails
from tests.test_fuzz import survives


def gguf(*, tensors: int = 1) -> bytes:
    """A small .gguf head with a value of every kind that is looked at."""

    def text(word: str) -> bytes:
        return struct.pack("<Q", len(word)) + word.encode()

    values = [text(name) + struct.pack("<II", 4, 2) for name in ("a.block_count", "a.embedding_length")]
    values += [text("a.attention.head_count") + struct.pack("<IIQII", 9, 4, 2, 1, 1)]
    values += [text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("x") + text("yz")]
    values += [text("general.architecture") + struct.pack("<I", 8) + text("a")]
    tensor = text("t") + struct.pack("<IQQIQ", 2, 3, 4, 0, 0)
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, len(values)) + b"".join(values) + tensor * tensors


def test_a_whole_gguf_head_is_taken(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf())
    check_header(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes(gguf(tensors=0))
    with fails("damaged-file"):
        check_header(tmp_path / "m.gguf")


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_gguf_files(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "m.gguf"
    path.write_bytes(data.draw(damaged(gguf())))
    survives(lambda: check_header(path))
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("content", [b"", b"GGUF", gguf(tensors=0), gguf()])
def test_a_damaged_gguf_target_is_told(content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelError):
        local_folder(str(tmp_path / "m.gguf"), tmp_path / "out", Silent())
