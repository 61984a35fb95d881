"""A run whose target has ranks of its own: what those do, and how the draft's ranks let them go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from eagle3cli.backends.roles.serve import Replica
from eagle3cli.backends.roles.source import AskedAhead
from eagle3cli.backends.target.auto import load_backend, open_target
from eagle3cli.backends.target.group import leading
from eagle3cli.backends.target.hf import read_target_config
from eagle3cli.errors import Eagle3Error, Stopped
from eagle3cli.runtime.devices import set_threads
from eagle3cli.runtime.distributed import Ranks
from eagle3cli.runtime.out_of_memory import failed_allocation, is_out_of_memory, release
from eagle3cli.runtime.processes.job import check_roles
from eagle3cli.runtime.processes.slurm import as_torchrun
from eagle3cli.runtime.report import Reporter, Silent
from eagle3cli.runtime.stop import Stop, catch_stop
from eagle3cli.settings.tables import Settings
from eagle3cli.training.inputs import draft_config_of, state_shape
from eagle3cli.training.split import Split, Work
from eagle3cli.training.trainer import Trainer


def target_processes(settings: Settings) -> int:
    """How many of the processes that were started hold the target; 0 where all do everything.

    Raises UsageError where that cannot be.
    """
    check_roles(settings, int((os.environ | as_torchrun(os.environ)).get("WORLD_SIZE", "1")))
    return settings.launch.targets


def serve_target(settings: Settings, report: Reporter, ranks: Ranks) -> None:
    """What a rank of the target does: run the passes that the draft's ranks ask for, until they are done."""
    set_threads(settings.target.threads)
    raw = read_target_config(settings.target)
    config = draft_config_of(settings, raw)
    own = report if ranks.is_main else Silent()
    with catch_stop(patient=True) as stop, leading(ranks, settings.target.tp_size, load_backend) as leaders:
        if leaders is None:
            return
        target = open_target(settings.target, own, config.aux_layers)
        shape = state_shape(settings, config, target.device, raw)
        replica = Replica(target, leaders, shape, leaders.rank, stop)
        try:
            replica.serve()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            what = f"memory did not suffice for a pass of the target{failed_allocation(error)}"
            release(error)
        else:
            return
        fix = "lower --max-tokens-per-gpu (or --draft-micro-batch-size), or spread the target: --tp-size"
        raise Eagle3Error("process-died", what, where=replica.place, fix=fix)


@contextmanager
def target_ranks(trainer: Trainer, stop: Stop, tp_size: int) -> Iterator[None]:
    """Around the training: once it is over, or stopped by a signal, the target's ranks end, where there are such.

    A signal that reaches one of them stops the training, too. What each side waited is left in ``trainer.split``.
    """
    ahead = trainer.batches.source
    if not isinstance(ahead, AskedAhead):
        yield
        return
    target = ahead.source.target
    target.stop = stop
    target.wait_until_loaded()
    step_before = trainer.state.step
    seconds_before = trainer.state.seconds
    stopped: Stopped | None = None
    try:
        yield
    except Stopped as error:
        stopped = error
    target.finish()
    trainer.ranks.at("")  # what is left is done without the others
    steps = trainer.state.step - step_before
    seconds = trainer.state.seconds - seconds_before
    if steps and seconds:
        trainer.split = measured_split(trainer, ahead, steps, seconds, tp_size).numbers()
    if stopped is not None:
        raise stopped


def measured_split(trainer: Trainer, ahead: AskedAhead, steps: int, seconds: float, tp_size: int) -> Split:
    """What both sides did in so many steps; all draft ranks must ask."""
    ranks = trainer.ranks
    assert ranks.job is not None
    waited, tokens = ranks.all_reduce_sum([ahead.waited, ahead.tokens])
    waited /= ranks.world_size
    usage = ahead.source.target.usage()
    busy = sum(each.busy for each in usage) / max(1, sum(each.tokens for each in usage))  # seconds a token
    work = Work(busy * tokens / steps, ranks.world_size * max(0.0, seconds - waited) / steps, tp_size)
    replicas = ranks.job.targets // tp_size
    return Split(
        work,
        ranks.job.targets,
        ranks.world_size,
        draft_waits=min(1.0, waited / seconds),
        target_waits=max(0.0, 1 - busy * tokens / replicas / seconds),
        most_drafts=max(ranks.world_size, trainer.settings.batch_size),
    )
