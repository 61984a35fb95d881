"""The model card of an exported draft: what it is for, how it was made, how often it is accepted, whose licences count.

All of it is read from the run that the draft comes from; what a run does not say is not said. Paths of the machine stay
out: files and local folders go by their names.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from eagle3cli.errors import ModelError
from eagle3cli.models.config import FLAGS, DraftConfig
from eagle3cli.models.engines import CHECKED, ENGINES

MARKUP = re.compile(r"[\\`*\[\]|]")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SHOWN = {
    "train": (
        *("mode", "num_epochs", "total_steps", "time_budget", "batch_size", "learning_rate", "optimizer", "loss"),
        *("ttt_length", "alignment", "seed"),
    ),
    "data": ("chat_template", "max_length", "is_preformatted", "last_turn_only"),
}
"""Settings that the card lists, by table."""


@dataclass(frozen=True)
class Origin:
    """What the run around a draft says of it; empty for a folder without a run."""

    target: str | None = None
    data: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    """The evaluation with the best acceptance length."""
    backend: str | None = None
    """What ran the target."""
    serve_with: str | None = None
    """The engine that the draft was trained for, where that was said."""


def origin_of(draft_folder: Path) -> Origin:
    """Read the run that a checkpoint or ``best/`` stands in."""
    for run in (draft_folder, *draft_folder.parents[:2]):
        if (run / "settings.toml").is_file():
            tables = _tables(run / "settings.toml")
            break
    else:
        return Origin()
    data = tables["data"]
    stores = data.get("train_hidden_states_path")
    named = [data.get("train_path"), *(stores if isinstance(stores, list) else ()), data.get("eval_path")]
    files = [Path(name).name for name in named if isinstance(name, str) and name]
    listed = {key: tables[table][key] for table, keys in SHOWN.items() for key in keys if key in tables[table]}
    target = tables["target"].get("model_path")
    backend = tables["target"].get("backend")
    best = _best(run / "metrics.jsonl")
    engine = tables["draft"].get("serve_with")
    return Origin(
        str(target) if target else None,
        files,
        listed,
        best,
        str(backend) if backend else None,
        str(engine) if engine else None,
    )


def _tables(path: Path) -> dict[str, dict[str, Any]]:
    """The tables that the card reads; raises ModelError for a file of settings that is none."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        fix = "remove it, and the card says nothing of the run; or put the right one there"
        raise ModelError("settings-file", f"not settings: {error}", where=str(path), fix=fix) from error
    return {name: raw[name] if isinstance(raw.get(name), dict) else {} for name in ("target", "draft", *SHOWN)}


def _best(history: Path) -> dict[str, Any] | None:
    evaluations = []
    for line in history.read_text(encoding="utf-8", errors="replace").split("\n") if history.is_file() else ():
        try:
            row = json.loads(line)
            lengths = [float(value) for value in row["acceptance_length"]] if row["event"] == "eval" else []
        except (ValueError, LookupError, TypeError, RecursionError):  # a line that a kill cut off, or of another kind
            continue
        if lengths:
            evaluations.append(row)
    return max(evaluations, key=lambda row: float(row["acceptance_length"][-1]), default=None)


def public_name(target: str) -> str:
    """A target's name for other people: its hub id, or the last part of a local path."""
    return target if HUB_ID.fullmatch(target) and not Path(target).exists() else Path(target).name


def plain(value: object) -> str:
    """A value as one line of Markdown that shows just this text: no markup, no HTML, no table cell of its own."""
    return MARKUP.sub(r"\\\g<0>", escape(" ".join(str(value).split()), quote=False))


def _yaml(word: str) -> str:
    return word if re.fullmatch(r"[\w.+-]+", word) else json.dumps(word)


