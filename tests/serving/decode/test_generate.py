"""Batched decoding gives each row what it would get alone, and what transformers gives it."""

from __future__ import annotations

import pytest
import torch

from eagle3cli.backends.target.hf import HfTarget, load_target
from eagle3cli.backends.target.positions import grouped
from eagle3cli.models.sampling import Sampling
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.decode.generate import Decoder, Sequence, sample
from eagle3cli.settings.models import TargetSettings
from tests.tiny import tiny_target

LENGTHS = (3, 40, 1, 17, 9, 25, 2, 33, 12)
NO_END = frozenset[int]()


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HfTarget:
    folder = tiny_target(tmp_path_factory.mktemp("target") / request.param, request.param)
    return load_target(TargetSettings(model_path=str(folder), device="cpu"), Silent())


def prompts(seed: int = 0) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 300, (length,), generator=draw).tolist() for length in LENGTHS]


def replies(
    target: HfTarget, batch_size: int, sampling: Sampling | None = None, eos: frozenset[int] = NO_END
) -> list[Sequence]:
    decoder = Decoder(target.model, batch_size, eos, sampling)
    for index, prompt in enumerate(prompts()):
        decoder.add(index, prompt, 24)
    finished: list[Sequence] = []
    with grouped(target.model):
        while not decoder.is_finished:
            finished += decoder.step()
    return sorted(finished, key=lambda reply: reply.index)


@pytest.mark.slow
def test_every_row_is_what_transformers_generates(target: HfTarget) -> None:
    for reply, prompt in zip(replies(target, 4), prompts(), strict=True):
        expected = target.model.generate(
            torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        assert reply.token_ids == expected[0, len(prompt) :].tolist()
        assert reply.finish == "length"


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [None, Sampling(temperature=0.9, top_p=0.9, top_k=20, seed=3)])
def test_batching_changes_nothing(target: HfTarget, sampling: Sampling | None) -> None:
    alone = replies(target, 1, sampling)
    assert replies(target, 4, sampling) == alone
    assert replies(target, 64, sampling) == alone


def test_a_row_ends_at_the_end_token_and_gives_its_place_away(target: HfTarget) -> None:
    free = replies(target, 4)
    end = free[0].token_ids[5]
    for cut, full in zip(replies(target, 4, eos=frozenset({end})), free, strict=True):
        stop = full.token_ids.index(end) + 1 if end in full.token_ids else len(full.token_ids)
        assert cut.token_ids == full.token_ids[:stop]
        assert cut.finish == ("stop" if end in full.token_ids else "length")


@pytest.mark.slow
def test_seeds_differ_and_repeat(target: HfTarget) -> None:
    first, again, other = (replies(target, 4, Sampling(temperature=1.0, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_the_models_attention_is_given_back(target: HfTarget) -> None:
    before = target.model.config._attn_implementation
    replies(target, 4)
    assert target.model.config._attn_implementation == before


def test_a_draw_falls_into_the_share_of_its_token() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(4, 4)
    draws = torch.tensor([0.05, 0.15, 0.45, 0.99])
    assert sample(logits, draws, Sampling(temperature=1.0)).tolist() == [0, 1, 2, 3]


def test_cuts_leave_only_the_likely_tokens() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(101, 4)
    draws = torch.linspace(0, 0.999999, 101)
    assert set(sample(logits, draws, Sampling(1.0, top_k=2)).tolist()) == {2, 3}
    assert set(sample(logits, draws, Sampling(1.0, top_p=0.65)).tolist()) == {2, 3}
    assert set(sample(logits, draws, Sampling(1.0, top_p=0.01)).tolist()) == {3}


def test_shares_are_those_of_the_distribution() -> None:
    chances = torch.tensor([0.1, 0.2, 0.3, 0.4])
    draws = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    chosen = sample(chances.log().expand(20_000, 4), draws, Sampling(temperature=1.0))
    assert torch.allclose(chosen.bincount(minlength=4) / 20_000, chances, atol=0.015)
