"""Where the outcome of every row goes: to the part file of its shard, and with the last one the shard is finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from eagle3cli.serving.regenerate.shards import PartFile, ReplyShard, RowOutcome, ShardFolder


class Outputs:
    """The shards of one run, of which several may be under way. Use it within :meth:`opened`."""

    def __init__(self, folder: ShardFolder, shards: Sequence[ReplyShard]) -> None:
        self.folder = folder
        self.shards = shards
        self._size = len(shards[0].rows)
        self._parts: dict[ReplyShard, PartFile] = {}

    @property
    def done(self) -> int:
        """Rows that have their outcome."""
        finished = sum(len(shard.rows) for shard in self.shards if self.folder.summary(shard))
        return finished + sum(len(part.done) for part in self._parts.values())

    def shard_of(self, row: int) -> ReplyShard:
        """The shard of an input row."""
        return self.shards[(row - self.shards[0].first) // self._size]

    def is_done(self, row: int) -> bool:
        """Whether a row has its outcome already."""
        shard = self.shard_of(row)
        return self.folder.summary(shard) is not None or row in self._part(shard).done

    def add(self, outcome: RowOutcome) -> None:
        """Keep the outcome of a row that has none yet; it survives a kill at once."""
        shard = self.shard_of(outcome.row)
        part = self._part(shard)
        assert outcome.row not in part.done, f"row {outcome.row} has two outcomes"
        part.add(outcome)
        if len(part.done) == len(shard.rows):
            self._finish(shard)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Take up what earlier runs left; at the end, however it comes, everything is on the disk."""
        try:
            for shard in self.shards:
                if (part := self.folder.left_part(shard)) is not None:
                    self._parts[shard] = part
                    if len(part.done) == len(shard.rows):  # killed between its last row and its end
                        self._finish(shard)
            yield
        finally:
            for part in self._parts.values():
                part.close()
            self._parts.clear()

    def _finish(self, shard: ReplyShard) -> None:
        self.folder.finish(shard, self._parts.pop(shard))

    def _part(self, shard: ReplyShard) -> PartFile:
        if shard not in self._parts:
            self._parts[shard] = self.folder.part(shard)
        return self._parts[shard]
