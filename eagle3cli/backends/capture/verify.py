"""Whether a hidden-state store is sound: every byte checked, and a few rows computed again with the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from eagle3cli.backends.capture.passes import run_batch
from eagle3cli.backends.target.head import fingerprint
from eagle3cli.backends.target.hf import load_target
from eagle3cli.backends.target.target import LiveTarget
from eagle3cli.data.hidden_states.calibration import sample_rows
from eagle3cli.data.hidden_states.check import Damage, check_store
from eagle3cli.data.hidden_states.quantize import Quantization, relative_error
from eagle3cli.data.hidden_states.rows import TOKENS
from eagle3cli.data.hidden_states.store import Store
from eagle3cli.data.images.processor import ImageProcessor
from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.errors import UsageError
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.units import size_text
from eagle3cli.settings.models import TargetSettings
from eagle3cli.settings.tables import Settings

USUAL_ERROR: dict[Quantization, float] = {"bf16": 0.002, "fp8": 0.03, "int8": 0.01, "int4": 0.11}
ROUNDING = 0.05
"""What other batch shapes, processors and versions of torch may change of states computed in bfloat16."""


@dataclass(frozen=True)
class RecomputeResult:
    """How far a store is from the target; errors are relative, every channel counting the same."""

    rows: int
    tokens: int
    aux_error: float
    last_error: float
    same_top: float
    """Share of positions whose most likely token is the same."""
    allowed: float
    """Errors up to this one come from the encoding and from rounding."""

    @property
    def fits(self) -> bool:
        """Whether the store is the target's."""
        return max(self.aux_error, self.last_error) <= self.allowed


def target_of(store: Store, target: TargetSettings) -> TargetSettings:
    """The target to compute again with: as named, else the one that the store names, in the type of the capture."""
    meta = store.meta
    path = target.model_path or meta.target
    is_dtype = meta.compute_dtype in ("float32", "bfloat16", "float16")
    dtype = meta.compute_dtype if target.dtype == "auto" and is_dtype else target.dtype
    return target.model_copy(update={"model_path": path, "dtype": dtype, "revision": target.revision or meta.revision})


def recompute(store: Store, target: LiveTarget, rows: int, report: Reporter) -> RecomputeResult | None:
    """Run the target over ``rows`` rows from all over the store and compare; None where all of them have images."""
    mean = store.index.counts.tokens / max(1, len(store))
    chosen = sample_rows(store.index.counts, max(1, round(rows * mean)))[:rows]
    chosen = _of_text(store, chosen, target, report)
    if not chosen:
        return None
    stored_rows = []
    new_rows = []
    with report.task(f"computing {store.folder.name} again", len(chosen)) as task:
        for number in chosen:
            stored = store[number]
            ids = stored.token_ids_S.numpy().astype("int32")
            mask = stored.loss_mask_S.numpy().astype("uint8")
            new_rows += run_batch(target, [TokenRow(str(number), ids, mask)])
            stored_rows.append(stored)
            task.advance()
    aux, last = (
        relative_error(
            torch.cat([getattr(row, name) for row in new_rows]).cpu(),
            torch.cat([getattr(row, name) for row in stored_rows]),
        )
        for name in ("aux_UC", "last_RH")
    )
    same = torch.cat([a.top_R == b.top_R.cpu() for a, b in zip(stored_rows, new_rows, strict=True)]).float().mean()
    tokens = int(store.counts_N3[chosen, TOKENS].sum())
    allowed = ROUNDING + 2 * USUAL_ERROR[store.meta.encoding]
    return RecomputeResult(len(chosen), tokens, aux, last, float(same), allowed)


def _of_text(store: Store, chosen: Sequence[int], target: LiveTarget, report: Reporter) -> list[int]:
    """The rows among these that have no images: which a row had, a store does not keep."""
    if not store.meta.images_hash:
        return list(chosen)
    image_ids = torch.tensor(sorted(ImageProcessor(target.path, store.meta.revision).image_token_ids))
    text = [number for number in chosen if not torch.isin(store[number].token_ids_S.cpu(), image_ids).any()]
    if len(text) < len(chosen):
        report.warn(f"{len(chosen) - len(text)} rows with images are not computed again: a store keeps no images")
    return text


@dataclass(frozen=True)
class Verdict:
    """What was found about a store."""

    folder: Path
    rows: int
    bytes: int
    damage: list[Damage]
    recomputed: RecomputeResult | None
    """None where nothing was computed again."""

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damage and (self.recomputed is None or self.recomputed.fits)

    def lines(self) -> list[str]:
        """For people: each damage and what to do, or what was checked."""
        if self.damage:
            shards = sorted({str(damage.path) for damage in self.damage if damage.path != self.folder})
            fix = f"fix: rm {' '.join(shards)}, then run the command that wrote the store again: it makes only these"
            return [*map(str, self.damage), *([fix] if shards else [])]
        lines = [f"{self.rows} rows, {size_text(self.bytes)}: every byte is as it was written"]
        again = self.recomputed
        if again is None:
            return [*lines, "nothing was computed again"]
        errors = f"relative error {again.aux_error:.2g} of auxiliary and {again.last_error:.2g} of last states"
        lines.append(f"{again.rows} rows computed again: {errors}, {again.same_top:.1%} of the top tokens the same")
        if not again.fits:
            lines.append(f"up to {again.allowed:.2g} is to be expected: this is not what the target says")
        return lines

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        damage = [{"file": str(d.path), "row": d.row, "what": d.what} for d in self.damage]
        again = {**vars(self.recomputed), "fits": self.recomputed.fits} if self.recomputed is not None else None
        return {
            "folder": self.folder,
            "good": self.good,
            "rows": self.rows,
            "bytes": self.bytes,
            "damage": damage,
            "recomputed": again,
        }


def verify_store(folder: Path, settings: Settings, report: Reporter) -> Verdict:
    """Check a store; raises DataError where it is no complete store, UsageError where the target is another one."""
    store = Store(folder)
    damage = check_store(store, report)
    again = None
    if settings.hidden_states.recompute and not damage:
        again = _recompute_rows(store, settings, report)
    return Verdict(folder, len(store), store.bytes, damage, again)


def _recompute_rows(store: Store, settings: Settings, report: Reporter) -> RecomputeResult | None:
    target_settings = target_of(store, settings.target)
    if not settings.target.model_path and not Path(target_settings.model_path).is_dir():
        report.warn(
            f"no rows computed again: the target is not at {target_settings.model_path}; give --target-model-path"
        )
        return None
    if fingerprint(target_settings.model_path, revision=target_settings.revision) != store.meta.target_hash:
        fix = f"give the target it came from ({store.meta.target}), or --recompute 0"
        what = "was captured from another target: config or weights differ"
        raise UsageError("conflicting-options", what, where=str(store.folder), fix=fix)
    target = load_target(target_settings, report, store.meta.aux_layers)
    return recompute(store, target, settings.hidden_states.recompute, report)
