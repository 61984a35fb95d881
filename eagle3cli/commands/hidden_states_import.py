"""eagle3 hidden-states import: a store made of another program's files."""

from __future__ import annotations

from eagle3cli.cli.command import Command
from eagle3cli.commands.hidden_states_convert import one_path
from eagle3cli.console.out import Out
from eagle3cli.errors import SOME_ROWS_FAILED
from eagle3cli.settings.tables import Settings


def import_(settings: Settings, out: Out) -> int | None:
    """Make a store of SpecForge's per-row files; 3 where some of them could not be used."""
    from eagle3cli.backends.capture.import_specforge import import_split
    from eagle3cli.runtime.devices import set_threads
    from eagle3cli.runtime.stop import catch_stop
    from eagle3cli.runtime.units import size_text

    set_threads(settings.target.threads)
    split = "eval" if settings.hidden_states.split == "eval" else "train"
    folder = settings.hidden_states.output_path / split
    with catch_stop(out) as stop:
        done = import_split(settings, one_path(settings), folder, out, stop)
    text = f"{done.rows} rows, {done.tokens} tokens, {done.encoding}, {size_text(done.bytes)} in {folder}"
    if done.rejected:
        text += f"; {done.rejected} files could not be used, each with its reason in {folder / 'errors.jsonl'}"
        text += " (told when they were imported; nothing is new)" if done.nothing_new else ""
    if split == "train":
        states = {"train.mode": "offline", "data.train_hidden_states_path": (folder,)}
        out.next("train", {**states, "target.model_path": settings.target.model_path})
    out.result({**vars(done), "folder": folder}, text)
    return SOME_ROWS_FAILED if done.rejected and not done.nothing_new else None


IMPORT = Command(
    name="import",
    summary="Make a hidden-state store of SpecForge's .ckpt files, one a row.",
    examples=("eagle3 hidden-states import cache/specforge/rows_0-5000 --model-path TARGET --aux-layers 1 15 28",),
    fields=(
        *(f"hidden_states.{name}" for name in ("encoding", "output_path", "split", "shard_mb", "overwrite")),
        *("target.model_path", "target.revision", "target.device", "target.threads", "target.trust_remote_code"),
        *("draft.config", "draft.vocab_size", "draft.aux_layers", "cache.reply_weight", "cache.prompt_weight"),
    ),
    arguments=("hidden_states.paths",),
    run=import_,
)
