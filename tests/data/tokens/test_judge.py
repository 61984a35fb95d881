"""The judge of masks: what it notices in a row, and that it stops what would be built on wrong ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eagle3cli.data.conversations.conversation import Conversation
from eagle3cli.data.tokens.blocks import EncoderConfig
from eagle3cli.data.tokens.encode import Encoder
from eagle3cli.data.tokens.judge import compare, shown
from eagle3cli.data.tokens.mask_check import MOST_MESSAGES, SAMPLE_ROWS, Judge, check_masks, judge_probes
from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.errors import DataError
from tests.data.chat.formats import Message
from tests.data.chat.grammars import TWO, by_role, encoded
from tests.data.chat.public_formats import PUBLIC, public_encoder, truth_of_format
from tests.data.chat.templates import tokenizer_for
from tests.failing import fails
from tests.tiny import tiny_tokenizer

CODER = public_encoder("chatml")
ROW = encoded(CODER, TWO)
TRUTH = truth_of_format(PUBLIC["chatml"], TWO)


def masked(*, off: int | None = None, on: int | None = None) -> TokenRow:
    mask = ROW.loss_mask.copy()
    if off is not None:
        mask[np.flatnonzero(mask)[off]] = 0
    if on is not None:
        mask[on] = 1
    return replace(ROW, loss_mask=mask)


@pytest.mark.parametrize("off", [0, 1, -1])
def test_a_token_that_is_not_trained(off: int) -> None:
    wrong = compare(CODER.tokenizer, masked(off=off), TRUTH)
    assert wrong is not None
    assert wrong.what == "not trained, though the target wrote it"
    assert wrong.token == np.flatnonzero(ROW.loss_mask)[off]


def test_a_token_that_the_target_did_not_write() -> None:
    before = int(np.flatnonzero(ROW.loss_mask)[0]) - 1
    wrong = compare(CODER.tokenizer, masked(on=before), TRUTH)
    assert wrong is not None
    assert (wrong.token, wrong.what) == (before, "trained, but the target did not write it")


def test_an_empty_block_whose_white_space_is_one_token() -> None:
    """The prompt that asks for no reasoning holds it; the one that asks for some ends within that token."""
    tokenizer = tokenizer_for("chatml", "digits")
    user = "<|im_start|>user\nCONTENT<|im_end|>\n"
    reply = "<|im_start|>assistant\n<think>\n\n</think>\n\nCONTENT<|im_end|>\n"
    tokenizer.chat_template = by_role("<|im_start|>assistant\n<think>\n", user=user, assistant=reply)
    ids = frozenset({tokenizer.convert_tokens_to_ids("<|im_end|>")})
    assert len(tokenizer("\n\n", add_special_tokens=False)["input_ids"]) == 1
    judge = Judge(Encoder(tokenizer, ids), ids)
    judgement = judge.judge(Conversation("row", tuple(TWO)))
    assert judgement.verdict == "right", judgement
    assert judgement.shown.endswith("</think>\n\n«a2<|im_end|>»\n")
    empty = (*TWO[:-1], {"role": "assistant", "content": ""})
    assert judge.judge(Conversation("row", empty, ("stop", "length"))).verdict == "right"


@pytest.mark.parametrize(
    ("at", "what"),
    [(3, "the context is not what a server shows"), (-2, "the last reply is not what the target wrote")],
)
def test_other_tokens(at: int, what: str) -> None:
    ids = ROW.token_ids.copy()
    ids[at] = ids[at] + 1
    wrong = compare(CODER.tokenizer, replace(ROW, token_ids=ids), TRUTH)
    assert wrong is not None
    assert wrong.what.startswith(what)


def test_a_row_without_its_end() -> None:
    short = replace(ROW, token_ids=ROW.token_ids[:-3], loss_mask=ROW.loss_mask[:-3])
    assert compare(CODER.tokenizer, short, TRUTH) is not None
    assert compare(CODER.tokenizer, replace(short, truncated=True), TRUTH) is None


def test_only_the_last_turn() -> None:
    wrong = compare(CODER.tokenizer, ROW, TRUTH, last_only=True)
    assert wrong is not None
    only = encoded(Encoder(CODER.tokenizer, CODER.end_ids, last_turn_only=True), TWO)
    assert compare(CODER.tokenizer, only, TRUTH, last_only=True) is None


def test_a_row_is_shown_with_its_mask() -> None:
    assert "<|im_start|>assistant\n«a1<|im_end|>»\n" in shown(CODER.tokenizer, ROW, 0)
    long = encoded(CODER, [{"role": "user", "content": "x y " * 400}, {"role": "assistant", "content": "z " * 400}])
    text = shown(CODER.tokenizer, long, len(long) // 2)
    assert text.startswith("...")
    assert text.endswith("...")
    assert len(text) < 1000


@pytest.mark.parametrize("name", ["chatml", "qwen3", "glm4", "kimi-k3", "vicuna"])
def test_the_probes_of_sound_templates(name: str) -> None:
    judged = dict(judge_probes(Judge(public_encoder(name), public_encoder(name).end_ids)))
    assert judged["turns"].verdict == "right"
    assert {judgement.verdict for judgement in judged.values()} <= {"right", "refused"}
    if PUBLIC[name].call:
        assert judged["chain of tool calls"].verdict == "right"


def test_reasoning_in_the_text_of_a_reply_whose_prompt_begins_it() -> None:
    judged = dict(judge_probes(Judge(public_encoder("qwq"), public_encoder("qwq").end_ids)))
    assert judged["reasoning in the content"].verdict == "right"


@pytest.fixture
def config(tmp_path: Path) -> EncoderConfig:
    tiny_tokenizer().save_pretrained(tmp_path / "target")
    return EncoderConfig(str(tmp_path / "target"), None, False, "auto", 512, False, False)


def write(path: Path, talks: list[list[Message]]) -> Path:
    lines = [json.dumps({"id": f"r{i}", "conversations": talk}) for i, talk in enumerate(talks)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_sample_of_the_rows_is_judged(config: EncoderConfig, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [TWO] * 100)
    assert check_masks(config, {"train": path, "eval": path}) == {"right": 2 * SAMPLE_ROWS, "refused": 0, "unknown": 0}
    assert check_masks(replace(config, is_preformatted=True), {"train": path}) == {}


def test_a_wrong_mask_stops_with_the_row(
    config: EncoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row of another shape among many is in the sample, and its line is told."""
    thought = [TWO[0], {**TWO[1], "reasoning_content": "r"}]
    path = write(tmp_path / "rows.jsonl", [*[TWO] * 60, thought, *[TWO] * 60])
    encode = Encoder.encode

    def wrong(self: Encoder, conversations: list[Conversation]) -> list[TokenRow | DataError]:
        rows = encode(self, conversations)
        if "reasoning_content" not in conversations[0].messages[1]:
            return rows
        return [replace(row, loss_mask=np.roll(row.loss_mask, 1)) for row in rows if isinstance(row, TokenRow)]

    monkeypatch.setattr(Encoder, "encode", wrong)
    with fails("mask-wrong") as error:
        check_masks(config, {"train": path})
    assert error.value.where == f"{path}:61"
    assert "a«1<|im_end|>\n»" in error.value.message
    assert "--no-check-masks" in (error.value.fix or "")


def test_of_a_long_conversation_the_beginning_is_judged(config: EncoderConfig, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [TWO * MOST_MESSAGES])
    assert check_masks(config, {"train": path})["right"] == 1


def test_rows_that_cannot_be_read_are_left_to_others(config: EncoderConfig, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [TWO, [{"role": "user", "content": "q"}, {"role": "assistant"}]])
    assert check_masks(config, {"train": path})["right"] == 1
