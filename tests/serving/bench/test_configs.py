"""Configurations as typed, and what is wrong with those that cannot be."""

from __future__ import annotations

import pytest

from eagle3cli.serving.bench.configs import Config, chain, most_tokens, parse_config, require_chains, with_baselines
from tests.failing import fails


def test_configurations_as_typed() -> None:
    assert parse_config("4,5,1,6") == chain(4, 5)
    assert parse_config("4,7,10,60") == Config(4, 7, 10, 60)
    assert parse_config("1,0,0,0") == Config(1)
    configs = [chain(1, 3), Config(1), Config(2, 5, 4, 16), chain(1, 5)]
    assert [str(c) for c in with_baselines(configs)] == ["1,0,0,0", "1,3,1,4", "2,0,0,0", "2,5,4,16", "1,5,1,6"]
    assert most_tokens(2, 4) == 1 + 4 + 16


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,3,1,8", "4"),
        ("1,3,0,4", "1,3,1,4"),
        ("1,1,4,16", "5"),
        ("1,3", "draft_tokens"),
        ("a,b,c,d", "draft_tokens"),
        ("0,3,1,4", "1"),
        ("1,0,1,1", "1,0,0,0"),
    ],
)
def test_wrong_configurations_are_told(text: str, value: str) -> None:
    with fails("invalid-value", value):
        parse_config(text)


def test_an_engine_of_chains_names_the_chain_to_type() -> None:
    require_chains([Config(4), chain(4, 3)], "vLLM")
    with fails("invalid-value", "4", "3", "1"):
        require_chains([Config(4, 3, 2, 4)], "vLLM")
