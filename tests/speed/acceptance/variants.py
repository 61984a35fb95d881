"""eagle3 train with changes that are no options of it, for ``ablation.py``.

    PYTHONPATH=. python tests/speed/acceptance/variants.py CHANGE ... -- train --config quickstart ...

``sequence-mean``             every sequence of a batch weighs the same, however many positions it has
``depths=1,2,3``              the unroll grows: so many depths in each third of the steps
``averages=ema:0.99,tail:.3`` averages of the weights, measured at the end: exponential with this decay, or the mean of
                              the last part of the steps
``rows=FILE``                 of the rows of all stores the ones that a JSON list names, in its order
``halves``                    the even rows of a store, and the odd ones of a second one of the same prompts
``mixed``                     all rows of a second store, and as many of the first
``without-loops=0.5``         no rows of which a larger share of the four-grams stood before in the row
``vocabulary=FILE``           the draft vocabulary of a file in a cache's ``vocab_mapping/``
``starts=FOLDER``             initial weights are solved once for every store, draft and seed

The draft is not measured before its first step, and ``processor_seconds`` of the log are those of the steps alone.
Acceptance with averages goes to ``averages.jsonl`` in the run's folder.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import eagle3cli.training.build as build
import eagle3cli.training.ttt.model as model
from eagle3cli.backends.batches.store import StoreSource
from eagle3cli.cli.main import entry
from eagle3cli.data.hidden_states.store import Stores
from eagle3cli.data.tokens.vocab import load_vocab
from eagle3cli.models.draft import Draft
from eagle3cli.training.eval.evaluate import Evaluation
from eagle3cli.training.inputs import Inputs
from eagle3cli.training.trainer import Trainer
from eagle3cli.training.ttt.unroll import PositionPlan

Step = Callable[[Trainer], None]


def steps_alone() -> None:
    """No measure of the start; time of an evaluation is not the steps'."""
    measured = Trainer._measure

    def measure(self: Trainer, source: Any) -> Any:
        began = time.process_time()
        result = measured(self, source)
        self.timers.cpu_seconds += time.process_time() - began
        return result

    Trainer.measure_start = lambda self: {}  # type: ignore[method-assign]
    Trainer._measure = measure  # type: ignore[method-assign]


def around_steps(change: Callable[[Trainer, Step], None]) -> None:
    """Have ``change`` take every step with the function that does."""
    step = Trainer.train_step
    Trainer.train_step = lambda self: change(self, step)  # type: ignore[method-assign]


def sequence_mean(_: str) -> None:
    """The gradient of each position by the share of its sequence; the head is frozen, so that no other one exists."""
    unroll = model.unroll

    def weighted(
        draft: Draft, ids_N: Tensor, aux_NC: Tensor, embedding_VH: Tensor, plan: PositionPlan, **more: Any
    ) -> Any:
        normed = unroll(draft, ids_N, aux_NC, embedding_VH, plan, **more)
        begin_by_step = [plan.begin_N[step.position_R[step.loss_L]] for step in plan.steps]
        count_N = torch.bincount(begin_by_step[0], minlength=len(plan.begin_N))
        mean = len(begin_by_step[0]) / max(1, int((count_N > 0).sum()))
        for states_LH, begin_L in zip(normed, begin_by_step, strict=True):
            weight_L1 = (mean / count_N[begin_L].clamp(min=1))[:, None].to(states_LH.dtype)
            states_LH.register_hook(lambda grad, weight_L1=weight_L1: grad * weight_L1)
        return normed

    model.unroll = weighted


