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
        from eagle3cli.pipeline.train_rank import train_rank

        train_rank(settings, out)


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
