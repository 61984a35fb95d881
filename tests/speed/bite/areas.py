"""Where a silent error costs most: the modules whose mutants are drawn, by area."""

from __future__ import annotations

from pathlib import Path

AREAS: dict[str, tuple[str, ...]] = {
    "masks": (
        "data/chat/format.py",
        "data/chat/headers.py",
        "data/chat/offsets.py",
        "data/chat/placeholders.py",
        "data/chat/reply_spans.py",
        "data/chat/turn_ends.py",
        "data/tokens/encode.py",
        "data/tokens/mask_check.py",
    ),
    "packing": (
        "backends/batches/batch.py",
        "backends/batches/context.py",
        "backends/target/packed.py",
        "backends/target/padding.py",
        "backends/target/positions.py",
        "data/tokens/blocks.py",
        "training/batches.py",
    ),
    "unroll": (
        "training/ttt/attention.py",
        "training/ttt/context.py",
        "training/ttt/gather.py",
        "training/ttt/model.py",
        "training/ttt/unroll.py",
    ),
    "loss": ("training/ttt/loss.py", "training/ttt/fused_loss.py", "training/ttt/kernels/plain_rows.py"),
    "target capture": (
        "backends/capture/capture.py",
        "backends/capture/passes.py",
        "backends/capture/plan.py",
        "backends/capture/splits.py",
        "backends/target/head.py",
        "backends/target/hf.py",
        "backends/target/logits.py",
    ),
    "store and shard writing": (
        "data/hidden_states/partial.py",
        "data/hidden_states/quantize.py",
        "data/hidden_states/rows.py",
        "data/hidden_states/shard.py",
        "data/hidden_states/store.py",
        "data/hidden_states/writer.py",
        "data/tokens/cache.py",
        "runtime/files.py",
    ),
    "checkpoint load and save": (
        "models/checkpoint.py",
        "training/checkpoint/*.py",
        "training/fingerprint.py",
        "training/keep.py",
    ),
    "sharding": (
        "backends/batches/dealt.py",
        "runtime/distributed.py",
        "serving/regenerate/shards.py",
        "training/parallel.py",
        "training/split.py",
    ),
    "acceptance counting": (
        "serving/bench/results.py",
        "serving/bench/rounds.py",
        "serving/bench/summary.py",
        "serving/client/metrics.py",
        "serving/decode/speculate.py",
        "training/eval/measure.py",
        "training/eval/simulate.py",
        "training/eval/summary.py",
    ),
    "retries": (
        "serving/client/client.py",
        "serving/client/errors.py",
        "serving/client/limits.py",
        "serving/client/pool.py",
        "serving/regenerate/pending.py",
        "serving/regenerate/remote.py",
    ),
    "export checks": (
        "models/contract.py",
        "models/engines.py",
        "models/export.py",
        "models/folders.py",
        "models/speculators.py",
    ),
    "settings precedence": (
        "settings/fields.py",
        "settings/groups.py",
        "settings/load.py",
        "settings/toml.py",
    ),
}


def files(root: Path, area: str) -> list[Path]:
    """The files of an area, relative to ``root``; a pattern that matches nothing is an error: mend the table."""
    found: list[Path] = []
    for pattern in AREAS[area]:
        matches = sorted((root / "eagle3cli").glob(pattern))
        if not matches:
            raise SystemExit(f"areas.py: {area}: no file eagle3cli/{pattern}")
        found += [path.relative_to(root) for path in matches if path.name != "__init__.py"]
    return found
