"""eagle3 hidden-states: the target's states to disk, for training without the target."""

from __future__ import annotations

from collections.abc import Iterable

from eagle3cli.cli.command import TOKENIZE_FIELDS, Command
from eagle3cli.cli.dry_run import planner
from eagle3cli.commands.hidden_states_actions import ACTIONS
from eagle3cli.console.out import Out
from eagle3cli.settings.tables import Settings


def run(settings: Settings, out: Out) -> None:
    """Capture the cached rows of the chosen splits, or what an earlier run left to do; of several ranks, on all."""
    from eagle3cli.cli.preflight.preflight import preflight

    preflight(COMMAND, settings, out)
    from eagle3cli.cli.worker import in_processes

    if in_processes(COMMAND, settings, out):  # which need what is imported below, and this one does not
        return
    from eagle3cli.backends.capture.splits import capture_splits
    from eagle3cli.backends.target.auto import load_backend
    from eagle3cli.backends.target.group import tp_group
    from eagle3cli.cli.local_target import with_local_target
    from eagle3cli.runtime.devices import set_threads
    from eagle3cli.runtime.report import Silent
    from eagle3cli.runtime.stop import catch_stop

    set_threads(settings.target.threads)
    original = settings
    with tp_group(settings.target, load_backend) as ranks:
        if ranks is None:
            return
        with catch_stop(out if ranks.world_size == 1 else None, patient=ranks.world_size > 1) as stop:
            report = out if ranks.is_main else Silent()
            with ranks.main_process_first():
                settings = with_local_target(settings, report)
            splits = capture_splits(settings, report, stop, ranks)
    if not ranks.is_main:
        return
    folder = settings.hidden_states.output_path
    lines = [f"{name}: {done.text(folder / name)}" for name, done in splits.items()]
    next_training(original, splits, out)
    data = {name: {**vars(done), "folder": folder / name} for name, done in splits.items()}
    out.result({"splits": data, "target": settings.target.model_path}, "\n".join(lines))


def next_training(settings: Settings, splits: Iterable[str], out: Out) -> None:
    """Training goes on from the stores of these splits."""
    folder = settings.hidden_states.output_path
    stores: dict[str, object] = {"data.train_hidden_states_path": (folder / "train",)} if "train" in splits else {}
    if "eval" in splits:
        stores["data.eval_hidden_states_path"] = folder / "eval"
    out.next("train", {"train.mode": "offline", "target.model_path": settings.target.model_path, **stores})


CAPTURE_FIELDS = (
    *("output_path", "split", "dtype", "encoding", "enable_aux_hidden_states", "batch_tokens", "batch_size"),
    *("mem_frac", "shard_mb", "sample_size", "overwrite"),
)
COMMAND = Command(
    name="hidden-states",
    summary="Capture the target's hidden states to disk, for training without the target.",
    examples=(
        "eagle3 hidden-states --model-path TARGET --data-path cache/dataset/train.jsonl",
        "eagle3 hidden-states --model-path TARGET --data-path cache/dataset/train.jsonl --encoding auto",
    ),
    fields=(
        "launch.gpus",
        *("target.*", "draft.config", "draft.vocab_size", "draft.aux_layers", "draft.serve_with"),
        *(f"hidden_states.{name}" for name in CAPTURE_FIELDS),
        *("data.train_path", "data.eval_path", "data.cache_dir", "data.num_proc", "data.check_masks", *TOKENIZE_FIELDS),
    ),
    actions=ACTIONS,
    run=run,
    loads_torch=True,
    plan=planner("eagle3cli.backends.capture.plan:plan_capture"),
)
