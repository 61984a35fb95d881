"""What one rank of ``eagle3 train`` does."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from eagle3cli.cli.local_target import with_local_target
from eagle3cli.console.out import Out
from eagle3cli.runs.running import running
from eagle3cli.runtime.distributed import init_distributed
from eagle3cli.runtime.log import logged
from eagle3cli.runtime.processes.job import TARGET
from eagle3cli.runtime.report import Reporter, Silent
from eagle3cli.runtime.stop import catch_stop
from eagle3cli.settings.tables import Settings
from eagle3cli.training.build import build
from eagle3cli.training.checkpoint.load import check_place, held_place
from eagle3cli.training.forecast.out_of_memory import training_explained
from eagle3cli.training.forecast.target_share import target_share
from eagle3cli.training.roles import serve_target, target_processes, target_ranks
from eagle3cli.training.summary import next_command, summary


def train_rank(settings: Settings, out: Out) -> None:
    """Serve the target where this rank holds it, else train; the first rank that trains says what came of it."""
    folder = settings.train.output_dir
    original = settings
    with ExitStack() as stack:
        targets = target_processes(settings)
        ranks = stack.enter_context(init_distributed(60 * settings.launch.dist_timeout, targets))
        with ranks.main_process_first() if ranks.job is None else ranks.job.main_first():
            check_place(settings.train)
            settings = with_local_target(settings, out if ranks.is_main else Silent())
        if ranks.job is not None and ranks.job.role == TARGET:
            return serve_target(settings, out, ranks)
        if ranks.is_main:
            with held_place(settings.train):
                pass  # told before the target is read; from where the run is one it is held
        log = stack.enter_context(logged(out, folder / "log.txt", held=True))
        report: Reporter = log if ranks.is_main else Silent()
        alone = ranks.world_size == 1 and ranks.job is None
        stop = stack.enter_context(catch_stop(report if alone else None, patient=not alone))
        with training_explained(settings, ranks.world_size, lambda: "before the first step", built=False):
            trainer = build(settings, report, ranks, partial(target_share, settings, ranks))
        if ranks.is_main:  # from here on there is a run: whatever refuses one has been asked
            stack.enter_context(running(trainer, settings, log, out))
        done_before = trainer.state.step
        with (
            training_explained(settings, ranks.world_size, lambda: trainer.activity, built=True),
            target_ranks(trainer, stop, settings.target.tp_size),
        ):
            evaluation = trainer.train(stop)
    if ranks.is_main:
        if evaluation is not None and evaluation.context_warning:
            out.warn(evaluation.context_warning)
        out.next(*next_command(original, evaluated=evaluation is not None))
        out.result(*summary(trainer, done_before, evaluation))
