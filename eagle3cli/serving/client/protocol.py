"""What servers are asked and what they answer, in the shapes of SGLang, vLLM, llama.cpp and other OpenAI servers.

Pure functions between JSON bodies and values; nothing here opens a connection.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal

from eagle3cli.data.conversations.messages import PARTS, Message, tool_calls
from eagle3cli.errors import DataError
from eagle3cli.models.sampling import Sampling
from eagle3cli.serving.client.errors import Busy, Lost, Refused, RequestFailed, TooLong

ServerKind = Literal["sglang", "vllm", "llama.cpp", "openai"]
"""Whose extensions of the OpenAI interface a server has; ``openai``: none are asked for."""

COMPLETION = "/completion"
"""llama.cpp's own page: it takes token ids and tells them."""
ROW_ERRORS = frozenset({400, 404, 405, 409, 410, 413, 414, 415, 422, 431})
"""Statuses that say that the request itself is wrong."""


@dataclass(frozen=True)
class Request:
    """One reply to ask for, after ``messages`` (the server's own chat template) or after ``input_ids`` as they are."""

    max_tokens: int
    messages: Sequence[Message] = ()
    input_ids: Sequence[int] = ()
    sampling: Sampling = Sampling()
    tools: Sequence[Message] = ()
    reasoning_effort: str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """Values that the server's chat template reads."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_end: bool = False
    """Go on behind the end token, always to ``max_tokens``."""
    special_tokens: bool = False
    """Show special tokens in the text."""


@dataclass(frozen=True)
class Acceptance:
    """What speculation did: drafts proposed and accepted over ``passes`` of the target.

    The token that every pass gives by itself is not counted as accepted. ``positions[k]`` is the number of passes that
    accepted the draft of depth k (from 0), empty where the server does not say.
    """

    passes: int
    accepted: int
    proposed: int
    positions: tuple[int, ...] = ()

    @property
    def length(self) -> float:
        """Tokens per pass of the target: 1 + accepted / passes."""
        return 1 + self.accepted / self.passes if self.passes else 1.0

    @property
    def rates(self) -> tuple[float, ...]:
        """Share of the passes that accepted the draft of each depth."""
        return tuple(count / self.passes for count in self.positions) if self.passes else ()

    def __add__(self, other: Acceptance) -> Acceptance:
        return self._with(other, 1)

    def __sub__(self, other: Acceptance) -> Acceptance:
        """What happened since ``other``, for counters over a server's life."""
        return self._with(other, -1)

    def _with(self, other: Acceptance, sign: int) -> Acceptance:
        pairs = zip_longest(self.positions, other.positions, fillvalue=0)
        return Acceptance(
            self.passes + sign * other.passes,
            self.accepted + sign * other.accepted,
            self.proposed + sign * other.proposed,
            tuple(a + sign * b for a, b in pairs),
        )


@dataclass(frozen=True)
class Answer:
    """A whole reply. ``finish`` is ``stop``, ``length`` or ``tool_calls``; ``tokens`` counts those of the reply.

    ``reasoning`` is what the server took off the text's start. ``token_ids`` and ``acceptance`` are None where the
    server does not tell. ``frames`` of a streamed answer: (seconds since the request, tokens so far).
    """

    text: str
    finish: str
    tokens: int
    prompt_tokens: int
    reasoning: str | None = None
    tool_calls: tuple[Message, ...] = ()
    token_ids: tuple[int, ...] | None = None
    acceptance: Acceptance | None = None
    frames: tuple[tuple[float, int], ...] = ()
    seconds: float = 0.0


def path_and_body(
    request: Request, kind: ServerKind, model: str, *, stream: bool = False
) -> tuple[str, dict[str, Any]]:
    """Where to POST a request, and what."""
    if request.messages:
        return "/v1/chat/completions", _chat_body(request, kind, model, stream)
    if kind == "sglang":
        return "/generate", _generate_body(request, stream)
    if kind == "llama.cpp":
        return COMPLETION, _completion_body(request)
    body = {"model": model, "prompt": list(request.input_ids), **_openai_sampling(request, kind), **_streamed(stream)}
    return "/v1/completions", body


def _chat_body(request: Request, kind: ServerKind, model: str, stream: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "messages": [_openai_message(message, number) for number, message in enumerate(request.messages)],
        **_openai_sampling(request, kind),
        **_streamed(stream),
    }
    if request.tools:
        body["tools"] = list(request.tools)
    if request.reasoning_effort is not None:
        body["reasoning_effort"] = request.reasoning_effort
    if request.template_options:
        body["chat_template_kwargs"] = dict(request.template_options)
    if kind == "sglang" and not stream:  # in a stream it refuses them
        body["return_meta_info"] = body["return_token_ids"] = True
    return body


