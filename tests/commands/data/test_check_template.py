"""eagle3 check-template, and view --check-template, as typed, with a tokenizer's folder as the target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunCli
from tests.data.chat.templates import tokenizer_for

PLAIN = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def tokenizer_of_no_family() -> Any:
    """A tokenizer that knows its end token and no other."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<stop>")
    tokenizer.chat_template = PLAIN
    return tokenizer


@pytest.fixture
def target(tmp_path: Path) -> Path:
    tokenizer_for("qwen3").save_pretrained(tmp_path / "target")
    return tmp_path / "target"


def test_an_equal_template(run_cli: RunCli, target: Path) -> None:
    ran = run_cli("view", "--check-template", "qwen3", "--target-model-path", target)
    assert ran.code == 0, ran.err
    assert "qwen3: 12 of 12 conversations" in ran.out
    assert "equal    tool call" in ran.out


def test_a_template_that_differs(run_cli: RunCli, target: Path) -> None:
    ran = run_cli("view", "--check-template=qwen", "--target-model-path", target)
    assert ran.code == 1
    assert "DIFFERS  plain: differs at character 12" in ran.out
    assert "You are Qwen" in ran.out


def test_without_a_name_all_that_fit_are_tried(run_cli: RunCli, target: Path) -> None:
    ran = run_cli("view", "--check-template", "--target-model-path", target, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["equal"] == ["qwen3"]
    assert "chatml" in ran.json["templates"]
    assert "gemma" not in ran.json["templates"]


def test_without_a_name_the_chosen_template_is_tried(run_cli: RunCli, target: Path) -> None:
    ran = run_cli("view", "--target-model-path", target, "--chat-template", "chatml", "--check-template")
    assert ran.code == 1
    assert ran.out.startswith("chatml: ")


def test_a_jinja_file(run_cli: RunCli, target: Path) -> None:
    (target / "copy.jinja").write_text(tokenizer_for("qwen3").chat_template, encoding="utf-8")
    ran = run_cli("view", "--check-template", target / "copy.jinja", "--target-model-path", target)
    assert ran.code == 0, ran.err


def test_the_command_of_its_own_name_judges_masks(run_cli: RunCli, target: Path) -> None:
    ran = run_cli("check-template", "qwen3", "--target-model-path", target)
    assert ran.code == 0, ran.err
    assert "qwen3: 12 of 12 conversations" in ran.out
    assert "stops: <|im_end|>; the template ends a reply with '<|im_end|>'" in ran.out
    assert "masks: 16 of 16 probing rows are right" in ran.out


def test_a_tokenizer_that_no_named_template_fits_is_judged_by_its_own(run_cli: RunCli, tmp_path: Path) -> None:
    tokenizer = tokenizer_of_no_family()
    tokenizer.save_pretrained(tmp_path / "own")
    ran = run_cli("check-template", "--target-model-path", tmp_path / "own", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["equal"], ran.json["templates"]) == ([], {})
    assert next(mask["verdict"] for mask in ran.json["masks"] if mask["probe"] == "turns") == "right"


def test_a_template_without_tools_is_judged_by_the_rest(run_cli: RunCli, target: Path) -> None:
    (target / "short.jinja").write_text(PLAIN, encoding="utf-8")
    ran = run_cli("check-template", target / "short.jinja", "--target-model-path", target, "--json")
    assert ran.code == 1  # it is not the tokenizer's own
    verdicts = {mask["probe"]: mask["verdict"] for mask in ran.json["masks"]}
    assert verdicts["turns"] == "right"
    assert verdicts["tool call"] == "refused"
    assert ran.json["end_of_reply"] == ""
    assert "«" in next(mask["shown"] for mask in ran.json["masks"] if mask["probe"] == "turns")


@pytest.mark.parametrize(("name", "code", "said"), [("qwen9", 2, "did you mean"), ("llama3", 1, "does not know")])
def test_what_cannot_be_compared(run_cli: RunCli, target: Path, name: str, code: int, said: str) -> None:
    ran = run_cli("view", "--check-template", name, "--target-model-path", target)
    assert ran.code == code
    assert said in ran.err
