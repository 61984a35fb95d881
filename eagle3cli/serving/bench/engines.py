"""Which engine the benchmark runs on, and how it comes by one for every speculation: loaded, running or started."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from eagle3cli.errors import UsageError
from eagle3cli.models.export import find_draft
from eagle3cli.runtime.report import Reporter
from eagle3cli.serving.bench.configs import Config, DraftShape, require_chains
from eagle3cli.serving.bench.remote import ServerEngine, connect
from eagle3cli.serving.bench.session import Engine
from eagle3cli.serving.chat_tokenizer import ChatTokenizer, load_chat_tokenizer
from eagle3cli.serving.client.client import Info
from eagle3cli.serving.engine import resolve_engine
from eagle3cli.serving.launch.commands import CPU_REQUESTS, Product, Speculation, launches, product_of
from eagle3cli.serving.launch.server import started
from eagle3cli.settings.tables import Settings

if TYPE_CHECKING:
    from eagle3cli.serving.bench.local import LocalEngine

SERVERS = "servers"
"""What results call servers that are given."""
ROOM: dict[Product, str] = {"vllm": "--max-num-seqs", "sglang": "--max-running-requests"}
"""The argument for the requests that a server decodes together."""


class EngineProvider(Protocol):
    """Gives an engine for a speculation."""

    @property
    def name(self) -> str:
        """What the results call it."""

    @property
    def has_baseline(self) -> bool:
        """Whether it decodes without a draft, too."""

    def engine(self, shape: DraftShape, batch: int) -> AbstractContextManager[Engine]:
        """An engine within the block, for at most ``batch`` replies at once."""


def open_provider(settings: Settings, configs: Sequence[Config], report: Reporter) -> EngineProvider:
    """The engines that the settings mean. Raises UsageError for configurations that they cannot run."""
    kind = resolve_engine(settings.bench.engine, settings.server)
    drafts = [config for config in configs if not config.is_baseline]
    if kind == "running":
        running = RunningProvider(settings)
        for shape in dict.fromkeys(config.shape for config in drafts):
            running.find(shape)
        if not running.has_baseline:
            report.warn("no server without a draft is among them: no baseline, so no speed-up and no comparison")
        return running
    if not settings.target.model_path:
        raise UsageError("no target model", where="--model-path", fix="give a folder or a hub id")
    draft = _draft_folder(settings) if drafts else None
    if kind == "local":
        require_chains(drafts, "the local engine", ", and --engine sglang with --server-python PYTHON serves trees")
        return LocalProvider(settings, draft, report)
    provider = StartedProvider(settings, draft, report)
    if provider.name == "vllm":
        require_chains(drafts, "vLLM")
    return provider


def _draft_folder(settings: Settings) -> Path:
    if settings.draft.path is None:
        fix = "run eagle3 export first, give a draft folder, or only baselines (--config-list 1,0,0,0)"
        raise UsageError("no draft", where="--speculative-draft-model-path", fix=fix)
    return find_draft(Path(settings.draft.path))


@dataclass
class LocalProvider:
    """This process, loaded once."""

    settings: Settings
    draft: Path | None
    report: Reporter
    name: str = "local"
    has_baseline: bool = True

    def engine(self, shape: DraftShape, batch: int) -> AbstractContextManager[Engine]:
        """The same engine every time: one draft serves every chain."""
        return nullcontext(self._engine)

    @cached_property
    def _engine(self) -> LocalEngine:
        from eagle3cli.serving.bench.local import load_local_engine

        return load_local_engine(self.settings, self.draft, self.report)


@dataclass
class StartedProvider:
    """A server of our own for every speculation, stopped after it."""

    settings: Settings
    draft: Path | None
    report: Reporter
    has_baseline: bool = True

    @property
    def name(self) -> Product:
        """What is started."""
        return product_of(self.settings.bench.engine)

    @contextmanager
    def engine(self, shape: DraftShape, batch: int) -> Iterator[Engine]:
        """Start a server, and stop it at the end."""
        settings = self.settings
        server = settings.server.model_copy(update={"args": self._arguments(batch), "replicas": 1})
        with started(
            server,
            settings.target,
            self.report,
            logs=settings.bench.output.parent / "logs",
            product=self.name,
            speculation=Speculation(str(self.draft), *shape) if shape[0] and self.draft is not None else None,
        ) as servers:
            seconds = float(settings.server.request_timeout)
            yield connect(servers.addresses[0], lambda _: load_chat_tokenizer(settings), seconds)

    def _arguments(self, batch: int) -> str:
        """What the user adds, behind what makes room for the batch and takes cached prompts out of the times."""
        room = f"{ROOM[self.name]} {max(batch, CPU_REQUESTS)}"
        no_cache = " --no-enable-prefix-caching" if self.name == "vllm" else ""
        return f"{room}{no_cache} {self.settings.server.args}".strip()


def serve_command(settings: Settings, config: Config) -> str:
    """The command that serves a configuration, to copy."""
    product = product_of(settings.bench.engine)
    args = settings.server.args
    if config.batch > CPU_REQUESTS:
        args = f"{ROOM[product]} {config.batch} {args}"
    server = settings.server.model_copy(update={"args": args, "python": settings.server.python or "python3"})
    draft = Speculation(str(_draft_folder(settings)), *config.shape) if config.steps else None
    launch = launches(product, server, settings.target, [settings.server.port or 30000], draft)[0]
    return shlex.join([*(f"{name}={value}" for name, value in launch.environment.items()), *launch.argv])


@dataclass
class RunningProvider:
    """Servers that run already: each serves the configurations of its own speculation."""

    settings: Settings
    name: str = SERVERS

    def engine(self, shape: DraftShape, batch: int) -> AbstractContextManager[Engine]:
        """The server with this speculation."""
        return nullcontext(self.find(shape))

    def find(self, shape: DraftShape) -> ServerEngine:
        """The server with this speculation. Raises UsageError where none has it, Eagle3Error where one is down."""
        for server in self._servers:
            if (server.info.speculative or (0, 0, 0)) == shape:
                return server
        shapes = ", ".join(f"{s.address} {_text(s.info.speculative or (0, 0, 0))}" for s in self._servers)
        fix = "start one with it and give its address, too, or leave out --server-address-port"
        raise UsageError(f"no server speculates with steps,topk,tokens {_text(shape)} (there are: {shapes})", fix=fix)

    @property
    def has_baseline(self) -> bool:
        """Whether one of the servers has no draft."""
        return any(server.info.speculative is None for server in self._servers)

    @cached_property
    def _servers(self) -> list[ServerEngine]:
        """All servers, asked once who they are."""
        settings = self.settings
        seconds = float(settings.server.request_timeout)

        def tokenizer_of(info: Info) -> ChatTokenizer:
            return load_chat_tokenizer(settings, settings.target.model_path or info.path or info.model)

        return [connect(address, tokenizer_of, seconds) for address in settings.server.address_port]


def _text(shape: DraftShape) -> str:
    return ",".join(map(str, shape))
