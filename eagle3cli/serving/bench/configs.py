"""Configurations of the benchmark, as SGLang's users write them: ``batch,steps,topk,draft_tokens``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eagle3cli.errors import UsageError

DraftShape = tuple[int, int, int]
"""Steps, top-k and draft tokens; zeros without a draft."""


@dataclass(frozen=True)
class Config:
    """``batch`` replies under way at once; the draft goes ``steps`` deep with ``topk`` branches, of which ``tokens``
    are checked in one pass of the target. All zeros but the batch: without the draft, the baseline."""

    batch: int
    steps: int = 0
    topk: int = 0
    tokens: int = 0

    def __str__(self) -> str:
        return f"{self.batch},{self.steps},{self.topk},{self.tokens}"

    @property
    def is_baseline(self) -> bool:
        """Whether nothing is drafted."""
        return self.steps == 0

    @property
    def baseline(self) -> Config:
        """The same batch without the draft."""
        return Config(self.batch)

    @property
    def shape(self) -> DraftShape:
        """What a server is started with; servers serve every batch."""
        return self.steps, self.topk, self.tokens


def chain(batch: int, steps: int) -> Config:
    """A draft without branches."""
    return Config(batch, steps, 1, steps + 1) if steps else Config(batch)


def most_tokens(steps: int, topk: int) -> int:
    """Tokens of the whole tree, the newest token included: the first step gives topk, each later one topk squared."""
    return 1 + topk + (steps - 1) * topk * topk


def parse_config(text: str) -> Config:
    """One configuration; raises UsageError with the way out."""
    where = f"--config-list {text}"
    try:
        batch, steps, topk, tokens = (int(part) for part in text.split(","))
    except ValueError as error:
        fix = "e.g. 1,5,1,6, or 1,0,0,0 for the baseline"
        raise UsageError("invalid-value", "not batch,steps,topk,draft_tokens", where=where, fix=fix) from error
    if batch < 1 or min(steps, topk, tokens) < 0:
        raise UsageError(
            "invalid-value", "the batch is at least 1, the rest at least 0", where=where, fix="e.g. 1,5,1,6"
        )
    if steps == 0:
        if topk or tokens:
            raise UsageError(
                "invalid-value", "without draft steps the other two are 0", where=where, fix=f"write {batch},0,0,0"
            )
        return Config(batch)
    if topk == 0:
        raise UsageError(
            "invalid-value", "a draft has at least one branch", where=where, fix=f"write {batch},{steps},1,{steps + 1}"
        )
    if topk == 1 and tokens != steps + 1:
        fix = f"write {batch},{steps},1,{steps + 1}"
        raise UsageError(
            "invalid-value", f"a chain of {steps} steps verifies {steps + 1} tokens, not {tokens}", where=where, fix=fix
        )
    if not 2 <= tokens <= most_tokens(steps, topk):
        fix = f"give 2 to {most_tokens(steps, topk)} draft tokens"
        raise UsageError(
            "invalid-value", f"a tree of {steps} steps and topk {topk} cannot have {tokens}", where=where, fix=fix
        )
    return Config(batch, steps, topk, tokens)


def with_baselines(configs: Sequence[Config]) -> list[Config]:
    """Each batch's baseline once, before what is compared with it."""
    return list(dict.fromkeys(each for config in configs for each in (config.baseline, config)))


def require_chains(configs: Sequence[Config], engine: str, fix: str = "") -> None:
    """Raise UsageError for a tree where the engine drafts chains only."""
    for config in configs:
        if config.topk > 1:
            instead = chain(config.batch, config.steps)
            raise UsageError(
                "invalid-value",
                f"topk is {config.topk}",
                where=f"--config-list {config}",
                fix=f"write {instead}: {engine} drafts chains, not trees{fix}",
            )
