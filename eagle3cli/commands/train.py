"""eagle3 train: train a draft, online or from hidden states on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eagle3cli.commands.command import Command

if TYPE_CHECKING:
    from eagle3cli.console.out import Out
    from eagle3cli.settings.tables import Settings

DRAFT = ("config", "vocab_size", "aux_layers", "init", "fc_norm", "norm_output", "path")


def run(settings: Settings, out: Out) -> int | None:
    """Build the run, train it, say what came of it."""
    from eagle3cli.backends.auto import load_backend
    from eagle3cli.backends.group import alone
    from eagle3cli.commands.local_target import with_local_target

    with alone(settings.target, load_backend) as works:
        return _train(with_local_target(settings, out), out) if works else None


def _train(settings: Settings, out: Out) -> int | None:
    from eagle3cli.runtime.files import refuse_existing, write_text
    from eagle3cli.runtime.log import logged
    from eagle3cli.runtime.stop import catch_stop
    from eagle3cli.settings.toml import to_toml
    from eagle3cli.training.build import build
    from eagle3cli.training.checkpoints import list_checkpoints
    from eagle3cli.training.trainer import train

    folder = settings.train.output_dir
    if settings.train.overwrite:
        refuse_existing(folder, overwrite=True)
    if not settings.train.resume and list_checkpoints(folder):
        refuse_existing(folder, overwrite=False)
    folder.mkdir(parents=True, exist_ok=True)
    with logged(out, folder / "log.txt") as report, catch_stop(report) as stop:
        trainer = build(settings, report)
        write_text(folder / "settings.toml", to_toml(settings))
        done_before = trainer.progress.step
        evaluation = train(trainer, stop)
    progress = trainer.progress
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
    said = (
        f"held-out acceptance length {progress.best:.3f} (k={len(acceptance)}); "
        if acceptance
        else "no held-out rows; "
    )
    text = (
        f"trained {progress.step} steps ({progress.step - done_before} now) in {progress.seconds:.0f} s; {said}"
        f"draft in {folder / 'best'}\nnext: eagle3 eval --draft-model-path {folder / 'best'}, "
        f"then eagle3 export --draft-model-path {folder / 'best'}"
    )
    out.result(result, text)
    return None


COMMAND = Command(
    name="train",
    summary="Train an EAGLE-3 draft, with the target live (online) or from hidden states on disk (offline).",
    examples=(
        "eagle3 train --mode online --target-model-path MODEL --train-data-path cache/dataset/train.jsonl",
        "eagle3 train --mode offline --target-model-path MODEL --train-hidden-states-path cache/hidden_states/train",
    ),
    fields=("train.*", "target.*", *(f"draft.{name}" for name in DRAFT), "data.*"),
    run=run,
)
