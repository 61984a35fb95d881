"""Which exchanges of a log become rows: no prompt twice, no client too often, no secret, no more than were asked for.

What is held in memory is a few numbers a row; the rows themselves wait in a file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from eagle3cli.data.conversations.conversation import Conversation
from eagle3cli.data.ledger import Ledger
from eagle3cli.data.traffic.exchange import Exchange, Origin
from eagle3cli.data.traffic.logs import LogEntry
from eagle3cli.data.traffic.private import secret_in, without_addresses
from eagle3cli.runtime.files import writing

ORIGIN = "origin"
"""The key of a row that says who wrote its reply, as the log has it."""
REPEATED = "the same prompt again"
ALIKE = "the same prompt but for case, digits and punctuation, again and again"
MOST_ALIKE = 8
"""Prompts of the same words that are used: calculators are asked for other numbers, floods for nothing else."""
SEEN = "used by an earlier refresh"
OVER_SHARE = "one client's rows beyond its share"
NOT_DRAWN = "more than --sample-size"
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class _Row:
    """Where a row waits, and what decides whether it is used."""

    draw: bytes
    """Its prompt's hash: the order in which rows are drawn, the same every time."""
    offset: int
    client: str


@dataclass
class Traffic:
    """The rows of some logs, and who wrote their replies by the logs' word."""

    origins: Counter[Origin] = field(default_factory=Counter)
    clients: int = 0
    """Clients that the logs tell apart."""
    prompts: list[str] = field(default_factory=list)
    """Hashes of all prompts that were read, used or not: a later refresh leaves them out."""
    rows: int = 0


def select(
    entries: Iterable[LogEntry],
    output: Path,
    ledger: Ledger,
    *,
    seen: Collection[str],
    names: frozenset[str],
    sample_size: int,
    client_share: float,
) -> Traffic:
    """Write the rows that are used to ``output`` (jsonl) and tell the ledger of all others.

    ``seen`` are prompts of earlier refreshes, ``names`` the target's; of several clients none fills more than
    ``client_share`` of the rows. Which rows are drawn depends on their prompts alone.
    """
    traffic = Traffic()
    rows: list[_Row] = []
    own = set(seen)
    alike: Counter[bytes] = Counter()
    spool_path = output.with_suffix(".spool")
    with spool_path.open("w+b") as spool:
        for entry in entries:
            ledger.read += 1
            readable = _readable(entry, ledger, names)
            if readable is None:
                continue
            exchange, origin = readable
            key = prompt_key(exchange.conversation)
            if key in own:
                ledger.drop("duplicate", entry.place, key, SEEN if key in seen else REPEATED)
                continue
            own.add(key)
            traffic.prompts.append(key)
            words = _words_key(exchange.conversation)
            alike[words] += 1
            if alike[words] > MOST_ALIKE:
                ledger.drop("duplicate", entry.place, key, ALIKE)
                continue
            named = replace(exchange.conversation, id=key)
            offset = spool.tell()
            rows.append(_Row(bytes.fromhex(key), offset, exchange.client))
            spool.write(json.dumps({**named.to_row(), ORIGIN: origin}, ensure_ascii=False).encode() + b"\n")
        traffic.clients = len({row.client for row in rows if row.client})
        chosen = _chosen(rows, ledger, sample_size, client_share)
        with writing(output, "wb") as file:
            for row in sorted(chosen, key=lambda row: row.draw):
                spool.seek(row.offset)
                line = spool.readline()
                traffic.origins[json.loads(line)[ORIGIN]] += 1
                file.write(line)
    spool_path.unlink()
    traffic.rows = ledger.written = len(chosen)
    return traffic


def prompt_key(conversation: Conversation) -> str:
    """32 hex digits that are equal for equal prompts: all messages before the reply, and the tools."""
    return replace(conversation, messages=conversation.messages[:-1]).digest().hex()


def _words_key(conversation: Conversation) -> bytes:
    """Equal for prompts of the same words, whatever stands between them."""
    words = [_WORD.findall(str(message["content"]).lower()) for message in conversation.messages[:-1]]
    return hashlib.blake2b(repr(words).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _readable(entry: LogEntry, ledger: Ledger, names: frozenset[str]) -> tuple[Exchange, Origin] | None:
    """The exchange without addresses and who wrote it; None, told to the ledger, where it is none or holds a secret."""
    exchange = entry.exchange
    if exchange is None:
        ledger.drop("rejected" if entry.damaged else "filtered", entry.place, "", entry.problem)
        return None
    secret = secret_in(exchange.conversation)
    if secret is not None:
        ledger.drop("filtered", entry.place, "", f"holds {secret}")
        return None
    conversation, addresses = without_addresses(exchange.conversation)
    repairs = (*entry.repairs, *conversation.repairs, *(("e-mail addresses replaced",) if addresses else ()))
    ledger.repair(repairs, entry.place)
    exchange = replace(exchange, conversation=conversation, edited=exchange.edited or bool(addresses))
    return exchange, exchange.origin(names)


def _chosen(rows: list[_Row], ledger: Ledger, sample_size: int, client_share: float) -> list[_Row]:
    """The rows that are used: of each client the first ones by their draw, up to the largest equal limit that fits."""
    by_client: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        by_client[row.client].append(row)
    unnamed = by_client.pop("", [])
    for client_rows in by_client.values():
        client_rows.sort(key=lambda row: row.draw)
    limit = client_limit([len(client_rows) for client_rows in by_client.values()], len(unnamed), client_share)
    fair = [row for client_rows in by_client.values() for row in client_rows[:limit]] + unnamed
    fair.sort(key=lambda row: row.draw)
    chosen = fair[:sample_size]
    ledger.left_out += Counter({OVER_SHARE: len(rows) - len(fair), NOT_DRAWN: len(fair) - len(chosen)})
    return chosen


def client_limit(counts: list[int], unnamed: int, share: float) -> int:
    """Rows of one client, at most, so that none has more than ``share`` of all rows; no limit for a lone client.

    >>> client_limit([1000, 30, 20], 0, 0.5)
    50
    """
    largest = max(counts, default=0)
    if len(counts) + bool(unnamed) < 2:
        return largest
    low, high = 1, largest
    while low < high:
        limit = (low + high + 1) // 2
        if limit <= share * (unnamed + sum(min(count, limit) for count in counts)):
            low = limit
        else:
            high = limit - 1
    return low
