"""A run whose target has ranks of its own: what those do, and how the draft's ranks let them go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from eagle3cli.backends.roles.serve import Replica
from eagle3cli.backends.roles.source import AskedAhead, RemoteSource, TargetRanks
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
from eagle3cli.runtime.stop import catch_stop
from eagle3cli.settings.tables import Settings
from eagle3cli.training.inputs import draft_config_of, state_shape
from eagle3cli.training.trainer import Trainer


def target_processes(settings: Settings) -> int:
    """How many of the processes that were started hold the target; 0 where all do everything.

    Raises UsageError where that cannot be.
    """
    check_roles(settings, int((os.environ | as_torchrun(os.environ)).get("WORLD_SIZE", "1")))
    return settings.launch.target_gpus or 0


def serve_target(settings: Settings, report: Reporter, ranks: Ranks) -> None:
    """What a rank of the target does: run the passes that the draft's ranks ask for, until they are done."""
    set_threads(settings.target.threads)
    raw = read_target_config(settings.target)
    config = draft_config_of(settings, raw)
    own = report if ranks.is_main else Silent()
    with catch_stop(patient=True), leading(ranks, settings.target.tp_size, load_backend) as leaders:
        if leaders is None:
            return
        target = open_target(settings.target, own, config.aux_layers)
        shape = state_shape(settings, config, target.device, raw)
        replica = Replica(target, leaders, shape, leaders.rank)
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
        raise Eagle3Error(what, where=replica.place, fix=fix)


@contextmanager
def target_ranks(trainer: Trainer) -> Iterator[None]:
    """Once the block is over, or stopped by a signal, the target's ranks end, where there are such."""
    target = _target_of(trainer)
    if target is None:
        yield
        return
    try:
        yield
    except Stopped:
        target.finish()
        raise
    target.finish()


def _target_of(trainer: Trainer) -> TargetRanks | None:
    source = trainer.batches.source
    source = source.source if isinstance(source, AskedAhead) else source
    return source.target if isinstance(source, RemoteSource) else None
