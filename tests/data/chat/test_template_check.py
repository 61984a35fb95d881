from __future__ import annotations

import copy

from eagle3cli.data.chat.template_check import PROBES, check_template, first_difference, fitting_templates
from tests.data.chat.templates import tokenizer_for


def test_every_probe_is_answered() -> None:
    answers = check_template(tokenizer_for("qwen3"), "qwen3")
    assert [answer.probe for answer in answers] == [probe.name for probe in PROBES]
    assert all(answer.equal for answer in answers)


def test_the_first_difference_is_shown() -> None:
    plain = check_template(tokenizer_for("qwen3"), "qwen3-instruct")[0]
    assert not plain.equal
    assert plain.difference is not None
    assert plain.difference.own.endswith("<think>\n\n</think>\n\nHello!<|im_end|>\n")
    assert plain.difference.named.endswith("assistant\nHello!<|im_end|>\n")


def test_a_prompt_that_differs_is_a_difference_too() -> None:
    """The conversations are alike; only a server's prompt opens a block of reasoning."""
    tokenizer = copy.deepcopy(tokenizer_for("deepseek-v3"))
    answers = check_template(tokenizer, "deepseek-r1")
    assert [answer.equal for answer in answers[:3]] == [False, False, False]


def test_one_sided_refusals_are_told() -> None:
    tokenizer = copy.deepcopy(tokenizer_for("chatml"))
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    answer = check_template(tokenizer, "chatml")[0]
    assert not answer.equal
    assert "only the tokenizer's own refuses it" in answer.detail
    assert "never" in answer.detail


def test_refusals_of_both_are_equal() -> None:
    answers = {answer.probe: answer for answer in check_template(tokenizer_for("chatml"), "chatml")}
    assert answers["tool call"].equal
    assert answers["tool call"].detail == "both refuse it"


def test_all_fitting_templates_the_most_alike_first() -> None:
    checked = fitting_templates(tokenizer_for("qwen"))
    names = [name for name, _ in checked]
    assert names[0] == "qwen"
    assert {"chatml", "qwen3", "qwq"} <= set(names)
    assert "llama3" not in names


def test_first_difference() -> None:
    found = first_difference("abcd", "abXd")
    assert (found.at, found.own, found.named) == (2, "abcd", "abXd")
    assert first_difference("ab", "abc").at == 2
