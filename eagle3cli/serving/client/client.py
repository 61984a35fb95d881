"""One server over HTTP: SGLang, vLLM, llama.cpp, or any other that speaks the OpenAI interface.

Every connection is a transport of its own: httpx's shared pool looks at all its connections for every request, which
costs 20 times the request itself when 512 are open (measured). Knows nothing of other servers, of
retries or of how much may be asked at once.
"""

from __future__ import annotations

import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from eagle3cli.errors import UsageError
from eagle3cli.serving.client.errors import Lost, Refused, RequestFailed, Unreachable
from eagle3cli.serving.client.metrics import acceptance_in_metrics, is_vllm_on_cpu, read_metrics
from eagle3cli.serving.client.models_page import KEY, PAGE, first_model, no_model_server, why_no_model_server
from eagle3cli.serving.client.protocol import (
    COMPLETION,
    Acceptance,
    Answer,
    Request,
    ServerKind,
    acceptance_of_timings,
    error_message,
    path_and_body,
    read_answer,
    read_failure,
)
from eagle3cli.serving.client.stream import StreamedAnswer

CONNECT_SECONDS = 10.0
WRITE_SECONDS = 60.0
KINDS: Mapping[str, ServerKind] = {"sglang": "sglang", "vllm": "vllm", "llamacpp": "llama.cpp"}
"""Servers by what they call the owner of their model."""
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""llama.cpp's names of types that have another one here."""
INFO_SECONDS = 10.0
"""For the small questions about the server itself."""


@dataclass(frozen=True)
class Info:
    """What a server says of itself. ``context`` is in tokens, None where it does not tell."""

    kind: ServerKind
    model: str
    path: str = ""
    """Where the server loaded the model from."""
    context: int | None = None
    version: str = ""
    architecture: str = ""
    speculative: tuple[int, int, int] | None = None
    """Steps, top-k and draft tokens of its speculation, where it speculates."""
    dtype: str = ""
    """The weights' type as it was started with; empty where it does not tell."""
    on_cpu: bool = False
    """Whether it says that it computes on a CPU."""


@dataclass(frozen=True)
class ServerLoad:
    """Requests inside a server."""

    running: int
    waiting: int


