"""What a hidden-state store is, told from its manifest and index alone."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from eagle3cli.data.hidden_states.rows import AUX, LAST, RowCounts
from eagle3cli.data.hidden_states.shard import shard_name
from eagle3cli.data.hidden_states.store import MANIFEST, read_manifest, read_meta, shard_shapes
from eagle3cli.data.hidden_states.writer import read_existing
from eagle3cli.errors import DataError
from eagle3cli.runtime.report import Reporter


def specforge_bytes(counts: RowCounts, layers: int, hidden: int) -> int:
    """What SpecForge's files, one a row, hold of the same rows: all tokens' states in bfloat16, int64 ids and mask."""
    return counts.tokens * ((layers + 1) * hidden * 2 + 16)


def describe_store(folder: Path, report: Reporter) -> dict[str, Any]:
    """Facts about a store, finished or not. Raises DataError where there is none or its index is damaged."""
    manifest = read_manifest(folder)
    meta = read_meta(manifest, folder)
    existing = read_existing(folder, report)
    if existing is None or existing.index is None:
        raise DataError(
            "damaged-store", "the index is damaged", where=str(folder), fix="run the command that wrote it again"
        )
    index = existing.index
    starts = manifest["starts"]
    counts = index.counts
    shapes = shard_shapes(meta, index, starts)
    present = [shape.bytes for i, shape in enumerate(shapes) if (folder / shard_name(i)).is_file()]
    total = sum(shape.bytes for shape in shapes)
    sample = manifest["sample"] or {}
    return {
        "folder": folder,
        "complete": manifest["complete"],
        "target": meta.target,
        "revision": meta.revision,
        "aux_layers": meta.aux_layers,
        "hidden_size": meta.hidden_size,
        "vocab_size": meta.vocab_size,
        "draft_vocab_size": index.vocab.size,
        "compute_dtype": meta.compute_dtype,
        "encoding": meta.encoding,
        "source": meta.source,
        "relative_error": sample.get("error"),
        "rows": meta.rows,
        "tokens": counts.tokens,
        "auxiliary_states": int(counts.counts_N3[:, AUX].sum()),
        "last_states": int(counts.counts_N3[:, LAST].sum()),
        "longest_row": max((int(n) for n in counts.counts_N3[:, 0]), default=0),
        "shards": len(shapes),
        "shards_there": len(present),
        "rows_a_shard": max((end - begin for begin, end in pairwise(starts)), default=0),
        "bytes": total,
        "bytes_there": sum(present),
        "bytes_per_token": round(total / max(1, counts.tokens), 1),
        "smaller_than_specforge": round(
            specforge_bytes(counts, len(meta.aux_layers), meta.hidden_size) / max(1, total), 2
        ),
        "computed": manifest["computed"],
    }


def stores_below(folder: Path) -> list[Path]:
    """The folder itself where it is a store, else the stores right in it."""
    if (folder / MANIFEST).is_file():
        return [folder]
    stores = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    if not stores:
        fix = "run `eagle3 hidden-states`, or give the folder that holds manifest.json"
        raise DataError("no-store", "no hidden-state store here", where=str(folder), fix=fix)
    return stores
