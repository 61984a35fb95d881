"""How near a tie was where two greedy replies part: the server is asked for its log-probabilities at that place.

Pure functions between JSON bodies and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eagle3cli.serving.client.client import Info
from eagle3cli.serving.client.protocol import COMPLETION

TOP_LOGPROBS = 5
"""Tokens that a server is asked for; one that is not among them was no tie."""


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Where two replies part; the shorter one's end counts. None where they are equal."""
    if list(one) == list(other):
        return None
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def logprobs_request(prompt: Sequence[int], info: Info) -> tuple[str, dict[str, Any]]:
    """Path and body of the request for the token after ``prompt``."""
    if info.kind == "sglang":
        params = {"max_new_tokens": 1, "temperature": 0, "ignore_eos": True}
        more = {"return_logprob": True, "top_logprobs_num": TOP_LOGPROBS}
        return "/generate", {"input_ids": list(prompt), "sampling_params": params, **more}
    if info.kind == "llama.cpp":
        more = {"n_probs": TOP_LOGPROBS, "cache_prompt": False}
        return COMPLETION, {"prompt": list(prompt), "n_predict": 1, "temperature": 0, **more}
    body: dict[str, Any] = {"model": info.model, "prompt": list(prompt), "max_tokens": 1, "temperature": 0}
    body |= {"logprobs": TOP_LOGPROBS}
    if info.kind == "vllm":
        body |= {"return_tokens_as_token_ids": True, "ignore_eos": True}
    return "/v1/completions", body


def read_logprobs(path: str, body: Any) -> dict[int, float] | None:
    """The likeliest tokens with their log-probabilities; None where they are not told."""
    try:
        if path == "/generate":
            return {int(entry[1]): float(entry[0]) for entry in body["meta_info"]["output_top_logprobs"][0]}
        if path == COMPLETION:
            likely = body["completion_probabilities"][0]["top_logprobs"]
            return {int(entry["id"]): float(entry["logprob"]) for entry in likely}
        by_name = body["choices"][0]["logprobs"]["top_logprobs"][0]
        return {int(name.partition("token_id:")[2]): float(value) for name, value in by_name.items()}
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def logit_margin_of(logprobs: dict[int, float] | None, one: int, other: int) -> float | None:
    """The gap of the two tokens' log-probabilities; infinite for one that is not likely, None where it is not told."""
    if logprobs is None:
        return None
    return abs(logprobs[one] - logprobs[other]) if one in logprobs and other in logprobs else float("inf")
