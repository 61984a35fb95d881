"""How the next token is chosen."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy, ``top_k`` 0 keeps all tokens."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


def stream_seed(name: str) -> int:
    """The seed, of 31 bits, of the random stream that has this name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") >> 1
