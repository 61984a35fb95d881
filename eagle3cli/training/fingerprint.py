"""Whether a run may go on: what decides its numbers, written into every checkpoint, and what has changed since.

More steps, more rows, other evaluations and other ways to save and to compute let a run go on. Another target, another
draft, other rows or another way to train make another run.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eagle3cli.backends.target.head import fingerprint
from eagle3cli.data.hidden_states.store import Store, open_stores
from eagle3cli.data.inspect.selection import matching_cache
from eagle3cli.data.tokens.rows import TokenRows
from eagle3cli.errors import DataError, UsageError
from eagle3cli.models.config import DraftConfig
from eagle3cli.runtime.provenance import Change, changes_table, compared, digest_json, json_value
from eagle3cli.settings.tables import Settings
from eagle3cli.settings.toml import to_toml
from eagle3cli.settings.training import FREE_FIELDS, SESSION_FIELDS, TrainSettings
from eagle3cli.training.checkpoint.state import TrainState
from eagle3cli.training.inputs import held_out_states, train_states
from eagle3cli.training.warm_start import warm_start_digest

Identity = dict[str, Any]
"""``train``: settings; ``start``, ``draft``, ``target``; ``data``: key, rows, caches; ``held_out``: a digest."""

SAME_DATA = 0.5
"""Share of the rows before that are among those now, from which on these are more of the same data."""
DATA_SETTINGS = ("train_path", "train_hidden_states_path", "max_length", "chat_template", "system_prompt")


def run_identity(settings: Settings, config: DraftConfig, cache: Path | None) -> Identity:
    """What decides a run's numbers; ``cache`` holds its tokenized rows, None where they are not there yet."""
    identity: Identity = {
        "train": _kept(settings.train, FREE_FIELDS),
        "start": warm_start_digest(settings) or settings.draft.init,
        "draft": config.to_sglang(),
        "target": fingerprint(settings.target.model_path, revision=settings.target.revision),
        **(_of_stores(settings) if settings.train.mode == "offline" else _of_cache(settings, cache)),
    }
    if settings.train.best_by:
        identity["best_by"] = [settings.train.best_by, settings.train.top_p, settings.train.top_k]
    plain: Identity = json_value(identity)
    return plain


def run_fingerprint(train: TrainSettings, identity: Identity) -> str:
    """All of it hashed, as earlier versions did."""
    kept = _kept(train, SESSION_FIELDS)
    parts = [kept, identity["start"], identity["draft"], (identity["data"] or {}).get("key"), identity["target"]]
    return digest_json(parts, sort_keys=False)


def _kept(train: TrainSettings, left_out: Sequence[str]) -> dict[str, Any]:
    if train.echo_factor == 1:  # nor do runs of before the setting have it
        left_out = (*left_out, "echo_factor", "echo_buffer")
    if not train.keep_states:
        left_out = (*left_out, "keep_states")
    if train.ema_decay is None:
        left_out = (*left_out, "ema_decay")
    return {name: value for name, value in train.model_dump(mode="json").items() if name not in left_out}


def _whole(kept: dict[str, Any]) -> dict[str, Any]:
    """With the settings that :func:`_kept` leaves out, or that an earlier version did not have: at their defaults."""
    return {**TrainSettings().model_dump(mode="json"), **kept}


def _of_cache(settings: Settings, cache: Path | None) -> Identity:
    if cache is None:
        return {"data": None, "held_out": None}
    train = cache / "train"
    data = {"key": cache.name, "rows": len(TokenRows.open(train)), "caches": [str(train.absolute())]}
    held_out = TokenRows.open(cache / "eval").lengths if (cache / "eval").is_dir() else []
    return {"data": data, "held_out": _held_out(settings, held_out)}


def _of_stores(settings: Settings) -> Identity:
    stores = open_stores(train_states(settings))
    caches = settings.data.cache_dir / "processed_dataset"
    matching = [matching_cache(store, caches) for store in stores.stores]
    known = [str(folder.absolute()) for folder in matching if folder is not None]
    data = {"key": stores.key, "rows": len(stores), "caches": known if len(known) == len(matching) else []}
    held_out = held_out_states(settings)
    return {"data": data, "held_out": _held_out(settings, Store(held_out).lengths if held_out is not None else [])}


def _held_out(settings: Settings, lengths: Sequence[int]) -> str:
    """Tells the rows of an evaluation from others."""
    return digest_json(list(lengths[: settings.train.eval_rows]))


@dataclass
class Continuation:
    """How a run goes on: what people are told, and whether the best draft is still told by the same measure."""

    notes: list[str] = field(default_factory=list)
    same_measure: bool = True


