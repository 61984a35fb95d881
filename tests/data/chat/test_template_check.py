from __future__ import annotations

import copy

from eagle3cli.data.chat.template_check import SAMPLES, check_template, first_difference, fitting_templates
from tests.data.chat.templates import tokenizer_for


def test_every_probe_is_answered() -> None:
    comparisons = check_template(tokenizer_for("qwen3"), "qwen3")
    assert [comparison.sample for comparison in comparisons] == [sample.name for sample in SAMPLES]
    assert all(comparison.equal for comparison in comparisons)


def test_the_first_difference_is_shown() -> None:
    plain = check_template(tokenizer_for("qwen3"), "qwen3-instruct")[0]
    assert not plain.equal
    assert plain.difference is not None
    assert plain.difference.own.endswith("<think>\n\n</think>\n\nHello!<|im_end|>\n")
    assert plain.difference.named.endswith("assistant\nHello!<|im_end|>\n")


def test_a_prompt_that_differs_is_a_difference_too() -> None:
    """The conversations are alike; only a server's prompt opens a block of reasoning."""
    tokenizer = copy.deepcopy(tokenizer_for("deepseek-v3"))
    comparisons = check_template(tokenizer, "deepseek-r1")
    assert [comparison.equal for comparison in comparisons[:3]] == [False, False, False]


def test_one_sided_refusals_are_told() -> None:
    tokenizer = copy.deepcopy(tokenizer_for("chatml"))
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    comparison = check_template(tokenizer, "chatml")[0]
    assert not comparison.equal
    assert "only the tokenizer's own refuses it" in comparison.detail
    assert "never" in comparison.detail


def test_refusals_of_both_are_equal() -> None:
    comparisons = {comparison.sample: comparison for comparison in check_template(tokenizer_for("chatml"), "chatml")}
    assert comparisons["tool call"].equal
    assert comparisons["tool call"].detail == "both refuse it"


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
