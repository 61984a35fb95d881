"""eagle3 hidden-states convert: a store written again in another encoding."""

from __future__ import annotations

from pathlib import Path

from eagle3cli.cli.command import Command
from eagle3cli.console.out import Out
from eagle3cli.errors import UsageError
from eagle3cli.settings.tables import Settings


def convert(settings: Settings, out: Out) -> None:
    """Write a store again in another encoding."""
    from eagle3cli.backends.target.hf import pick_device
    from eagle3cli.data.hidden_states.convert import convert as convert_store
    from eagle3cli.data.hidden_states.forecast import choose_quantization
    from eagle3cli.data.hidden_states.store import Store
    from eagle3cli.data.hidden_states.writer import discard_store
    from eagle3cli.runtime.devices import set_threads
    from eagle3cli.runtime.stop import catch_stop
    from eagle3cli.runtime.units import size_text

    set_threads(settings.target.threads)
    options = settings.hidden_states
    source = one_path(settings)
    store = Store(source)
    shape = {"layers": len(store.meta.aux_layers), "hidden": store.meta.hidden_size}
    encoding = choose_quantization(options.encoding, store.index.counts, source, **shape)
    folder = options.output_path
    if "output_path" not in options.model_fields_set:
        folder = source.with_name(f"{source.resolve().name}-{encoding}")
    if options.overwrite and folder.resolve() != source.resolve():
        discard_store(folder)
    device = pick_device(settings.target.device)
    with catch_stop(out) as stop:
        new = convert_store(store, folder, encoding, shard_mb=options.shard_mb, device=device, report=out, stop=stop)
    error = new.manifest["sample"]["error"]
    out.next("train", {"train.mode": "offline", "data.train_hidden_states_path": (folder,)})
    out.result(
        {"folder": folder, "encoding": encoding, "bytes": new.bytes, "bytes_before": store.bytes, "error": error},
        f"{len(new)} rows in {folder}: {size_text(new.bytes)} as {encoding}, {size_text(store.bytes)} as "
        f"{store.meta.encoding}; relative error {error['aux']:.2g} of auxiliary, {error['last']:.2g} of last states",
    )


def one_path(settings: Settings) -> Path:
    """The one folder that was named; raises UsageError for none or several."""
    paths = settings.hidden_states.paths
    if len(paths) != 1:
        raise UsageError("command-line", f"{len(paths)} folders, not one", where="PATHS", fix="name the folder to read")
    return paths[0]


CONVERT = Command(
    name="convert",
    summary="Write a hidden-state store again in another encoding; beside it, unless --output-path says where.",
    examples=("eagle3 hidden-states convert cache/hidden_states/train --encoding int8",),
    fields=(
        *(f"hidden_states.{name}" for name in ("encoding", "output_path", "shard_mb", "overwrite")),
        *("target.device", "target.threads"),
    ),
    arguments=("hidden_states.paths",),
    run=convert,
)
