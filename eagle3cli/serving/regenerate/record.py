"""Makes a file for ``regenerate --recorded``: ``python -m eagle3cli.serving.regenerate.record SHARDS OUTPUT``.

SHARDS is the output folder of a greedy ``eagle3 regenerate``, OUTPUT a .jsonl or .jsonl.gz file. Only replies to a lone
first message are recorded; the messages themselves are not, only their hashes, so no prompt text is passed on. The
same shards give the same bytes.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eagle3cli.errors import Eagle3Error, UsageError
from eagle3cli.runtime.files import read_json, writing
from eagle3cli.serving.regenerate.recorded import HEADER, WEIGHTS, prompt_sha
from eagle3cli.serving.regenerate.shards import MANIFEST, read_rows


def record(shards: Path, output: Path) -> int:
    """Write the replies of all finished shards; returns how many."""
    manifest = read_json(shards / MANIFEST)
    made_with = manifest["made_with"]
    if made_with["temperature"] != 0:
        raise UsageError(
            "conflicting-options",
            "sampled replies cannot be recorded",
            where=str(shards),
            fix="regenerate with --temperature 0",
        )
    header = {key: made_with.get(key, default) for key, default in HEADER.items()}
    header |= {key: made_with[key] for key in WEIGHTS if key in made_with}
    finished = [name for name, counts in manifest["shards"].items() if counts["finished"]]
    replies = [reply for name in finished for reply in _replies(shards / f"shard_{name}.jsonl")]
    with writing(output, "wb") as f:
        raw = gzip.GzipFile("", "wb", 9, f, mtime=0) if output.suffix == ".gz" else f
        text = io.TextIOWrapper(raw, encoding="utf-8", newline="\n")
        for line in (header, *replies):
            text.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
        text.flush()
        text.detach()
        if raw is not f:
            raw.close()
    return len(replies)


def _replies(shard: Path) -> Iterator[dict[str, Any]]:
    for row in read_rows(shard):
        messages = row["conversations"]
        finish = row["finish"]
        if len(messages) >= 2 and messages[0]["role"] == "user" and finish and finish[0] in ("stop", "length"):
            sha = prompt_sha(messages[0]["content"])
            yield {"id": row["id"], "prompt_sha": sha, "reply": messages[1]["content"], "finish": finish[0]}


def main(argv: list[str]) -> int:
    """The command line."""
    if len(argv) != 2:
        print("usage: python -m eagle3cli.serving.regenerate.record SHARDS OUTPUT", file=sys.stderr)
        return UsageError.exit_code
    try:
        count = record(Path(argv[0]), Path(argv[1]))
    except Eagle3Error as error:
        print(f"error [{error.code}]: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{count} replies recorded in {argv[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