def _openai_sampling(request: Request, kind: ServerKind) -> dict[str, Any]:
    sampling = request.sampling
    body: dict[str, Any] = {"max_tokens": request.max_tokens, "temperature": sampling.temperature}
    if sampling.temperature:
        body |= {"top_p": sampling.top_p, "seed": sampling.seed}
    if kind == "openai":
        return body
    if kind == "llama.cpp":
        more = {"ignore_eos": True} if request.ignore_end else {}
        return body | _llamacpp_sampling(sampling) | more
    # Without these the servers would take what the model's generation_config says.
    body |= {"top_k": sampling.top_k or -1, "repetition_penalty": 1.0}
    if request.stop_token_ids:
        body["stop_token_ids"] = list(request.stop_token_ids)
    if request.ignore_end:
        body["ignore_eos"] = True
    if request.special_tokens:
        body["skip_special_tokens"] = False
    if kind == "vllm":
        body["return_token_ids"] = True
    return body


def _streamed(stream: bool) -> dict[str, Any]:
    options = {"include_usage": True, "continuous_usage_stats": True}
    return {"stream": True, "stream_options": options} if stream else {}


def _generate_body(request: Request, stream: bool) -> dict[str, Any]:
    sampling = request.sampling
    params: dict[str, Any] = {
        "max_new_tokens": request.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "repetition_penalty": 1.0,
        "skip_special_tokens": not request.special_tokens,
    }
    if sampling.temperature:
        params["sampling_seed"] = sampling.seed
    if request.stop_token_ids:
        params["stop_token_ids"] = list(request.stop_token_ids)
    if request.ignore_end:
        params["ignore_eos"] = True
    return {"input_ids": list(request.input_ids), "sampling_params": params, **({"stream": True} if stream else {})}


def _completion_body(request: Request) -> dict[str, Any]:
    """Never a stream: its frames leave out tokens that end within a character; the whole answer has its own times."""
    body = {
        "prompt": list(request.input_ids),
        "n_predict": request.max_tokens,
        **_llamacpp_sampling(request.sampling),
        "return_tokens": True,
        "cache_prompt": False,  # the same prompt takes the same time, and gives the same logits, whatever was before it
    }
    return body | ({"ignore_eos": True} if request.ignore_end else {})


def _llamacpp_sampling(sampling: Sampling) -> dict[str, Any]:
    """All that llama.cpp would else take from its own defaults, which are not neutral."""
    body: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    body |= {"min_p": 0.0, "repeat_penalty": 1.0}
    return body | ({"seed": sampling.seed & 0xFFFFFFFF} if sampling.temperature else {})


