"""What a step minimises, from the settings."""

from __future__ import annotations

import math

import pytest
import torch

from eagle3cli.settings.training import TrainSettings
from eagle3cli.training.ttt.loss import LossSums, loss_weights, mean_rates


def test_one_term_weighs_by_depth() -> None:
    for loss, name in (("kl", "cross_entropy_T"), ("tv", "total_variation_T"), ("lk", "log_rate_T")):
        weights = loss_weights(TrainSettings(loss=loss, ttt_length=3, loss_decay=0.5), [])
        assert getattr(weights, name) == [1.0, 0.5, 0.25]
        assert weights.need_rates == (loss != "kl")
        assert sum(map(sum, (weights.cross_entropy_T, weights.total_variation_T, weights.log_rate_T))) == 1.75


def test_a_mix_follows_the_rates_of_the_step_before() -> None:
    settings = TrainSettings(loss="mix", ttt_length=2, loss_decay=0.5, kl_scale=0.8, kl_decay=2.0)
    start = loss_weights(settings, [])
    assert start.cross_entropy_T == pytest.approx([0.8, 0.4])
    parts = [LossSums(*(torch.zeros(2),) * 2, torch.tensor([3.0, 1.0]), torch.zeros(2))] * 2
    rates = mean_rates(parts, [10, 4])
    assert rates == pytest.approx([0.6, 0.5])
    later = loss_weights(settings, rates)
    assert later.cross_entropy_T == pytest.approx([0.8 * math.exp(-1.2), 0.4 * math.exp(-1.0)])
    sums = [a + b for a, b in zip(later.cross_entropy_T, later.total_variation_T, strict=True)]
    assert sums == pytest.approx([1.0, 0.5])


def test_other_losses_remember_no_rates() -> None:
    assert not loss_weights(TrainSettings(loss="lk", ttt_length=2), []).follow_rates
    assert mean_rates([], [0, 0]) == []