def depths(value: str) -> None:
    """Depths of the unroll by equal parts of the steps; what was counted with others is logged first."""
    parts = [int(word) for word in value.split(",")]

    def change(self: Trainer, step: Step) -> None:
        total = self.schedule.total_steps
        assert total is not None
        now = parts[self.state.step * len(parts) // total]
        if now != self.settings.ttt_length:
            self.log()
            self.settings = self.settings.model_copy(update={"ttt_length": now})
        step(self)

    around_steps(change)


class Average:
    """An average of weights: ``ema:DECAY``, or ``tail:SHARE`` of the steps."""

    def __init__(self, name: str) -> None:
        self.name = name
        kind, number = name.split(":")
        self.decay = float(number) if kind == "ema" else None
        self.share = float(number)
        self.weights: list[Tensor] = []
        self.count = 0
        self.cpu_seconds = 0.0

    @torch.no_grad()
    def add(self, weights: list[Any], done: float) -> None:
        """Add the weights after a step, with which this part of the run is done."""
        began = time.process_time()
        if self.decay is not None or done > 1 - self.share:
            self.count += 1
            keep = 1 - 1 / self.count
            keep = keep if self.decay is None else min(self.decay, keep)
            if not self.weights:
                self.weights = [weight.detach().clone() for weight in weights]
            torch._foreach_lerp_(self.weights, [weight.detach() for weight in weights], 1 - keep)
        self.cpu_seconds += time.process_time() - began


def averages(value: str) -> None:
    """Averages beside the weights, each measured in their place at the end."""
    kept = [Average(name) for name in value.split(",")]

    def change(self: Trainer, step: Step) -> None:
        step(self)
        began = time.process_time()
        for average in kept:
            average.add(self.optimizer.masters, self.state.step / (self.schedule.total_steps or 1))
        self.timers.cpu_seconds += time.process_time() - began  # each has its own

    evaluate = Trainer.evaluate

    def evaluated(self: Trainer, *, last: bool = False) -> Evaluation | None:
        result = evaluate(self, last=last)
        for average in kept:
            measure(self, average)
        return result

    around_steps(change)
    Trainer.evaluate = evaluated  # type: ignore[method-assign]


@torch.no_grad()
def measure(trainer: Trainer, average: Average) -> None:
    """Acceptance with an average in the weights' place."""
    optimizer = trainer.optimizer
    own = [master.detach().clone() for master in optimizer.masters]
    torch._foreach_copy_(optimizer.masters, average.weights)
    optimizer.sync_weights()
    assert trainer.eval_source is not None
    lengths = trainer._measure(trainer.eval_source)[0].acceptance_lengths
    torch._foreach_copy_(optimizer.masters, own)
    optimizer.sync_weights()
    found = {"name": average.name, "acceptance": lengths[-1], "cpu_seconds": average.cpu_seconds}
    with (trainer.output_dir / "averages.jsonl").open("a") as file:
        file.write(json.dumps(found) + "\n")


class Picked(Stores):
    """Some rows of stores."""

    def __init__(self, stores: Stores, rows: list[int]) -> None:
        super().__init__(stores.stores)
        self.rows = rows
        self.all_lengths = self.lengths
        self.lengths = [self.all_lengths[row] for row in rows]

    def at(self, index: int) -> tuple[int, int]:
        """Store and number of a row among those picked."""
        return self.stores_at(self.rows[index])

    def stores_at(self, row: int) -> tuple[int, int]:
        """Store and number of a row among all."""
        for number, store in enumerate(self.stores):
            if row < len(store):
                return number, row
            row -= len(store)
        raise IndexError(row)


def change_inputs(change: Callable[[Inputs], Inputs]) -> None:
    """Have a run train on what ``change`` makes of its inputs."""
    offline = build.offline
    build.offline = lambda *args: change(offline(*args))


def pick(choose: Callable[[Stores], list[int]]) -> None:
    """Train on the rows of the stores that ``choose`` names."""

    def picked(inputs: Inputs) -> Inputs:
        assert isinstance(inputs.source, StoreSource)
        inputs.source.stores = Picked(inputs.source.stores, choose(inputs.source.stores))
        return inputs

    change_inputs(picked)


def rows(value: str) -> None:
    """The rows of a file."""
    pick(lambda stores: json.loads(Path(value).read_text()))


def halves(_: str) -> None:
    """Every second row of the other store."""
    pick(lambda stores: [row + row % 2 * len(stores.stores[0]) for row in range(len(stores.stores[0]))])


def mixed(_: str) -> None:
    """The other store's rows, and equally many of the first."""

    def choose(stores: Stores) -> list[int]:
        first, second = map(len, stores.stores)
        return [*range(min(first, second)), *range(first, first + second)]

    pick(choose)


def without_loops(value: str) -> None:
    """Rows that say new things."""

    def repeated(ids: list[int]) -> float:
        grams = list(zip(ids, ids[1:], ids[2:], ids[3:], strict=False))
        return 1 - len(set(grams)) / max(1, len(grams))

    def choose(stores: Stores) -> list[int]:
        rows = range(len(stores))
        kept = [row for row in rows if repeated(stores.packed(row).token_ids_S.tolist()) <= float(value)]
        print(f"{len(kept)} rows of {len(rows)} are trained on", file=sys.stderr)
        return kept

    pick(choose)


def vocabulary(value: str) -> None:
    """Another draft vocabulary on the same states."""
    vocab = load_vocab(Path(value))

    def changed(inputs: Inputs) -> Inputs:
        return replace(inputs, vocab=vocab, config=replace(inputs.config, draft_vocab_size=vocab.size))

    change_inputs(changed)


def starts(value: str) -> None:
    """Keep initial weights by what they are made of."""
    solve = build.initialise_from_target

    def solved(draft: Draft, inputs: Inputs, seed: int, report: Any) -> None:
        assert isinstance(inputs.source, StoreSource)
        stores = inputs.source.stores
        made_of = [stores.key, getattr(stores, "rows", None), draft.config.to_sglang(), seed, inputs.vocab.size]
        name = hashlib.sha256(json.dumps(made_of, default=str).encode()).hexdigest()[:16]
        path = Path(value) / f"{name}.pt"
        if path.exists():
            scale_C, state = torch.load(path)
            draft.aux_scale_C.copy_(scale_C)
            draft.load_state_dict(state)
            return
        solve(draft, inputs, seed, report)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save((draft.aux_scale_C, draft.state_dict()), path)

    build.initialise_from_target = solved


CHANGES = {
    "sequence-mean": sequence_mean,
    "depths": depths,
    "averages": averages,
    "rows": rows,
    "halves": halves,
    "mixed": mixed,
    "without-loops": without_loops,
    "vocabulary": vocabulary,
    "starts": starts,
}


def main() -> None:
    """Make the changes, then be the command."""
    at = sys.argv.index("--")
    steps_alone()
    for word in sys.argv[1:at]:
        name, _, value = word.partition("=")
        CHANGES[name](value)
    sys.argv = ["eagle3", *sys.argv[at + 1 :]]
    entry()


if __name__ == "__main__":
    main()