def model_card(
    name: str,
    config: DraftConfig,
    origin: Origin,
    serve: Mapping[str, str],
    *,
    licence: str | None,
    target: str | None,
    target_hash: str | None = None,
    adapter: tuple[str, str] | None = None,
    quantization: str | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The card as Markdown with the hub's header; ``serve`` holds the line of every server that runs the draft.

    ``target_hash`` says which target it is, ``adapter`` what was merged to make it (the names of a model and of its
    adapter), ``quantization`` how its weights are stored, ``notes`` what to know of the servers (``models/serve.py``).
    """
    target = public_name(target or origin.target or "") or "its target"
    based_on = adapter[0] if adapter else target
    base = [f"base_model: {based_on}"] if HUB_ID.fullmatch(based_on) else []
    if adapter:
        notes = [*notes, f"{target} is {based_on} with the LoRA adapter {adapter[1]} merged into it: serve that folder"]
    header = ["---", f"license: {_yaml(licence or 'other')}", *base, "pipeline_tag: text-generation"]
    header += ["tags:", *(f"- {tag}" for tag in ("eagle3", "speculative-decoding", *serve)), "---"]
    options = [flag for flag in FLAGS if getattr(config, flag)]
    hashed = {"target's hash": f"{target_hash} (of its config and samples of its weights)"} if target_hash else {}
    facts = {
        "target": target,
        **({"target is made of": f"{based_on} and the LoRA adapter {adapter[1]}"} if adapter else {}),
        **({"target's weights": quantization} if quantization else {}),
        **hashed,
        "target layers read": ", ".join(map(str, config.aux_layers)),
        "decoder layers": config.num_hidden_layers,
        **({"attention": f"latent (MLA), rank {config.latent.kv_lora_rank}"} if config.latent else {}),
        "hidden / MLP width": f"{config.hidden_size} / {config.intermediate_size}",
        "draft vocabulary": f"{config.draft_vocab_size} of {config.vocab_size}",
        "context": config.max_position_embeddings,
        "options": ", ".join(options) or "none",
        "data": ", ".join(origin.data) or "not recorded",
        **origin.settings,
    }
    parts = [
        "\n".join(header),
        f"# {plain(name)}\n\nAn EAGLE-3 draft for {plain(target)}: it proposes tokens, the target checks them, and the "
        "text stays the target's own.",
        f"## Serve\n\n{_serve(serve, notes)}",
        "## How it was made\n\n| what | value |\n|---|---|\n"
        + "\n".join(f"| {k} | {plain(v)} |" for k, v in facts.items()),
        "## Acceptance\n\n" + _acceptance(origin.evaluation),
        f"## Licence\n\n{_licence(licence, plain(target), bool(origin.data))}",
    ]
    return "\n\n".join(parts) + "\n"


def _serve(serve: Mapping[str, str], notes: Sequence[str]) -> str:
    lines = "\n".join(f"    {line}" for line in serve.values()) or "No server that is known runs it."
    written_for = [engine for engine in ENGINES if engine in serve] or [*ENGINES]
    checked = " and ".join(f"{ENGINES[engine]} {CHECKED[engine]}" for engine in written_for)
    said = [*notes, f"written for {checked}"]
    return f"{lines}\n\n" + "\n".join(f"- {plain(note)}" for note in said)


def _acceptance(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return "Not measured in its run."
    shares = evaluation.get("accepted_per_position") or []
    lines = ["| draft steps | acceptance length | proposals accepted at this depth |", "|---|---|---|"]
    for k, length in enumerate(evaluation["acceptance_length"], start=1):
        share = f"{shares[k - 1]:.3f}" if k <= len(shares) else ""
        lines.append(f"| {k} | {length:.3f} | {share} |")
    rows = evaluation.get("rows", "?")
    heading = f"Tokens per pass of the target, greedy, on {rows} held-out rows at step {evaluation['step']}."
    return "\n".join([heading, "", *lines])


def _licence(licence: str | None, target: str, has_data: bool) -> str:
    lines = [f"- this draft: {plain(licence or 'not stated; ask its author')}"]
    lines.append(
        f"- {target}: its own licence. The draft was trained on its states, and its head started from the target's"
    )
    if has_data:
        lines.append("- data: each set's own licence")
    return "\n".join(lines)
