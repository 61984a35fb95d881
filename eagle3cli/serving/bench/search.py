"""Looks for the fastest configuration of a batch size from few measurements.

First chains: one long chain tells how often the draft of each position is accepted, and with the baseline what a pass
costs for every draft step; so the speed of every shorter chain is foreseen, and only the best ones are measured. Then
trees around the best chain, as long as one is faster than all before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import geometric_mean

from eagle3cli.errors import UsageError
from eagle3cli.runtime.report import Reporter
from eagle3cli.serving.bench.bench import Bench, Work
from eagle3cli.serving.bench.configs import Config, chain, most_tokens, parse_config
from eagle3cli.serving.bench.engines import Started, serve_command
from eagle3cli.serving.bench.results import Row
from eagle3cli.settings.tables import Settings

LONG = 6
"""Steps of the chain that everything else is foreseen from."""
MOST_STEPS = 10
FIRST_TREE = (4, 16)
"""Top-k and tokens of the first tree."""


@dataclass
class Best:
    """What a search found for a batch size."""

    config: Config
    speedup: float
    tokens_per_s: float
    runs: int
    command: str

    def lines(self) -> list[str]:
        """For people."""
        found = f"batch {self.config.batch}: best is {self.config}, {self.tokens_per_s:.1f} tokens/s"
        if self.config.is_baseline:
            found += ": no draft is faster than plain decoding here"
        else:
            found += f", {self.speedup:.2f}x of plain decoding"
        return [
            f"{found} ({self.runs} configurations measured)",
            f"serve it: {self.command}",
        ]

    def as_dict(self) -> Row:
        """For JSON."""
        return {
            "batch": self.config.batch,
            "config": str(self.config),
            "speedup": self.speedup,
            "tokens_per_s": self.tokens_per_s,
            "runs": self.runs,
            "serve": self.command,
        }


def search(settings: Settings, report: Reporter) -> tuple[Bench, list[Best]]:
    """Search for every batch size of ``--config-list``; what is measured stands in the results like everything else."""
    given = [parse_config(text) for text in settings.bench.config_list]
    if settings.server.address_port:
        fix = "leave out --server-address-port: every configuration needs a server of its own"
        raise UsageError("a search starts its own servers", where="--search", fix=fix)
    batches = dict.fromkeys(config.batch for config in given)
    probe = [chain(batch, LONG) for batch in batches]
    with Work.open(settings, probe, report) as work:
        before = {str(case) for case in work.cases(_measured(work)) if work.results.configuration(case)}
        searches = [Search(work, batch) for batch in batches]
        for one in searches:
            one.run()
        seen = [config for one in searches for config in one.speeds]
        cases = [case for case in work.cases(seen) if work.results.configuration(case)]
        table = [row for case in cases if (row := work.results.configuration(case)) is not None]
        new = sum(str(case) not in before for case in cases)
        done = Bench(settings.bench.output, work.engine.name, table, new, work.failed)
        return done, [one.best() for one in searches if one.speeds]


def _measured(work: Work) -> list[Config]:
    """Configurations that the results hold already."""
    rows = [row for row in work.results.rows if row["kind"] == "configuration"]
    return list(dict.fromkeys(parse_config(row["config"]) for row in rows))


@dataclass
class Search:
    """One batch size; ``speeds`` are speed-ups over its baseline, over all tasks and temperatures."""

    work: Work
    batch: int
    speeds: dict[Config, float] = field(default_factory=dict)
    tried: set[Config] = field(default_factory=set)

    def run(self) -> None:
        """Measure until nothing near the best is left, or the number of runs is used up."""
        self.measure(Config(self.batch))
        self.measure(chain(self.batch, LONG))
        for steps in self._foreseen():
            self.measure(chain(self.batch, steps))
        self._climb(lambda config: [chain(self.batch, config.steps + by) for by in (1, -1)])
        if isinstance(self.work.engine, Started) and self.work.engine.product == "sglang":
            topk, tokens = FIRST_TREE
            steps = max(2, self.top.steps)
            before = self.top
            self.measure(tree(self.batch, steps, topk, tokens))
            self.measure(tree(self.batch, steps, 2, tokens // 2))
            if self.top != before:
                self._climb(lambda config: list(_neighbours(config)))

    @property
    def top(self) -> Config:
        """The fastest so far."""
        return max(self.speeds, key=lambda config: self.speeds[config])

    def measure(self, config: Config) -> None:
        """Measure a configuration unless it was, or there have been enough."""
        limit = self.work.settings.bench.search_runs
        if config in self.tried or len(self.tried) >= limit or not 0 <= config.steps <= MOST_STEPS:
            return
        self.tried.add(config)
        cases = self.work.cases([config])
        self.work.measure(cases)
        rows = [self.work.results.configuration(case) for case in cases]
        if all(rows):
            self.speeds[config] = geometric_mean([row.get("speedup") or 1.0 for row in rows if row])
            self.work.report.info(f"search: {config} {self.speeds[config]:.3f}x")

    def _climb(self, near: Callable[[Config], list[Config]]) -> None:
        """Measure the neighbours of the fastest as long as that finds a faster one."""
        while True:
            before = self.top
            if before.is_baseline:
                return
            for config in near(before):
                self.measure(config)
            if self.top == before:
                return

    def _foreseen(self) -> list[int]:
        """The two chains that should be fastest, by acceptance per position and a cost that is linear in the steps."""
        rows = [self.work.results.configuration(case) for case in self.work.cases([chain(self.batch, LONG)])]
        rates = [row["accepted_per_position"] for row in rows if row and row.get("accepted_per_position")]
        speed = self.speeds.get(chain(self.batch, LONG))
        if not rates or speed is None:
            return [3]
        # A server tells no positions behind the last one that was ever accepted: there the rate is zero.
        shares = [sum(rate[at] for rate in rates if at < len(rate)) / len(rates) for at in range(LONG)]
        lengths = [1 + sum(shares[:steps]) for steps in range(LONG + 1)]
        # A pass of the long chain takes length / speed of a plain pass; each of its steps an equal part of the rest.
        cost = (lengths[LONG] / speed - 1) / LONG
        order = sorted(range(1, LONG), key=lambda steps: -lengths[steps] / (1 + cost * steps))
        return order[:2]

    def best(self) -> Best:
        """What was found."""
        config = self.top
        rows = [self.work.results.configuration(case) for case in self.work.cases([config])]
        speed = sum(row["tokens_per_s"] for row in rows if row) / len(rows)
        command = serve_command(self.work.settings, config)
        return Best(config, round(self.speeds[config], 3), round(speed, 2), len(self.tried), command)


def tree(batch: int, steps: int, topk: int, tokens: int) -> Config:
    """A tree of at most so many tokens as its branches can have; a chain where it has no branches."""
    if topk <= 1:
        return chain(batch, steps)
    return Config(batch, steps, topk, max(steps + 1, min(tokens, most_tokens(steps, topk))))


def _neighbours(config: Config) -> Iterator[Config]:
    """Trees that differ in one thing."""
    batch, steps, topk, tokens = config.batch, config.steps, config.topk, config.tokens
    yield tree(batch, steps, topk, tokens * 2)
    yield tree(batch, steps, topk, tokens // 2)
    yield tree(batch, steps + 1, topk, tokens)
    if steps > 1:
        yield tree(batch, steps - 1, topk, tokens)
    yield tree(batch, steps, topk * 2, tokens)
    yield tree(batch, steps, topk // 2, tokens)
