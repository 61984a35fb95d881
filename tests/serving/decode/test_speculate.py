"""Speculative sampling is exact: the text is distributed as plain sampling has it, whatever the draft says."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from eagle3cli.models.sampling import Sampling, probabilities
from eagle3cli.serving.decode.decode import decode
from eagle3cli.serving.decode.generate import draw, sample
from eagle3cli.serving.decode.speculate import rejection_sample, uniform
from tests.serving.decode.test_decode import opened


def chi_square(counts: torch.Tensor, chances: torch.Tensor) -> float:
    """Per degree of freedom: about 1 for draws from these chances."""
    expected = chances * counts.sum()
    frequent = expected > 5
    return float(
        (((counts - expected) ** 2 / expected.clamp(min=1e-9))[frequent]).sum() / max(1, int(frequent.sum()) - 1)
    )


def test_draws_follow_the_chances() -> None:
    chances = torch.tensor([0.5, 0.2, 0.0, 0.3])
    numbers = uniform([random.Random(0)], 20_000, torch.device("cpu"))[0]
    tokens = draw(chances.expand(20_000, 4), numbers)
    counts = torch.bincount(tokens, minlength=4).double()
    assert counts[2] == 0
    assert chi_square(counts, chances.double()) < 3


@pytest.mark.parametrize("agreement", ["alike", "unlike", "nothing in common"])
def test_every_token_is_the_targets(agreement: str) -> None:
    """Chains of two proposals; the first token of the outcome, and the second given the first, follow p alone."""
    torch.manual_seed(0)
    rows, size = 60_000, 6
    first, second = torch.rand(size).softmax(0), (3 * torch.rand(size, size)).softmax(-1)
    ids = torch.tensor([0, 2, 3, 5])
    q = {
        "alike": torch.stack([first[ids], second[0][ids]]) + 1e-3,
        "unlike": torch.rand(2, 4).pow(4) + 1e-3,
        "nothing in common": torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1.0]]),
    }[agreement]
    if agreement == "nothing in common":
        first = torch.tensor([0.0, 0.6, 0, 0, 0.4, 0])
    q = (q / q.sum(-1, keepdim=True)).expand(rows, 2, 4)
    numbers = torch.rand(rows, 5, dtype=torch.float64)
    proposed = torch.stack([ids[draw(q[:, at], numbers[:, at])] for at in (0, 1)], 1)
    p = torch.stack([first.expand(rows, size), second[proposed[:, 0]], second[proposed[:, 1]]], 1)
    accepted, tokens = rejection_sample(p, proposed, q, ids, numbers[:, 2:5])
    assert chi_square(torch.bincount(tokens[:, 0], minlength=size).double(), first.double()) < 3
    if agreement == "nothing in common":
        assert int(accepted.max()) == 0
        return
    for token in range(size):
        after = tokens[(accepted >= 1) & (tokens[:, 0] == token), 1]
        if len(after) > 2000:
            assert chi_square(torch.bincount(after, minlength=size).double(), second[token].double()) < 3.5
    assert 0 < int((accepted == 2).sum()) < rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draft_name", "top_p", "top_k"), [("draft", 1.0, 0), ("draft_random", 1.0, 0), ("draft", 0.995, 20)]
)
def test_whole_answers_are_drawn_as_without_a_draft(shared: Path, draft_name: str, top_p: float, top_k: int) -> None:
    """The joint distribution of two tokens with a draft, against plain sampling: two samples of one distribution."""
    folder = shared / "engines" / "tiny_eagle3"
    if not folder.is_dir():
        pytest.skip(f"no trained tiny draft at {folder}")
    target, draft = opened(folder, draft_name)
    count = 1500
    prompts = [[1, 3, 9, 12, 59, 4]] * count

    def sample(k: int, first_seed: int) -> Counter[tuple[int, ...]]:
        seeds = [first_seed + i for i in range(count)]
        answers = decode(
            target,
            draft,
            prompts,
            k=k,
            max_new_tokens=3,
            eos_ids=frozenset(),
            batch_size=250,
            temperature=1.6,
            top_p=top_p,
            top_k=top_k,
            seeds=seeds,
        )
        return Counter(tuple(answer.token_ids[1:]) for answer in answers)

    plain, chain = sample(0, 0), sample(2, 10**6)
    common = [text for text, times in (plain + chain).items() if times >= 16]
    rest = (count - sum(plain[text] for text in common), count - sum(chain[text] for text in common))
    pairs = [(plain[text], chain[text]) for text in common] + [rest]
    statistic = sum((a - b) ** 2 / (a + b) for a, b in pairs if a + b)
    assert len(pairs) > 3
    assert statistic / len(pairs) < 2.2


def test_cuts_are_those_of_plain_sampling() -> None:
    """The same token as :func:`sample` gives for the same number, whatever is cut, and nothing outside of it."""
    torch.manual_seed(0)
    logits_BV = 3 * torch.randn(400, 40)
    numbers_B = torch.rand(400, dtype=torch.float64)
    for sampling in (Sampling(0.8, 0.7), Sampling(1.0, 1.0, 3), Sampling(1.3, 0.6, 5), Sampling(1.0, 1e-6)):
        probs_BV = probabilities(logits_BV, sampling)
        assert torch.allclose(probs_BV.sum(-1), torch.ones(400))
        order_BV = logits_BV.argsort(-1, descending=True)  # sample() draws along this order
        drawn_B = order_BV.gather(1, draw(probs_BV.gather(1, order_BV), numbers_B)[:, None])[:, 0]
        assert torch.equal(drawn_B, sample(logits_BV, numbers_B, sampling))
        assert int((probs_BV > 0).sum(-1).max()) <= (sampling.top_k or 40)


@pytest.mark.slow
def test_an_answer_does_not_depend_on_its_neighbours(shared: Path) -> None:
    folder = shared / "engines" / "tiny_eagle3"
    if not folder.is_dir():
        pytest.skip(f"no trained tiny draft at {folder}")
    target, draft = opened(folder, "draft")
    prompts = [[1, 3, 9, 12, 42 + n, 4] for n in range(5)]

    def answers(batch: int) -> list[list[int]]:
        replies = decode(
            target, draft, prompts, k=3, max_new_tokens=12, eos_ids=frozenset({2}), batch_size=batch, temperature=1.5,
            seeds=[7, 8, 9, 10, 11],
        )  # fmt: skip
        return [one.token_ids for one in replies]

    assert answers(5) == answers(1) == answers(2)
