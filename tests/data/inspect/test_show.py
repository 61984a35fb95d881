from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from eagle3cli.console.tokens import Style, as_data, edges, html, page, title, visible
from eagle3cli.data.inspect.selection import SelectedRow
from eagle3cli.data.inspect.show import RowView, View, show, show_row
from eagle3cli.data.tokens.cache import open_or_build
from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.data import DataSettings, ViewSettings
from eagle3cli.settings.models import TargetSettings
from eagle3cli.settings.tables import Settings
from tests.failing import fails
from tests.tiny import VOCAB, tiny_tokenizer


def talk(name: str | None, number: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"q{number} <b>"}, {"role": "assistant", "content": "😀 ok"}]
    return {"id": name, "conversations": messages} if name else {"conversations": messages}


def settings_for(tmp_path: Path, max_length: int = 2048, **view: object) -> Settings:
    """Six good rows, a rejected one before the second and one without an id at the end."""
    target = tmp_path / "target"
    tiny_tokenizer().save_pretrained(target)
    rows = [*(talk(f"r{i}", i) for i in range(6)), talk(None, 6)]
    rows.insert(1, {"id": "bad", "conversations": []})
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSettings(train_path=path, cache_dir=tmp_path / "cache", max_length=max_length)
    return Settings(target=TargetSettings(model_path=str(target)), data=data, view=ViewSettings(**view))


def shown_row(text: str, trained: bool, known: list[int] | None = None) -> RowView:
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    in_draft = None if known is None else np.isin(np.arange(VOCAB), [ids[i] for i in known])
    row = TokenRow("x", np.array(ids, dtype=np.int32), np.full(len(ids), trained, dtype=np.uint8))
    return show_row(SelectedRow(1, row), tokenizer, in_draft)


def test_a_file_and_its_cache_show_the_same_rows(tmp_path: Path) -> None:
    raw = show(settings_for(tmp_path, rows=(1, 3)))
    settings = settings_for(tmp_path, rows=(1, 2))
    cached = open_or_build(settings, 40, VOCAB, Silent())
    from_cache = show(settings)
    assert from_cache.source != raw.source
    assert [row.id for row in raw.rows] == [row.id for row in from_cache.rows] == ["r0", "r1"]
    assert [row.line for row in raw.rows] == [row.line for row in from_cache.rows] == [1, 3]
    assert [[p.text for p in row.pieces] for row in raw.rows] == [
        [p.text for p in row.pieces] for row in from_cache.rows
    ]
    assert [row.replies for row in raw.rows] == [row.replies for row in from_cache.rows]
    assert from_cache.draft_vocab == 40
    by_path = show(settings, path=cached.folder, rows=(2,))
    assert by_path.rows[0] == from_cache.rows[1]
    assert show(settings, path=cached.folder / "train", rows=(2,)) == by_path


def test_rows_by_id(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, rows=("r4", 1), id=("line-8",))
    raw = show(settings)
    assert [(row.number, row.id) for row in raw.rows] == [(1, "r0"), (6, "r4"), (8, "line-8")]
    open_or_build(settings, 40, VOCAB, Silent())
    cached = show(settings)
    assert [(row.number, row.id, row.line) for row in cached.rows] == [(1, "r0", 1), (5, "r4", 6), (7, "line-8", 8)]
    for where in (
        settings_for(tmp_path, rows=("r9",)),
        settings_for(tmp_path, rows=("r9",), path=tmp_path / "train.jsonl"),
    ):
        with fails("no-such-row", "r9"):
            show(where)


def test_a_rejected_row_of_a_file_is_told(tmp_path: Path) -> None:
    shown = show(settings_for(tmp_path, rows=(2, "bad")))
    (row,) = shown.rows
    assert (row.number, row.line, row.rejected) == (2, 2, "no messages")
    assert title(row) == "row 2 (id bad, line 2): rejected: no messages"
    assert as_data(shown) == [{"row": 2, "id": "bad", "line": 2, "rejected": "no messages"}]
    assert "rejected: no messages" in html(shown, Style())


def test_plain_text_marks_what_is_trained(tmp_path: Path) -> None:
    text = page(show(settings_for(tmp_path)), Style())
    assert "{+😀 ok<|im_end|>+}" in text
    assert "[assistant]" in text
    assert "\x1b" not in text
    assert "row 1 (id r0, line 1)" in text


def test_the_edges_of_each_reply(tmp_path: Path) -> None:
    (row,) = show(settings_for(tmp_path)).rows
    (reply,) = row.replies
    assert (reply.behind, reply.begins, reply.ends) == ("<|im_start|>assistant\n", "😀", "<|im_end|>")
    assert (reply.last - reply.first, reply.ended) == (row.trained, True)
    place = f"reply 1: tokens {reply.first} to {reply.last - 1}"
    assert list(edges(row)) == [place + ", behind '<|im_start|>assistant\\n' from '😀' to '<|im_end|>'"]
    (cut,) = show(settings_for(tmp_path, max_length=row.tokens - 3)).rows
    assert cut.truncated
    assert "cut at the maximum length" in title(cut)
    assert not cut.replies[0].ended
    assert next(edges(cut)).endswith(", no end token")


