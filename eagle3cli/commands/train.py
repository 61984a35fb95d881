"""eagle3 train: train a draft, online or from hidden states on disk, in one process or on many GPUs."""

from __future__ import annotations

from eagle3cli.cli.command import Command
from eagle3cli.cli.dry_run import planner
from eagle3cli.console.out import Out
from eagle3cli.settings.tables import Settings

DRAFT = (
    *("config", "vocab_size", "aux_layers", "init", "fc_norm", "norm_output", "window", "sinks", "serve_with", "path"),
)
STORE = ("hidden_states.encoding", "hidden_states.shard_mb")


def run(settings: Settings, out: Out) -> None:
    """Build the run, train it, say what came of it; on every rank."""
    from eagle3cli.cli.preflight.preflight import preflight

    preflight(COMMAND, settings, out)
    from eagle3cli.training.trackers.tracker import check_trackers

    check_trackers(settings.train.report_to)  # before torch is imported
    from eagle3cli.cli.worker import in_processes

    if not in_processes(COMMAND, settings, out):
        _train(settings, out)


def _train(settings: Settings, out: Out) -> None:
    """What one rank does: serve the target, or train."""
    from contextlib import ExitStack
    from functools import partial

    from eagle3cli.cli.local_target import with_local_target
    from eagle3cli.runs.running import running
    from eagle3cli.runtime.distributed import init_distributed
    from eagle3cli.runtime.log import logged
    from eagle3cli.runtime.processes.job import TARGET
    from eagle3cli.runtime.report import Reporter, Silent
    from eagle3cli.runtime.stop import catch_stop
    from eagle3cli.training.build import build
    from eagle3cli.training.checkpoint.load import check_place
    from eagle3cli.training.forecast.out_of_memory import training_explained
    from eagle3cli.training.forecast.target_share import target_share
    from eagle3cli.training.roles import serve_target, target_processes, target_ranks
    from eagle3cli.training.summary import next_command, summary

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


COMMAND = Command(
    name="train",
    summary="Train an EAGLE-3 draft, with the target live (online) or from hidden states on disk (offline).",
    examples=(
        "eagle3 train --mode online --target-model-path MODEL --train-data-path cache/dataset/train.jsonl",
        "eagle3 train --mode offline --target-model-path MODEL --train-hidden-states-path cache/hidden_states/train",
        "eagle3 train --mode offline --gpus 8 --draft-global-batch-size 64",
        "eagle3 train --report-to wandb tensorboard --wandb-project my-drafts",
    ),
    fields=("train.*", "launch.*", "target.*", *(f"draft.{name}" for name in DRAFT), "data.*", *STORE),
    rarely=("--draft-model-path", "--encoding"),
    run=run,
    loads_torch=True,
    plan=planner("eagle3cli.training.forecast.plan:plan_training", original=True),
)
