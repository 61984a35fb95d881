"""eagle3 hidden-states: the target's states to disk, for training without the target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eagle3cli.commands.command import ENCODING, Command

if TYPE_CHECKING:
    from eagle3cli.console.out import Out
    from eagle3cli.settings.tables import Settings


def run(settings: Settings, out: Out) -> None:
    """Capture the cached rows of the wanted splits, or what an earlier run left to do."""
    from eagle3cli.backends import capture as states
    from eagle3cli.backends.hf import HfTarget, load_target, read_target_config
    from eagle3cli.commands.local_target import with_local_target
    from eagle3cli.data.cache import open_or_build
    from eagle3cli.data.store_writer import discard_store
    from eagle3cli.errors import UsageError
    from eagle3cli.models.config import read_draft_config
    from eagle3cli.runtime.devices import set_threads
    from eagle3cli.runtime.stop import catch_stop

    settings = with_local_target(settings, out)
    set_threads(settings.target.threads)
    wanted, target = settings.hidden_states, settings.target
    draft = read_draft_config(
        settings.draft.config,
        read_target_config(target),
        draft_vocab_size=settings.draft.vocab_size,
        aux_layers=settings.draft.aux_layers,
    )
    cached = open_or_build(settings, draft.draft_vocab_size, draft.vocab_size, out)
    splits = {name: rows for name, rows in (("train", cached.train), ("eval", cached.eval)) if rows is not None}
    if wanted.split != "both" and wanted.split not in splits:
        raise UsageError("no held-out rows to capture", where="--split eval", fix="give --eval-data-path")
    origin = states.origin_of(states.computing_in(target, wanted.dtype), draft)
    loaded: list[HfTarget] = []

    def load() -> HfTarget:
        loaded[:] = loaded or [load_target(states.computing_in(target, wanted.dtype), out, draft.aux_layers)]
        return loaded[0]

    done, lines = {}, []
    with catch_stop(out) as stop:
        for name, rows in splits.items():
            if wanted.split not in ("both", name):
                continue
            folder = wanted.output_path / name
            if wanted.overwrite:
                discard_store(folder)
            kept = rows if wanted.sample_size is None else [rows[i] for i in range(min(len(rows), wanted.sample_size))]
            sizes = {"batch_tokens": wanted.batch_tokens, "shard_mb": wanted.shard_mb}
            found = states.capture(load, kept, folder, origin, cached.vocab, **sizes, report=out, stop=stop)
            done[name] = {**vars(found), "folder": folder}
            new, size = found.shards - found.shards_before, states.size_text(found.bytes)
            lines.append(
                f"{name}: {found.rows} rows, {found.tokens} tokens, {size} in {folder}; "
                f"{new} of {found.shards} shards captured now, in {found.seconds:.0f} s"
            )
    flags = " ".join(f"--{name}-hidden-states-path {wanted.output_path / name}" for name in done)
    lines.append(f"next: eagle3 train --mode offline --target-model-path {target.model_path} {flags}")
    out.result({"splits": done, "target": target.model_path, "aux_layers": draft.aux_layers}, "\n".join(lines))


COMMAND = Command(
    name="hidden-states",
    summary="Capture the target's hidden states to disk, for training without the target.",
    examples=("eagle3 hidden-states --model-path TARGET --data-path cache/dataset/train.jsonl",),
    fields=("target.*", "draft.config", "draft.vocab_size", "draft.aux_layers", "hidden_states.*")
    + ("data.train_path", "data.eval_path", "data.cache_dir", "data.num_proc", *ENCODING),
    run=run,
)
