"""What a training run came to, for its last lines and for scripts."""

from __future__ import annotations

from eagle3cli.settings.tables import Settings
from eagle3cli.training.eval.evaluate import Evaluation
from eagle3cli.training.inputs import held_out_states
from eagle3cli.training.trainer import Trainer


def summary(trainer: Trainer, done_before: int, evaluation: Evaluation | None) -> tuple[dict[str, object], str]:
    """The result of a session that began after step ``done_before``, as data and as text."""
    state = trainer.state
    folder = trainer.output_dir
    acceptance = [round(length, 4) for length in evaluation.acceptance_lengths] if evaluation else []
    at = f", temperature {trainer.settings.best_by:g}" if trainer.settings.best_by else ""
    data: dict[str, object] = {
        "output_dir": str(folder),
        "best": str(folder / "best"),
        "report": str(folder / "report.html"),
        "steps": state.step,
        "steps_this_time": state.step - done_before,
        "steps_left_out": state.skipped,
        "rows_seen": trainer.batches.sampler.rows_seen(state.step),
        "seconds": round(state.seconds, 1),
        "acceptance_length": acceptance,
        "best_acceptance_length": round(state.best, 4),
    }
    best = (
        f"held-out acceptance length {state.best:.3f} (k={len(acceptance)}{at})" if acceptance else "no held-out rows"
    )
    draft = folder / "best"
    text = (
        f"trained {state.step} steps ({state.step - done_before} now) in {state.seconds:.0f} s; {best}; "
        f"draft in {draft}\nreport: {folder / 'report.html'}"
    )
    if trainer.split:
        data["split"] = trainer.split
        text += f"\n{trainer.split['text']}"
    return data, text


def next_command(settings: Settings, *, evaluated: bool) -> tuple[str, dict[str, object]]:
    """The command that goes on with the draft, and the settings that it needs, by key: what was held out is measured
    on in full; where nothing was, the draft is exported."""
    values: dict[str, object] = {
        "draft.path": str(settings.train.output_dir / "best"),
        "target.model_path": settings.target.model_path,
    }
    if not evaluated:
        return "export", values
    if settings.train.mode == "offline":
        return "eval", values | {"data.eval_hidden_states_path": held_out_states(settings)}
    return "eval", values | {"data.eval_path": settings.data.eval_path}