class Client:
    """A server at ``host:port`` or a URL; use it as ``async with``.

    Example::

        async with Client("127.0.0.1:30000") as server:
            info = await server.identify()
            answer = await server.ask(Request(64, messages=[{"role": "user", "content": "Hello."}]))
            print(answer.text, answer.finish, answer.acceptance)

    ``seconds`` is how long one reply may take.
    """

    def __init__(self, address: str, *, seconds: float = 1800.0) -> None:
        self.address = address
        self.info: Info | None = None
        url = httpx.URL(base_url(address))
        self._url = str(url).rstrip("/")
        self._seconds = seconds
        self._verify = ssl.create_default_context() if url.scheme == "https" else False
        self._headers = [(b"host", url.netloc), (b"content-type", b"application/json"), (b"accept", b"*/*")]
        if key := os.environ.get(KEY):
            self._headers.append((b"authorization", f"Bearer {key}".encode()))
        self._idle: list[httpx.AsyncHTTPTransport] = []
        self._urls: dict[str, httpx.URL] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the idle connections."""
        while self._idle:
            with suppress(httpx.HTTPError, OSError):
                await self._idle.pop().aclose()

    async def ask(self, request: Request, *, stream: bool = False) -> Answer:
        """One reply; ``stream`` adds the time of every token. Raises a RequestFailed, see its children."""
        info = self.info or await self.identify()
        path, body = path_and_body(request, info.kind, info.model, stream=stream)
        start = time.monotonic()
        if stream and path != COMPLETION:
            return await self._stream(path, body, start)
        raw = _json(await self._fetch("POST", path, body, self._seconds))
        answer = replace(read_answer(path, raw), seconds=time.monotonic() - start)
        if path == COMPLETION and answer.acceptance is not None and info.speculative is not None:
            return replace(answer, acceptance=acceptance_of_timings(raw["timings"], info.speculative[0]))
        return answer

    async def identify(self) -> Info:
        """What the server is; asked once. Raises Unreachable or Lost while it does not answer, Refused without access,
        Eagle3Error where it is no server of language models."""
        first = await self._first_model()
        owner = str(first.get("owned_by"))
        kind = KINDS.get(owner, "openai")
        if kind == "llama.cpp":
            self.info = await self._identify_llamacpp(first)
            return self.info
        context = first.get("max_model_len")
        server = await self._page("/get_server_info") if kind == "sglang" else {}
        model = await self._page("/get_model_info") if kind == "sglang" else {}
        version = server.get("version") or (await self._page("/version")).get("version") if kind != "openai" else ""
        self.info = Info(
            kind,
            str(first["id"]),
            # SGLang repeats the served name as the root.
            str(model.get("model_path") or first.get("root") or ""),
            context if isinstance(context, int) else None,
            str(version or ""),
            str((model.get("architectures") or [""])[0]),
            _speculation(server),
            str(server.get("dtype") or ""),
            server.get("device") == "cpu" or (kind == "vllm" and is_vllm_on_cpu(await self._metrics_or_nothing())),
        )
        return self.info

    async def _identify_llamacpp(self, first: Mapping[str, Any]) -> Info:
        """Its speculation is not told: see :func:`eagle3cli.serving.bench.remote.connect`."""
        properties = await self._page("/props")
        meta = first.get("meta") or {}
        context = meta.get("n_ctx") or meta.get("n_ctx_train")
        kind = str(properties.get("model_ftype") or meta.get("ftype") or "")
        return Info(
            "llama.cpp",
            str(first["id"]),
            str(properties.get("model_path") or ""),
            context if isinstance(context, int) else None,
            str(properties.get("build_info") or ""),
            dtype=DTYPES.get(kind.removeprefix("all "), kind),
        )

    async def _first_model(self) -> Mapping[str, Any]:
        """What ``/v1/models`` says of its first model; raises Eagle3Error where a server of another kind answers."""
        try:
            status, headers, raw = await self._send("GET", PAGE, None, INFO_SECONDS)
        except Lost as lost:
            if lost.kind != "malformed":
                raise
            raise no_model_server(self.address, lost.detail) from lost
        why = why_no_model_server(status, raw)
        if why:
            raise no_model_server(self.address, why)
        if status != 200:
            raise read_failure(status, raw, headers.get("retry-after"))
        return first_model(_json(raw)) or {}

    async def _metrics_or_nothing(self) -> str:
        try:
            return await self.metrics()
        except RequestFailed:
            return ""

    async def tokenize(self, text: str) -> list[int] | None:
        """The server's own tokens of a text, without special ones around it; None where it does not tell."""
        assert self.info is not None, "identify it first"
        body = {"model": self.info.model, "prompt": text, "add_special_tokens": False}
        try:
            if self.info.kind == "llama.cpp":
                body = {"content": text, "add_special": False}
            elif not {"/tokenize", "/v1/tokenize"} & (await self._page("/openapi.json")).get("paths", {}).keys():
                return None
            return [int(token) for token in (await self.call("/tokenize", body))["tokens"]]
        except (RequestFailed, KeyError, TypeError, ValueError, AttributeError):
            return None

    async def _page(self, path: str) -> Any:
        """The object at a path of SGLang's or vLLM's, empty where this version has no such page."""
        try:
            page = await self.get(path)
        except Refused:
            return {}
        return page if isinstance(page, Mapping) else {}

    async def is_healthy(self, seconds: float = INFO_SECONDS) -> bool:
        """Whether the server works. SGLang generates a token for the answer, so it may take a second or more."""
        try:
            status, _, _ = await self._send("GET", "/health", None, seconds)
        except RequestFailed:
            return False
        return status == 200 or status in (404, 405)  # not every server has the page

    async def load(self) -> ServerLoad | None:
        """How many requests run and wait inside the server; None where it does not say."""
        try:
            if self.info is not None and self.info.kind == "sglang":
                loads = (await self.get("/v1/loads?include=core"))["loads"]
                waiting = sum(int(load["num_waiting_reqs"]) for load in loads)
                return ServerLoad(sum(int(load["num_running_reqs"]) for load in loads), waiting)
            if self.info is not None and self.info.kind == "vllm":
                metrics = read_metrics(await self.metrics())
                return ServerLoad(int(metrics["vllm:num_requests_running"]), int(metrics["vllm:num_requests_waiting"]))
        except (RequestFailed, KeyError, TypeError, ValueError):
            pass
        return None

    async def acceptance(self) -> Acceptance | None:
        """vLLM's counters of speculation since its start (take the difference of two); None elsewhere.

        SGLang tells them with every answer that is not streamed from chat, see :attr:`Answer.acceptance`.
        """
        try:
            return acceptance_in_metrics(await self.metrics())
        except RequestFailed:
            return None

    async def metrics(self) -> str:
        """The text of ``/metrics``; raises a RequestFailed (Refused where there is none)."""
        return (await self._fetch("GET", "/metrics")).decode("utf-8", "replace")

    async def get(self, path: str) -> Any:
        """The JSON at ``path``; raises a RequestFailed."""
        return _json(await self._fetch("GET", path))

    async def post(self, path: str) -> None:
        """POST to ``path``, e.g. ``/flush_cache``; raises a RequestFailed."""
        await self._fetch("POST", path, {})

    async def call(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON that a POST to ``path`` brings; raises a RequestFailed."""
        return _json(await self._fetch("POST", path, body, self._seconds))

    async def _fetch(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, seconds: float = INFO_SECONDS
    ) -> bytes:
        """The body of a response with status 200; raises a RequestFailed for any other."""
        status, headers, raw = await self._send(method, path, body, seconds)
        if status != 200:
            raise read_failure(status, raw, headers.get("retry-after"))
        return raw

    async def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float
    ) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and body of a response."""
        async with self._connection(seconds) as connection:
            response = await connection.handle_async_request(self._request(method, path, body, seconds))
            raw = await response.aread()
            await response.aclose()
        return response.status_code, response.headers, raw

    async def _stream(self, path: str, body: Mapping[str, Any], start: float) -> Answer:
        streamed = StreamedAnswer(lambda: time.monotonic() - start)
        async with self._connection(self._seconds) as connection:
            response = await connection.handle_async_request(self._request("POST", path, body, self._seconds))
            if response.status_code != 200:
                raw = await response.aread()
                raise read_failure(response.status_code, raw, response.headers.get("retry-after"))
            async for chunk in response.aiter_raw():
                streamed.feed(chunk)
            answer = streamed.answer()
            await response.aclose()
        return answer

    @asynccontextmanager
    async def _connection(self, seconds: float) -> AsyncIterator[httpx.AsyncHTTPTransport]:
        """A connection for one request, an idle one where there is one; after an error it is not used again."""
        if self._idle:
            connection = self._idle.pop()
        else:
            limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=5.0)
            connection = httpx.AsyncHTTPTransport(verify=self._verify, limits=limits, trust_env=False)
        try:
            yield connection
        except BaseException as error:
            with suppress(httpx.HTTPError, OSError):
                await connection.aclose()
            if isinstance(error, httpx.HTTPError):
                raise _lost(error, seconds) from error
            raise
        self._idle.append(connection)

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float) -> httpx.Request:
        raw = b"" if body is None else json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        headers = [*self._headers, (b"content-length", str(len(raw)).encode())]
        timeout = {"connect": min(CONNECT_SECONDS, seconds), "read": seconds, "write": WRITE_SECONDS, "pool": None}
        url = self._urls.get(path) or self._urls.setdefault(path, httpx.URL(self._url + path))
        stream = httpx.ByteStream(raw)
        return httpx.Request(method, url, headers=headers, stream=stream, extensions={"timeout": timeout})