def _openai_message(message: Message, number: int) -> Message:
    """A message as the OpenAI interface wants it: arguments of tool calls are text, and every call has an id; a content
    of several parts is a list of them."""
    if PARTS in message:
        parts = list(map(_openai_part, message[PARTS]))
        message = {key: value for key, value in message.items() if key != PARTS} | {"content": parts}
    if not message.get("tool_calls"):
        return message
    calls = []
    for position, call in enumerate(message["tool_calls"]):
        function = call["function"]
        arguments = function["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append({"id": f"call_{number}_{position}", **call, "function": {**function, "arguments": text}})
    return {**message, "tool_calls": calls}


def _openai_part(part: Any) -> dict[str, Any]:
    """A part of a content: a text, or an image by its URL."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image_url", "image_url": {"url": part["image"]}}


def read_answer(path: str, body: Any) -> Answer:
    """The answer in a body that came with status 200; raises Lost where it is none, or an aborted one."""
    try:
        reader = {"/generate": _read_generate, COMPLETION: _read_completion}.get(path, _read_choice)
        answer = reader(body)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, DataError) as error:
        raise Lost("malformed", f"an answer in no known shape ({type(error).__name__}: {error})") from error
    return checked(answer)


def checked(answer: Answer) -> Answer:
    """The answer, unless the server broke it off: that has status 200, too. Raises Lost."""
    if answer.finish not in ("stop", "length", "tool_calls"):
        raise Lost("aborted", f"the server broke off after {answer.tokens} tokens ({answer.finish})")
    return answer


def _read_choice(body: Mapping[str, Any]) -> Answer:
    """A chat completion or a completion, from SGLang, vLLM or others."""
    choice = body["choices"][0]
    usage = body.get("usage") or {}
    message = choice.get("message") or {"content": choice.get("text")}
    ids = choice.get("response_token_ids", choice.get("token_ids"))
    text = message.get("content")
    if text is not None and not isinstance(text, str):
        raise ValueError("content is not text")
    return Answer(
        text or "",
        finish_of(choice["finish_reason"]),
        int(usage.get("completion_tokens") or len(ids or ())),
        int(usage.get("prompt_tokens") or 0),
        message.get("reasoning_content") or message.get("reasoning") or None,
        tuple(tool_calls(message, "reply")),
        None if ids is None else tuple(ids),
        acceptance_of(choice.get("meta_info") or {}) or acceptance_in_answer(body),
    )


def _read_generate(body: Mapping[str, Any]) -> Answer:
    meta = body["meta_info"]
    ids = body.get("output_ids")
    return Answer(
        body["text"],
        finish_of(meta["finish_reason"]),
        int(meta["completion_tokens"]),
        int(meta["prompt_tokens"]),
        token_ids=None if ids is None else tuple(ids),
        acceptance=acceptance_of(meta),
    )


def _read_completion(body: Mapping[str, Any]) -> Answer:
    """An answer of llama.cpp's ``/completion``: two frames, the first token and the last, by its own clock."""
    timings = body["timings"]
    tokens = tuple(int(token) for token in body["tokens"])
    first = float(timings["prompt_ms"]) / 1000
    last = first + float(timings["predicted_ms"]) / 1000
    speculates = "draft" in str((body.get("generation_settings") or {}).get("speculative.types"))
    return Answer(
        body["content"],
        "length" if body["stop_type"] == "limit" else "stop",
        len(tokens),
        int(body["tokens_evaluated"]),
        token_ids=tokens,
        acceptance=acceptance_of_timings(timings) if speculates else None,
        frames=((first, 1), (last, len(tokens))) if len(tokens) > 1 else ((first, len(tokens)),),
    )


def acceptance_of_timings(timings: Mapping[str, Any], steps: int | None = None) -> Acceptance:
    """The counters of speculation in llama.cpp's ``timings``, which do not tell the passes.

    Every pass gives a token beside those that it accepts, and the prompt's the first. What was accepted behind an end
    token is counted there and given to nobody, so that there were more passes than the tokens say; of ``steps`` draft
    tokens each there were as many as it takes to propose ``draft_n``.
    """
    proposed, accepted = (int(timings.get(name) or 0) for name in ("draft_n", "draft_n_accepted"))
    passes = max(0, int(timings["predicted_n"]) - 1 - accepted)
    return Acceptance(max(passes, -(-proposed // steps)) if steps else passes, accepted, proposed)


def finish_of(reason: Any) -> str:
    """The finish reason as a word; SGLang's ``/generate`` gives an object."""
    return str(reason["type"] if isinstance(reason, Mapping) else reason)


def acceptance_of(meta: Mapping[str, Any]) -> Acceptance | None:
    """The counters of speculation in SGLang's ``meta_info``; None without speculation."""
    if "spec_verify_ct" not in meta:
        return None
    names = ("spec_verify_ct", "spec_num_correct_drafts", "spec_num_proposed_drafts")
    passes, accepted, proposed = (int(meta.get(name) or 0) for name in names)
    return Acceptance(passes, accepted, proposed, _by_position(meta.get("spec_correct_drafts_histogram") or ()))


def acceptance_in_answer(body: Mapping[str, Any]) -> Acceptance | None:
    """The counters in an answer of vLLM started with ``--per-request-spec-decode-metrics``; None without them."""
    counters = (body.get("metrics") or {}).get("speculative_decoding")
    if not counters:
        return None
    names = ("num_spec_steps", "num_accepted_draft_tokens", "num_draft_tokens")
    passes, accepted, proposed = (int(counters[name]) for name in names)
    return Acceptance(passes, accepted, proposed, _by_position(counters["acceptance_histogram"]))


def _by_position(histogram: Sequence[int]) -> tuple[int, ...]:
    """Passes that accepted the draft of each depth, from those that accepted exactly so many drafts."""
    return tuple(sum(histogram[k:]) for k in range(1, len(histogram)))


def read_failure(status: int, body: bytes, retry_after: str | None = None) -> RequestFailed:
    """What a status other than 200 means."""
    message = error_message(body)
    if status in (429, 503):
        return Busy(str(status), message, _seconds(retry_after))
    if status not in ROW_ERRORS:
        refused = status in (401, 403)
        return Refused(str(status), message) if refused else Lost(str(status), message)
    return _too_long(message) or Refused(str(status), message)


def error_message(body: bytes) -> str:
    """What an error body says: flat (SGLang's chat), nested (vLLM, ``/generate``), ``detail``, or plain text."""
    text = body.decode("utf-8", "replace").strip()
    try:
        value = json.loads(text)
    except ValueError:
        title = re.search(r"<title>(.*?)</title>", text, re.IGNORECASE | re.DOTALL) if text.startswith("<") else None
        return " ".join(title[1].split()) if title else text[:300]
    while isinstance(value, Mapping):
        value = next((value[key] for key in ("message", "error", "detail") if value.get(key)), "")
    return value if isinstance(value, str) else json.dumps(value)[:300]


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None  # a date: the usual back-off serves


_LENGTHS = (
    r"nput length \((?P<prompt>\d+) tokens\) exceeds the maximum allowed length \((?P<context>\d+) tokens\)",
    r"input \((?P<prompt>\d+) tokens\) is longer than the model's context length \((?P<context>\d+) tokens\)",
    r"maximum context length of (?P<context>\d+) tokens\..*?(?P<prompt>\d+) tokens from the input",
    r"maximum context length is (?P<context>\d+) tokens.*?(?:contains at least|contains|resulted in|requested) "
    r"(?P<prompt>\d+) (?:input )?tokens",
    r"request \((?P<prompt>\d+) tokens\) exceeds the available context size \((?P<context>\d+) tokens\)",
)


def _too_long(message: str) -> TooLong | None:
    for pattern in _LENGTHS:
        if match := re.search(pattern, message, re.DOTALL):
            return TooLong(message, int(match["context"]), int(match["prompt"]))
    return TooLong(message) if re.search(r"context[ _]length|too long|maximum (?:allowed )?length", message) else None