def test_neighbouring_replies_are_two() -> None:
    row = TokenRow("x", np.arange(3, 9, dtype=np.int32), np.array([0, 1, 1, 1, 1, 0], dtype=np.uint8))
    runs = {True: [(1, 3), (3, 5)], False: [(1, 5)]}
    for known, found in runs.items():
        turns = ((0, "user"), (1, "assistant"), (3, "assistant")) if known else ()
        shown = show_row(
            SelectedRow(1, TokenRow("x", row.token_ids, row.loss_mask, turns=turns)), tiny_tokenizer(), None
        )
        assert [(reply.first, reply.last) for reply in shown.replies] == found


def test_a_row_that_trains_nothing_says_so() -> None:
    assert title(shown_row("some text", trained=False)).endswith("trained in 0 replies; it trains nothing")


def test_colours_and_ids(tmp_path: Path) -> None:
    text = page(show(settings_for(tmp_path)), Style(colour=True, ids=True))
    assert "\x1b[32m😀<" in text
    assert "\x1b[31m<|im_start|><1>" in text
    for line in text.split("\n"):  # a pager forgets the colour at the end of a line
        assert line.count("\x1b[0m") >= ("\x1b[3" in line)


def test_missing_tokens_are_underlined_and_counted() -> None:
    shown = View("x", 1, (shown_row("ok 😀", trained=True, known=[0]),))
    row = shown.rows[0]
    assert "".join(piece.text for piece in row.pieces) == "ok 😀"
    assert row.missing == row.tokens - 1
    assert f"trained in 1 reply, {row.missing} of them unknown to the draft" in title(row)
    assert "\x1b[4m" in page(shown, Style(colour=True))
    assert "{?" in page(shown, Style())
    assert "class='t m'" in html(shown, Style())
    without = View("x", None, (shown_row("ok", trained=True),))
    assert "unknown" not in page(without, Style()) + page(without, Style(colour=True)) + html(without, Style())


def test_tokens_without_their_blank_get_it_back() -> None:
    """A decoder that leaves out a text's first blank must not join the words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "▁one": 1, "▁two": 2, "s": 3}, unk_token="[UNK]"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    row = TokenRow("x", np.array([1, 2, 3], dtype=np.int32), np.ones(3, dtype=np.uint8))
    shown = show_row(SelectedRow(1, row), PreTrainedTokenizerFast(tokenizer_object=words), None)
    assert [piece.text for piece in shown.pieces] == ["one", " two", "s"]


def test_html_is_escaped_and_json_is_whole(tmp_path: Path) -> None:
    shown = show(settings_for(tmp_path))
    text = html(shown, Style())
    assert "<b>" not in text
    assert "&lt;|im_start|&gt;" in text
    assert "http" not in text
    told = as_data(shown)[0]
    assert [run["role"] for run in told["runs"] if run["trained"]] == ["assistant"]
    assert sum(len(run["token_ids"]) for run in told["runs"]) == told["tokens"]
    assert told["token_ids"] == [i for run in told["runs"] for i in run["token_ids"]]
    assert told["loss_mask"] == [int(run["trained"]) for run in told["runs"] for _ in run["token_ids"]]
    assert sum(told["loss_mask"]) == told["trained"] > 0
    assert told["replies"][0]["behind"] == "<|im_start|>assistant\n"


def test_text_cannot_steer_the_terminal() -> None:
    for style in (Style(), Style(colour=True), Style(whitespace=True)):
        text = page(View("x", None, (shown_row("a\x1b[2Jb\r\u202e", trained=False),)), style)
        assert "a\\x1b[2Jb\\x0d\\u202e" in text
        assert "\r" not in text


def test_white_space_on_demand() -> None:
    text = "a b\tc\nd\u00a0e\u200bf 👩\u200d🚒"
    assert visible(text) == text
    assert visible(text, whitespace=True) == "a·b→c↵\nd\\xa0e\\u200bf·👩\\u200d🚒"
    assert "ok·😀" in page(View("x", None, (shown_row("ok 😀", trained=False),)), Style(whitespace=True))


def test_random_rows_are_seeded(tmp_path: Path) -> None:
    settings, other = settings_for(tmp_path, random=3, seed=1), settings_for(tmp_path, random=3, seed=2)
    raw = show(settings)
    assert raw == show(settings)
    assert raw != show(other)
    assert [row.number for row in raw.rows] == sorted({row.number for row in raw.rows})
    assert len(show(settings_for(tmp_path, random=99)).rows) == 8
    open_or_build(settings, 40, VOCAB, Silent())
    assert show(settings) == show(settings)
    assert len({row.number for row in show(settings).rows}) == 3


def test_errors(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, rows=(99,))
    with fails("no-such-row", "99", "1", "8"):
        show(settings)
    with fails("no-such-row", "0"):
        show(settings_for(tmp_path, rows=(0,)))
    with fails("no-such-path"):
        show(settings, path=tmp_path)
    with fails("no-such-path"):
        show(settings, path=tmp_path / "none")
