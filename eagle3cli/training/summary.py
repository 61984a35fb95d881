"""What a training run came to, for its last lines and for scripts."""

from __future__ import annotations

from eagle3cli.training.eval.evaluate import Evaluation
from eagle3cli.training.trainer import Trainer


def outcome(trainer: Trainer, done_before: int, evaluation: Evaluation | None) -> tuple[dict[str, object], str]:
    """The result of a session that began after step ``done_before``, as data and as text."""
    progress, folder = trainer.progress, trainer.output_dir
    acceptance = [round(w.acceptance_length, 4) for w in evaluation.walks] if evaluation else []
    data: dict[str, object] = {
        "output_dir": str(folder),
        "best": str(folder / "best"),
        "report": str(folder / "report.html"),
        "steps": progress.step,
        "steps_this_time": progress.step - done_before,
        "steps_left_out": progress.skipped,
        "seconds": round(progress.seconds, 1),
        "acceptance_length": acceptance,
        "best_acceptance_length": round(progress.best, 4),
    }
    best = f"held-out acceptance length {progress.best:.3f} (k={len(acceptance)})" if acceptance else "no held-out rows"
    draft = folder / "best"
    text = (
        f"trained {progress.step} steps ({progress.step - done_before} now) in {progress.seconds:.0f} s; {best}; "
        f"draft in {draft}\nreport: {folder / 'report.html'}\n"
        f"next: eagle3 eval --draft-model-path {draft}, then eagle3 export --draft-model-path {draft}"
    )
    return data, text
