"""Rows come back from their Arrow files as they went in, also from files of earlier versions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from eagle3cli.data.tokens.rows import ARROW_FILE, TokenRow, TokenRows, to_batch, write_rows


def test_a_cache_of_an_earlier_version_names_no_sources(tmp_path: Path) -> None:
    ids = np.array([4, 5, 6], dtype=np.int32)
    mask = np.array([0, 1, 1], dtype=np.uint8)
    rows = [TokenRow("a", ids, mask, source="one"), TokenRow("b", ids, mask, source="two"), TokenRow("c", ids, mask)]
    write_rows(tmp_path / "new", [to_batch(rows)], fingerprint="f")
    assert TokenRows.open(tmp_path / "new").sources == ["one", "two", ""]
    batch = to_batch(rows).drop_columns(["source"])
    (tmp_path / "old").mkdir()
    with pa.OSFile(str(tmp_path / "old" / ARROW_FILE), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    old = TokenRows.open(tmp_path / "old")
    assert old.sources == ["", "", ""]
    assert (old[1].id, old[1].token_ids.tolist(), old[1].source) == ("b", [4, 5, 6], "")
