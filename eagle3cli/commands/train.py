"""eagle3 train: train a draft, online or from hidden states on disk, in one process or on many GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eagle3cli.commands.command import Command

if TYPE_CHECKING:
    from eagle3cli.console.out import Out
    from eagle3cli.settings.tables import Settings
    from eagle3cli.training.evaluate import Evaluation
    from eagle3cli.training.trainer import Trainer

DRAFT = ("config", "vocab_size", "aux_layers", "init", "fc_norm", "norm_output", "path")


def run(settings: Settings, out: Out) -> int | None:
    """Build the run, train it, say what came of it; on every rank."""
    from contextlib import ExitStack

    from eagle3cli.commands.local_target import with_local_target
    from eagle3cli.commands.worker import in_processes
    from eagle3cli.runtime.files import write_text
    from eagle3cli.runtime.log import logged
    from eagle3cli.runtime.ranks import joined
    from eagle3cli.runtime.report import Reporter, Silent
    from eagle3cli.runtime.stop import catch_stop
    from eagle3cli.settings.toml import to_toml
    from eagle3cli.training.build import build
    from eagle3cli.training.trainer import train

    if in_processes(COMMAND, settings, out):
        return None
    folder = settings.train.output_dir
    with ExitStack() as stack:
        ranks = stack.enter_context(joined(60 * settings.launch.dist_timeout))
        with ranks.first_alone():
            if ranks.first:
                _make_place(settings)
            settings = with_local_target(settings, out if ranks.first else Silent())
        report: Reporter = stack.enter_context(logged(out, folder / "log.txt")) if ranks.first else Silent()
        stop = stack.enter_context(catch_stop(report if ranks.first else None))
        trainer = build(settings, report, ranks)
        if ranks.first:
            write_text(folder / "settings.toml", to_toml(settings))
        done_before = trainer.progress.step
        evaluation = train(trainer, stop)
    if ranks.first:
        _tell(trainer, done_before, evaluation, out)
    return None


def _make_place(settings: Settings) -> None:
    from eagle3cli.runtime.files import refuse_existing
    from eagle3cli.training.checkpoints import list_checkpoints

    folder = settings.train.output_dir
    if settings.train.overwrite:
        refuse_existing(folder, overwrite=True)
    if not settings.train.resume and list_checkpoints(folder):
        refuse_existing(folder, overwrite=False)
    folder.mkdir(parents=True, exist_ok=True)


def _tell(trainer: Trainer, done_before: int, evaluation: Evaluation | None, out: Out) -> None:
    progress, folder = trainer.progress, trainer.output_dir
    acceptance = [round(w.acceptance_length, 4) for w in evaluation.walks] if evaluation else []
    result: dict[str, object] = {
        "output_dir": str(folder),
        "best": str(folder / "best"),
        "steps": progress.step,
        "steps_this_time": progress.step - done_before,
        "steps_left_out": progress.skipped,
        "seconds": round(progress.seconds, 1),
        "acceptance_length": acceptance,
        "best_acceptance_length": round(progress.best, 4),
    }
    best = f"held-out acceptance length {progress.best:.3f} (k={len(acceptance)})" if acceptance else "no held-out rows"
    text = (
        f"trained {progress.step} steps ({progress.step - done_before} now) in {progress.seconds:.0f} s; {best}; "
        f"draft in {folder / 'best'}\nnext: eagle3 eval --draft-model-path {folder / 'best'}, "
        f"then eagle3 export --draft-model-path {folder / 'best'}"
    )
    out.result(result, text)


COMMAND = Command(
    name="train",
    summary="Train an EAGLE-3 draft, with the target live (online) or from hidden states on disk (offline).",
    examples=(
        "eagle3 train --mode online --target-model-path MODEL --train-data-path cache/dataset/train.jsonl",
        "eagle3 train --mode offline --target-model-path MODEL --train-hidden-states-path cache/hidden_states/train",
        "eagle3 train --mode offline --gpus 8 --draft-global-batch-size 64",
    ),
    fields=("train.*", "launch.*", "target.*", *(f"draft.{name}" for name in DRAFT), "data.*"),
    run=run,
)
