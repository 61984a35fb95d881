"""The search finds the fastest configuration of made-up servers from few measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from eagle3cli.runtime.report import Silent
from eagle3cli.serving.bench.bench import BenchRun
from eagle3cli.serving.bench.configs import Config, chain, parse_config
from eagle3cli.serving.bench.engines import LocalProvider, StartedProvider
from eagle3cli.serving.bench.results import Case, ResultRow
from eagle3cli.serving.bench.search import Search, search
from eagle3cli.settings.tables import Settings
from tests.conftest import RunCli
from tests.failing import fails


class FakeRun:
    """A benchmark whose speeds follow a formula; it counts what is measured."""

    def __init__(
        self, speed: Callable[[Config], float], rates: Sequence[float], *, trees: bool, runs: int = 12
    ) -> None:
        self.speed, self.rates = speed, rates
        self.settings = Settings.model_validate({"bench": {"search_runs": runs, "engine": "sglang"}})
        self.provider = (StartedProvider if trees else LocalProvider)(self.settings, None, Silent())
        self.report, self.rows = Silent(), dict[str, ResultRow]()
        self.results = SimpleNamespace(configuration=lambda case: self.rows.get(str(case)))

    def cases(self, configs: Sequence[Config]) -> list[Case]:
        return [Case("t", config) for config in configs]

    def measure(self, cases: Sequence[Case]) -> None:
        for case in cases:
            config = case.config
            row: dict[str, Any] = {"tokens_per_s": 100 * self.speed(config)}
            if not config.is_baseline:
                row |= {"speedup": self.speed(config), "accepted_per_position": list(self.rates[: config.steps])}
            self.rows[str(case)] = row

    def search(self) -> Search:
        result = Search(cast(BenchRun, self), 2)
        result.find_best()
        return result


def chain_speed(rate: float, cost: float, tree_gain: float = 0.0) -> tuple[Callable[[Config], float], list[float]]:
    """Each draft is accepted with ``rate`` after the one before it; a step costs ``cost`` passes of the target."""
    rates = [rate**at for at in range(1, 11)]

    def speed(config: Config) -> float:
        length = 1 + sum(rates[: config.steps])
        branches = 1 + tree_gain * (config.topk - 1) - 0.02 * max(0, config.tokens - 16) if config.topk > 1 else 1.0
        return length * branches / (1 + cost * config.steps)

    return speed, rates


@pytest.mark.parametrize(("rate", "cost"), [(0.9, 0.05), (0.8, 0.1), (0.6, 0.1), (0.5, 0.2), (0.95, 0.02)])
def test_the_best_chain_is_found_in_few_runs(rate: float, cost: float) -> None:
    speed, rates = chain_speed(rate, cost)
    run = FakeRun(speed, rates, trees=False)
    result = run.search()
    best = max((chain(2, steps) for steps in range(11)), key=speed)
    assert result.top == best
    assert len(result.tried) <= 9
    assert all(config.topk <= 1 for config in result.tried)


@pytest.mark.parametrize("positions", [0, 1, 3])
def test_acceptance_may_be_told_of_fewer_positions_than_the_chain_has(positions: int) -> None:
    """SGLang's histogram ends with the most drafts that a pass accepted; a search that goes on reads it again."""
    rates = [0.6, 0.4, 0.2][:positions]
    run = FakeRun(lambda config: (1 + sum(rates[: config.steps])) / (1 + 0.05 * config.steps), rates, trees=False)
    result = run.search()
    assert result.top == max((chain(2, steps) for steps in range(11)), key=run.speed)
    assert run.search().speeds == result.speeds


def test_no_draft_is_best_where_none_pays() -> None:
    speed, rates = chain_speed(0.3, 0.5)
    result = FakeRun(speed, rates, trees=True).search()
    assert result.top == Config(2)


def test_trees_are_climbed_as_long_as_they_are_faster() -> None:
    speed, rates = chain_speed(0.7, 0.1, tree_gain=0.05)
    result = FakeRun(speed, rates, trees=True, runs=30).search()
    assert result.top.topk >= 8
    assert result.speeds[result.top] > max(value for config, value in result.speeds.items() if config.topk <= 1)
    flat, rates = chain_speed(0.7, 0.1, tree_gain=-0.05)
    assert FakeRun(flat, rates, trees=True).search().top.topk == 1


def test_the_number_of_runs_is_a_limit() -> None:
    speed, rates = chain_speed(0.7, 0.1, tree_gain=0.05)
    assert len(FakeRun(speed, rates, trees=True, runs=5).search().tried) == 5


def test_a_search_starts_its_own_servers() -> None:
    tables = {"server": {"address_port": ["127.0.0.1:1"]}, "bench": {"search": True}}
    with fails("conflicting-options"):
        search(Settings.model_validate(tables), Silent())


@pytest.mark.slow
def test_the_command_line_ends_with_what_to_serve(run_cli: RunCli, shared: Path, tmp_path: Path) -> None:
    tiny = shared / "engines" / "tiny_eagle3"
    if not tiny.is_dir():
        pytest.skip(f"no trained tiny draft at {tiny}")
    (tmp_path / "q.jsonl").write_text('{"turns": ["count from 17"]}\n')
    words = (
        "bench", "--engine", "local", "--search", "--model-path", tiny / "target", "--speculative-draft-model-path",
        tiny / "draft", "--benchmark-list", "q.jsonl", "--config-list", "2,0,0,0", "--max-tokens", 9,
        "--search-runs", 4,
    )  # fmt: skip
    done = run_cli(*words, "--json")
    assert done.code == 0, done.err
    (best,) = done.json["search"]
    assert (best["batch"], best["runs"]) == (2, 4)
    config = parse_config(best["config"])
    fastest = max(done.json["configurations"], key=lambda row: row.get("speedup", 1.0))
    assert str(config) == fastest["config"]
    assert "sglang.launch_server" in best["serve"]
    assert ("--speculative-num-steps" in best["serve"]) == (config.steps > 0)
    again = run_cli(*words)
    assert "(4 measured earlier)" in again.out
