"""``data.max_length = "auto"``: the maximum length chosen from the training rows, once for the same content.

    CACHE_DIR/max_length/KEY.json    the number, and what it keeps of the rows that were measured

Every command that tokenizes asks here first, so that all of them cut the same rows at the same place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eagle3cli.data.tokens.blocks import EncoderConfig, Item, blocks_of, encode_items
from eagle3cli.data.tokens.cache import cache_key, encoder_config
from eagle3cli.data.tokens.lengths import ENOUGH, LENGTHS
from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.errors import Eagle3Error
from eagle3cli.runtime.files import read_json, write_json
from eagle3cli.runtime.report import Reporter
from eagle3cli.settings.data import UNSEEN_ROWS
from eagle3cli.settings.tables import Settings

STEP = 128
"""Tokens of which a chosen length is a multiple: blocks of attention masks are of this size."""
OF_TRAINING = "a draft's training rows may have been cut elsewhere; --train-data-path, or a number, cuts these alike"
MEASURED_ROWS = 8192
"""Rows that are measured, evenly out of all."""


@dataclass(frozen=True)
class LengthChoice:
    """A maximum length, and what it leaves of the rows that were measured."""

    max_length: int
    limit: int
    """The longest that there could be: the target's context."""
    rows: int
    whole: int
    """Rows that stay whole."""
    without_reply: int
    """Rows whose replies all begin behind the cut: they train nothing."""
    reply_tokens: int
    kept_reply_tokens: int
    all_rows: int
    """Rows of the file; more than ``rows`` where it is large."""

    def text(self) -> str:
        """For people: the number, the rule, and what is lost."""
        if not self.reply_tokens:
            return f"data.max_length auto: {self.max_length:,} tokens; no row has a reply to choose by"
        kept = self.kept_reply_tokens / self.reply_tokens
        rule = f"the smallest multiple of {STEP} that keeps 99% of reply tokens"
        if kept < ENOUGH:
            rule = "the target's context, which keeps less than 99% of reply tokens"
        elif self.max_length == self.limit and self.limit % STEP:
            rule = "the target's context"
        seen = f"{self.rows:,} rows" if self.rows == self.all_rows else f"{self.rows:,} of {self.all_rows:,} rows"
        lost = self.reply_tokens - self.kept_reply_tokens
        return (
            f"data.max_length auto: {self.max_length:,} tokens, {rule}; of {seen} measured {self.rows - self.whole:,} "
            f"are cut, {self.without_reply:,} of them before any reply, and {lost:,} of {self.reply_tokens:,} reply "
            f"tokens ({1 - kept:.2%}) are lost"
        )


def with_max_length(settings: Settings, context: int | None, report: Reporter, *, remember: bool = True) -> Settings:
    """The settings with the number that ``data.max_length = "auto"`` stands for, which ``report`` is told.

    As they are where a number is given, or where there is no file to choose by. ``context`` is the target's, None where
    its config does not say. With ``remember`` the choice is kept in the cache. Raises as the cache does for rows and
    tokenizers that cannot be read.
    """
    data = settings.data
    if data.max_length != "auto":
        return settings
    path = next((each for each in (data.train_path, data.eval_path) if each is not None and each.is_file()), None)
    if path is None:
        return settings
    choice = _choice(settings, path, min(context or LENGTHS[-1], LENGTHS[-1]), remember)
    report.info(choice.text())
    if path != data.train_path:
        report.info(f"chosen by the evaluation rows, {path}: {OF_TRAINING}")
    return settings.updated("data", max_length=choice.max_length)


def _choice(settings: Settings, path: Path, limit: int, remember: bool) -> LengthChoice:
    config = replace(encoder_config(settings), max_length=limit)
    folder = settings.data.cache_dir / "max_length"
    if remember:
        folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{cache_key(settings, config, {'train': path}, remember=remember)}.json"
    with suppress(Eagle3Error, TypeError):  # none yet, or damaged: it is chosen again
        return LengthChoice(**read_json(kept))
    choice = choose(config, path)
    if remember:
        write_json(kept, asdict(choice))
    return choice


def choose(config: EncoderConfig, path: Path) -> LengthChoice:
    """The smallest multiple of :data:`STEP` that keeps :data:`ENOUGH` of the file's reply tokens; where none does,
    ``config.max_length``, the longest possible."""
    limit = config.max_length
    all_rows = sum(map(len, blocks_of(path)))
    tokens = Tally(limit)
    for row in _measured(config, path, max(1, -(-all_rows // MEASURED_ROWS))):
        tokens.add(row)
    return tokens.choice(all_rows)


class Tally:
    """Where rows and their reply tokens end, in steps of :data:`STEP` tokens up to ``limit``."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.rows = self.reply_tokens = 0
        bins = -(-limit // STEP)
        self.replies = np.zeros(bins, dtype=np.int64)
        """Reply tokens by the step that they stand in."""
        self.ends = np.zeros(bins, dtype=np.int64)
        """Rows by the step that their last token stands in; rows beyond the limit are in none."""
        self.first_replies = np.zeros(bins, dtype=np.int64)
        """Rows by the step of their first reply token."""

    def add(self, row: TokenRow) -> None:
        """Count a row that was cut at ``limit``."""
        assert row.kept is not None
        self.rows += 1
        self.reply_tokens += int(row.kept[1, -1])
        where: npt.NDArray[np.int64] = np.flatnonzero(row.loss_mask) // STEP
        np.add.at(self.replies, where, 1)
        if len(where):
            self.first_replies[where[0]] += 1
        if not row.truncated:
            self.ends[(max(1, len(row.token_ids)) - 1) // STEP] += 1

    def choice(self, all_rows: int) -> LengthChoice:
        """The length for what has been counted."""
        kept = np.cumsum(self.replies)
        enough = np.flatnonzero(kept / max(1, self.reply_tokens) >= ENOUGH)
        at = int(enough[0]) if len(enough) else len(kept) - 1
        if not self.reply_tokens:
            at = min(UNSEEN_ROWS // STEP, len(kept)) - 1
        return LengthChoice(
            max_length=min(STEP * (at + 1), self.limit),
            limit=self.limit,
            rows=self.rows,
            whole=int(self.ends[: at + 1].sum()),
            without_reply=int(self.first_replies[at + 1 :].sum()),
            reply_tokens=self.reply_tokens,
            kept_reply_tokens=int(kept[at]),
            all_rows=all_rows,
        )


def _measured(config: EncoderConfig, path: Path, stride: int) -> Iterator[TokenRow]:
    """Each row of this number, tokenized."""
    encoder = config.encoder()
    before = 0
    for block in blocks_of(path):
        picked: list[Item] = block[-before % stride :: stride]
        before += len(block)
        yield from encode_items(encoder, picked, str(path), preformatted=config.is_preformatted).rows
