"""How near a tie was where two greedy answers part: the server is asked for its probabilities at that place.

Pure functions between JSON bodies and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eagle3cli.serving.client.client import Info

LIKELIEST = 5
"""Tokens that a server is asked for; one that is not among them was no tie."""


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Where two answers part; the shorter one's end counts. None where they are equal."""
    if list(one) == list(other):
        return None
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def margin_body(prompt: Sequence[int], info: Info) -> tuple[str, dict[str, Any]]:
    """Where to ask, and what."""
    if info.kind == "sglang":
        params = {"max_new_tokens": 1, "temperature": 0, "ignore_eos": True}
        more = {"return_logprob": True, "top_logprobs_num": LIKELIEST}
        return "/generate", {"input_ids": list(prompt), "sampling_params": params, **more}
    body: dict[str, Any] = {"model": info.model, "prompt": list(prompt), "max_tokens": 1, "temperature": 0}
    body |= {"logprobs": LIKELIEST}
    if info.kind == "vllm":
        body |= {"return_tokens_as_token_ids": True, "ignore_eos": True}
    return "/v1/completions", body


def read_margin(path: str, body: Any, one: int, other: int) -> float | None:
    """The gap of the two tokens' log-probabilities; infinite for one that is not likely, None where it is not told."""
    try:
        if path == "/generate":
            told = {int(entry[1]): float(entry[0]) for entry in body["meta_info"]["output_top_logprobs"][0]}
        else:
            listed = body["choices"][0]["logprobs"]["top_logprobs"][0]
            told = {int(name.partition("token_id:")[2]): float(value) for name, value in listed.items()}
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return abs(told[one] - told[other]) if one in told and other in told else float("inf")