def base_url(address: str) -> str:
    """``host:port`` or a URL as a URL; raises UsageError where it is neither."""
    url = address if "://" in address else f"http://{address}"
    parts = urlsplit(url)
    try:
        is_url = parts.scheme in ("http", "https") and parts.hostname and ("://" in address or parts.port)
    except ValueError:
        is_url = False
    if not is_url:
        raise UsageError(
            "invalid-value",
            f"{address!r} is not HOST:PORT",
            where="--server-address-port",
            fix="e.g. 127.0.0.1:30000, or a URL",
        )
    return url


def _speculation(server: Mapping[str, Any]) -> tuple[int, int, int] | None:
    if not server.get("speculative_algorithm"):
        return None
    names = ("speculative_num_steps", "speculative_eagle_topk", "speculative_num_draft_tokens")
    steps, topk, tokens = (int(server.get(name) or 0) for name in names)
    return steps, topk, tokens


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError as error:
        raise Lost("malformed", f"not JSON: {error_message(raw[:80])!r}") from error


def _lost(error: httpx.HTTPError, seconds: float) -> Lost:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return Unreachable("no connection", str(error))
    if isinstance(error, httpx.TimeoutException):
        return Lost("time-out", f"no answer within {seconds:.0f} s")
    if isinstance(error, httpx.RemoteProtocolError) and "illegal" in str(error):  # no status line
        return Lost("malformed", f"not HTTP: {error}")
    return Lost("reset", f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