def go_on(run: Path, state: TrainState, settings: Settings, now: Identity) -> Continuation:
    """How the run in this folder goes on from ``state`` with what is ``now``.

    Raises UsageError with a table of what cannot change.
    """
    before = state.identity
    if not before:
        return _go_on_by_hash(run, state, settings, now)
    refused = [Change(f"train.{c.key}", c.was, c.now) for c in compared(_whole(before["train"]), _whole(now["train"]))]
    refused = [change for change in refused if change.key.removeprefix("train.") not in FREE_FIELDS]
    refused += [Change(f"draft.{c.key}", c.was, c.now) for c in compared(before["draft"], now["draft"])]
    if before["start"] != now["start"]:
        refused.append(Change("draft.init", "another start", settings.draft.init))
    if before["target"] != now["target"]:
        refused.append(_target_change(run, settings))
    continuation = Continuation()
    data = now["data"]
    if data is None:
        continuation.notes.append("data: not tokenized yet; then it is seen whether these are more of the same rows")
    elif data["key"] != before["data"]["key"]:
        shared = _shared_rows(before["data"], data)
        rows = f"{before['data']['rows']:,} rows"
        if shared is None and data["rows"] >= before["data"]["rows"]:
            continuation.notes.append(f"data: {data['rows']:,} rows, were {rows}; nobody can tell which are the same")
        elif shared is not None and shared >= SAME_DATA * before["data"]["rows"]:
            if shared != before["data"]["rows"] or data["rows"] != shared:
                continuation.notes.append(
                    f"data: {data['rows']:,} rows, were {rows}, of which {shared:,} are still there"
                )
        else:
            same = "" if shared is None else f", {shared:,} of them the same"
            refused += [Change("data", rows, f"{data['rows']:,} rows{same}"), *_changed_in(run, settings, "data")]
    _refuse(refused, run)
    if before["held_out"] != now["held_out"] and now["held_out"] is not None:
        continuation.same_measure = False
        continuation.notes.append("held-out rows: others than before, so the best draft is looked for anew")
    if before.get("best_by") != now.get("best_by"):
        continuation.same_measure = False
        continuation.notes.append("train.best_by: another than before, so the best draft is looked for anew")
    return continuation


def _go_on_by_hash(run: Path, state: TrainState, settings: Settings, now: Identity) -> Continuation:
    """For a checkpoint of an earlier version, which says no more than one hash."""
    if now["data"] is None or state.fingerprint == run_fingerprint(settings.train, now):
        return Continuation()
    earlier = _earlier(run)
    if earlier is not None and state.fingerprint == run_fingerprint(earlier.train, now):
        train = [
            Change(f"train.{c.key}", c.was, c.now) for c in compared(_kept(earlier.train, FREE_FIELDS), now["train"])
        ]
        _refuse(train, run)
        return Continuation()
    tables = ("target", "draft", "data", "train")
    changed = [change for table in tables for change in _changed_in(run, settings, table)]
    _refuse(changed or [Change("data, draft or target", "others", "of these settings")], run)
    return Continuation()


def _refuse(refused: Sequence[Change], run: Path) -> None:
    if refused:
        raise UsageError(
            "made-differently",
            "the run in this folder was started with other data, draft or training settings" + changes_table(refused),
            where=str(run),
            fix="give another --output-dir, or --overwrite to start over",
        )


def _target_change(run: Path, settings: Settings) -> Change:
    path = settings.target.model_path
    earlier = next((c.was for c in _changed_in(run, settings, "target") if c.key == "target.model_path"), path)
    return Change("target.model_path", earlier, path if path != earlier else f"{path}, with other weights")


def _changed_in(run: Path, settings: Settings, table: str) -> list[Change]:
    """What differs in a table from the ``settings.toml`` of the session before."""
    try:
        was = tomllib.loads((run / "settings.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    old = was.get(table, {})
    new = tomllib.loads(to_toml(settings)).get(table, {})
    keys = old.keys() | new.keys()
    if table == "data":
        keys = keys & set(DATA_SETTINGS)
    elif table == "train":
        keys = keys - set(FREE_FIELDS)
    changed = compared({key: old.get(key) for key in keys}, {key: new.get(key) for key in keys})
    return [Change(f"{table}.{c.key}", c.was, c.now) for c in changed]


def _earlier(run: Path) -> Settings | None:
    """The settings of the session before, where this version still reads them."""
    try:
        return Settings.model_validate(tomllib.loads((run / "settings.toml").read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, ValidationError):
        return None


def _shared_rows(before: dict[str, Any], now: dict[str, Any]) -> int | None:
    """Rows of before that are among those now, by their tokens and masks; None where the tokens are gone."""
    try:
        old = [digest for folder in before["caches"] for digest in _digests(Path(folder))]
        new = {digest for folder in now["caches"] for digest in _digests(Path(folder))}
    except DataError:
        return None
    return sum(digest in new for digest in old) if old and new else None


def _digests(folder: Path) -> list[int]:
    return [hash((row.token_ids.tobytes(), row.loss_mask.tobytes())) for row in TokenRows.open(folder)]
