from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eagle3cli.console.tokens import as_data, html, page
from eagle3cli.data.cache import open_or_build
from eagle3cli.data.rows import TokenRow
from eagle3cli.data.show import Shown, show, show_row
from eagle3cli.data.vocab import from_ids
from eagle3cli.errors import DataError, UsageError
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.tables import Data, Settings, Target, View
from tests.tiny import VOCAB, tiny_tokenizer


def settings_for(tmp_path: Path, **view: object) -> Settings:
    target = tmp_path / "target"
    tiny_tokenizer().save_pretrained(target)
    rows = [
        {
            "id": f"r{i}",
            "conversations": [{"role": "user", "content": f"q{i} <b>"}, {"role": "assistant", "content": "😀 ok"}],
        }
        for i in range(6)
    ]
    rows.insert(1, {"id": "bad", "conversations": []})
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Data(train_path=path, cache_dir=tmp_path / "cache")
    return Settings(target=Target(model_path=str(target)), data=data, view=View(**view))


def test_a_file_and_its_cache_show_the_same_rows(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, rows=(1, 2))
    raw = show(settings)
    cached = open_or_build(settings, 40, VOCAB, Silent())
    from_cache = show(settings)
    assert from_cache.source != raw.source
    assert [row.id for row in raw.rows] == [row.id for row in from_cache.rows] == ["r0", "r1"]
    assert [row.line for row in raw.rows] == [1, 3]
    assert [[p.text for p in row.pieces] for row in raw.rows] == [
        [p.text for p in row.pieces] for row in from_cache.rows
    ]
    assert from_cache.draft_vocab == 40
    by_path = show(settings, path=cached.folder, rows=(2,))
    assert by_path.rows[0] == from_cache.rows[1]
    assert show(settings, path=cached.folder / "train", rows=(2,)) == by_path


def test_plain_text_marks_what_is_trained(tmp_path: Path) -> None:
    text = page(show(settings_for(tmp_path)), colour=False)
    assert "{+😀 ok<|im_end|>+}" in text
    assert "[assistant]" in text
    assert "\x1b" not in text
    assert "row 1 (id r0, line 1)" in text


def test_colours_and_ids(tmp_path: Path) -> None:
    text = page(show(settings_for(tmp_path)), colour=True, ids=True)
    assert "\x1b[32m😀<" in text
    assert "\x1b[31m<|im_start|><1>" in text


def test_missing_tokens_are_underlined_and_counted() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("ok 😀", add_special_tokens=False)["input_ids"]
    row = TokenRow("x", np.array(ids, dtype=np.int32), np.ones(len(ids), dtype=np.uint8))
    shown = show_row(1, row, tokenizer, from_ids(ids[:1], VOCAB))
    assert "".join(piece.text for piece in shown.pieces) == "ok 😀"
    assert shown.missing == len(ids) - 1
    assert "\x1b[4m" in page(Shown("x", 1, 1, (shown,)), colour=True)
    assert "{?" in page(Shown("x", 1, 1, (shown,)), colour=False)


def test_html_is_escaped_and_json_is_whole(tmp_path: Path) -> None:
    shown = show(settings_for(tmp_path))
    text = html(shown)
    assert "<b>" not in text
    assert "&lt;|im_start|&gt;" in text
    told = as_data(shown)[0]
    assert [run["role"] for run in told["runs"] if run["trained"]] == ["assistant"]
    assert sum(len(run["token_ids"]) for run in told["runs"]) == told["tokens"]


def test_text_cannot_steer_the_terminal() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("a\x1b[2Jb\r", add_special_tokens=False)["input_ids"]
    row = TokenRow("x", np.array(ids, dtype=np.int32), np.zeros(len(ids), dtype=np.uint8))
    text = page(Shown("x", 1, None, (show_row(1, row, tokenizer, None),)), colour=False)
    assert "a\\x1b[2Jb\\x0d" in text


def test_random_rows_are_seeded(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, random=3, seed=1)
    assert show(settings) == show(settings)
    assert len({row.number for row in show(settings).rows}) == 3


def test_errors(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, rows=(99,))
    with pytest.raises(UsageError, match="no row 99; the rows are 1 to 6"):
        show(settings)
    with pytest.raises(DataError, match="neither a cache"):
        show(settings, path=tmp_path)
    with pytest.raises(DataError, match="no such file"):
        show(settings, path=tmp_path / "none")
