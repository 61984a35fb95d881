"""Looks for the fastest configuration of a batch size from few measurements.

First chains: one long chain tells how often the draft of each position is accepted, and with the baseline what a pass
costs for every draft step; so the speed of every shorter chain is predicted, and only the best ones are measured. Then
trees around the best chain, as long as one is faster than all before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from statistics import geometric_mean

from eagle3cli.errors import UsageError
from eagle3cli.runtime.report import Reporter
from eagle3cli.serving.bench.bench import BenchResult, BenchRun, open_run
from eagle3cli.serving.bench.configs import Config, chain, most_tokens, parse_config
from eagle3cli.serving.bench.engines import StartedProvider, serve_command
from eagle3cli.serving.bench.results import ResultRow
from eagle3cli.settings.tables import Settings

LONG = 6
"""Steps of the chain that the speed of every shorter one is predicted from."""
MOST_STEPS = 10
FIRST_TREE = (4, 16)
"""Top-k and tokens of the first tree."""


@dataclass
class SearchResult:
    """What a search found for a batch size."""

    config: Config
    speedup: float
    tokens_per_s: float
    runs: int
    serve: str
    """The command that serves it."""

    def lines(self) -> list[str]:
        """For people."""
        gain = f", {self.speedup:.2f}x of plain decoding"
        if self.config.is_baseline:
            gain = ": no draft is faster than plain decoding here"
        best = f"batch {self.config.batch}: best is {self.config}, {self.tokens_per_s:.1f} tokens/s{gain}"
        return [f"{best} ({self.runs} configurations measured)", f"serve it: {self.serve}"]

    def as_dict(self) -> ResultRow:
        """For JSON."""
        return {"batch": self.config.batch, **asdict(self), "config": str(self.config)}


def search(settings: Settings, report: Reporter) -> tuple[BenchResult, list[SearchResult]]:
    """Search for every batch size of ``--config-list``; what is measured stands in the results like everything else."""
    configs = [parse_config(text) for text in settings.bench.config_list]
    if settings.server.address_port:
        fix = "leave out --server-address-port: every configuration needs a server of its own"
        raise UsageError("conflicting-options", "a search starts its own servers", where="--search", fix=fix)
    batches = dict.fromkeys(config.batch for config in configs)
    with open_run(settings, [chain(batch, LONG) for batch in batches], report) as run:
        searches = [Search(run, batch) for batch in batches]
        for one in searches:
            one.find_best()
        cases = run.cases([config for one in searches for config in one.speeds])
        run.judge(cases)
        return run.result(cases), [one.best() for one in searches if one.speeds]


@dataclass
class Search:
    """One batch size; ``speeds`` are speed-ups over its baseline, over all tasks and temperatures."""

    run: BenchRun
    batch: int
    speeds: dict[Config, float] = field(default_factory=dict)
    tried: set[Config] = field(default_factory=set)

    def find_best(self) -> None:
        """Measure until nothing near the best is left, or the number of runs is used up."""
        self.measure(Config(self.batch))
        self.measure(chain(self.batch, LONG))
        for steps in self._promising_steps():
            self.measure(chain(self.batch, steps))
        self._climb(lambda config: [chain(self.batch, config.steps + by) for by in (1, -1)])
        provider = self.run.provider
        if isinstance(provider, StartedProvider) and provider.name == "sglang":
            topk, tokens = FIRST_TREE
            best_chain = self.top
            steps = max(2, best_chain.steps)
            self.measure(tree(self.batch, steps, topk, tokens))
            self.measure(tree(self.batch, steps, 2, tokens // 2))
            if self.top != best_chain:
                self._climb(_neighbours)

    @property
    def top(self) -> Config:
        """The fastest so far."""
        return max(self.speeds, key=lambda config: self.speeds[config])

    def measure(self, config: Config) -> None:
        """Measure a configuration unless it was, or there have been enough."""
        limit = self.run.settings.bench.search_runs
        if config in self.tried or len(self.tried) >= limit or not 0 <= config.steps <= MOST_STEPS:
            return
        self.tried.add(config)
        cases = self.run.cases([config])
        self.run.measure(cases)
        rows = self._rows(config)
        if len(rows) == len(cases):
            self.speeds[config] = geometric_mean([row.get("speedup") or 1.0 for row in rows])
            self.run.report.info(f"search: {config} {self.speeds[config]:.3f}x")

    def _rows(self, config: Config) -> list[ResultRow]:
        """What is known of a configuration, by task and temperature."""
        return [row for case in self.run.cases([config]) if (row := self.run.results.configuration(case))]

    def _climb(self, neighbours: Callable[[Config], Iterable[Config]]) -> None:
        """Measure the neighbours of the fastest as long as that finds a faster one."""
        before = None
        while self.top != before and not self.top.is_baseline:
            before = self.top
            for config in neighbours(before):
                self.measure(config)

    def _promising_steps(self) -> list[int]:
        """The two chains that should be fastest, by acceptance per position and a cost that is linear in the steps."""
        long_chain = chain(self.batch, LONG)
        rates = [row["accepted_per_position"] for row in self._rows(long_chain) if row.get("accepted_per_position")]
        speed = self.speeds.get(long_chain)
        if not rates or speed is None:
            return [3]
        # A server tells no positions behind the last one that was ever accepted: there the rate is zero.
        mean_rates = [sum(rate[at] for rate in rates if at < len(rate)) / len(rates) for at in range(LONG)]
        lengths = [1 + sum(mean_rates[:steps]) for steps in range(LONG + 1)]
        # A pass of the long chain takes length / speed of a plain pass; each of its steps an equal part of the rest.
        cost = (lengths[LONG] / speed - 1) / LONG
        order = sorted(range(1, LONG), key=lambda steps: -lengths[steps] / (1 + cost * steps))
        return order[:2]

    def best(self) -> SearchResult:
        """The fastest configuration with its speed and how to serve it."""
        config = self.top
        speeds = [row["tokens_per_s"] for row in self._rows(config)]
        command = serve_command(self.run.settings, config)
        return SearchResult(
            config, round(self.speeds[config], 3), round(sum(speeds) / len(speeds), 2), len(self.tried), command
        )


def tree(batch: int, steps: int, topk: int, tokens: int) -> Config:
    """A tree of at most so many tokens as its branches can have; a chain where it has no branches."""
    if topk <= 1:
        return chain(batch, steps)
    return Config(batch, steps, topk, max(steps + 1, min(tokens, most_tokens(steps, topk))))


def _neighbours(config: Config) -> Iterator[Config]:
    """Trees that differ in one thing."""
    batch = config.batch
    steps, topk, tokens = config.shape
    yield tree(batch, steps, topk, tokens * 2)
    yield tree(batch, steps, topk, tokens // 2)
    yield tree(batch, steps + 1, topk, tokens)
    if steps > 1:
        yield tree(batch, steps - 1, topk, tokens)
    yield tree(batch, steps, topk * 2, tokens)
    yield tree(batch, steps, topk // 2, tokens)
