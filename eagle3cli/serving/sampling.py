"""Random numbers of replies: each has a stream of its own, which has a name."""

from __future__ import annotations

import hashlib


def stream_seed(name: str) -> int:
    """The seed, of 31 bits, of the random stream that has this name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") >> 1
