"""What a run trains on, in numbers that its report shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eagle3cli.data.hidden_states.store import Store, Stores
from eagle3cli.data.inspect.selection import matching_cache
from eagle3cli.data.tokens.build import SUMMARY
from eagle3cli.data.tokens.cache import TokenCache
from eagle3cli.runtime.files import read_json


def summarize_cache(cached: TokenCache) -> dict[str, Any]:
    """Counts of each split, and what the draft's vocabulary covers."""
    counts: dict[str, Any] = {
        name: cached.summary[name] for name in ("train", "eval", "vocab") if name in cached.summary
    }
    return {"kind": "cache", "folder": str(cached.folder), **counts}


def summarize_stores(stores: Stores, folders: Sequence[Path], held_out: Store | None, caches: Path) -> dict[str, Any]:
    """Counts of each split: those of the cache that the states were captured from, where that still is."""
    counts: dict[str, Any] = {"train": {"rows": len(stores), "tokens": sum(stores.lengths)}}
    if held_out is not None:
        counts["eval"] = {"rows": len(held_out), "tokens": sum(held_out.lengths)}
    cache_folder = matching_cache(stores.stores[0], caches) if len(stores.stores) == 1 else None
    if cache_folder is not None and (cache_folder.parent / SUMMARY).is_file():
        summary = read_json(cache_folder.parent / SUMMARY)
        counts |= {n: summary[n] for n in counts if n in summary and summary[n].get("rows") == counts[n]["rows"]}
    return {
        "kind": f"hidden states ({stores.meta.encoding})",
        "folder": str(folders[0]),
        **counts,
        "vocab": {"size": stores.vocab.size, "target_size": stores.meta.vocab_size},
    }
