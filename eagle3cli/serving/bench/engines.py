"""Which engine the benchmark runs on, and how it comes by one for every speculation: loaded, found or started."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from eagle3cli.errors import UsageError
from eagle3cli.models.export import find_draft
from eagle3cli.runtime.report import Reporter
from eagle3cli.serving.bench.configs import Config, require_chains
from eagle3cli.serving.bench.remote import RemoteSpeaker, meet
from eagle3cli.serving.bench.session import Speaker, load_voice
from eagle3cli.serving.engine import resolve_engine
from eagle3cli.serving.launch.commands import CPU_REQUESTS, Product, Speculation, launches
from eagle3cli.serving.launch.server import started
from eagle3cli.settings.tables import Settings

if TYPE_CHECKING:
    from eagle3cli.serving.bench.local import LocalSpeaker

Spoken = tuple[int, int, int]
"""Steps, top-k and draft tokens."""


SERVERS = "servers"
"""Name of an engine whose servers are given."""


class Engine(Protocol):
    """Gives a speaker for a speculation."""

    @property
    def name(self) -> str:
        """What the results call it."""

    @property
    def has_baseline(self) -> bool:
        """Whether it decodes without a draft, too."""

    def speaking(self, speculation: Spoken, batch: int) -> AbstractContextManager[Speaker]:
        """A speaker within the block, for at most ``batch`` answers at once."""


def open_engine(settings: Settings, configs: Sequence[Config], report: Reporter) -> Engine:
    """The engine that the settings mean. Raises UsageError for configurations that it cannot run."""
    kind = resolve_engine(settings.bench.engine, settings.server)
    drafts = [config for config in configs if not config.is_baseline]
    if kind == "running":
        running = Running(settings, report)
        for speculation in dict.fromkeys(config.speculation for config in drafts):
            running.serving(speculation)
        if not running.has_baseline:
            report.warn("no server without a draft is among them: no baseline, so no speed-up and no comparison")
        return running
    if not settings.target.model_path:
        raise UsageError("no target model", where="--model-path", fix="give a folder or a hub id")
    draft = _draft_folder(settings) if drafts else None
    if kind == "local":
        fix = ", and --engine sglang with --server-python PYTHON serves trees"
        require_chains(drafts, "the local engine", fix)
        return Local(settings, draft, report)
    if settings.bench.engine == "vllm":
        require_chains(drafts, "vLLM")
    return Started(settings, draft, report)


def _draft_folder(settings: Settings) -> Path:
    if settings.draft.path is None:
        fix = "give a draft folder, or only baselines (--config-list 1,0,0,0)"
        raise UsageError("no draft", where="--speculative-draft-model-path", fix=fix)
    return find_draft(Path(settings.draft.path))


@dataclass
class Local:
    """This process, loaded once."""

    settings: Settings
    draft: Path | None
    report: Reporter
    name: str = "local"
    has_baseline: bool = True
    _speaker: LocalSpeaker | None = field(default=None, init=False)

    @contextmanager
    def speaking(self, speculation: Spoken, batch: int) -> Iterator[Speaker]:
        """The same speaker every time: one draft serves every chain."""
        from eagle3cli.serving.bench.local import load_speaker

        if self._speaker is None:
            voice = load_voice(self.settings, self.settings.target.model_path)
            self._speaker = load_speaker(self.settings, self.draft, voice, self.report)
        yield self._speaker


@dataclass
class Started:
    """A server of our own for every speculation, stopped after it."""

    settings: Settings
    draft: Path | None
    report: Reporter
    has_baseline: bool = True

    @property
    def name(self) -> str:
        """What is started."""
        return self.product

    @property
    def product(self) -> Product:
        """SGLang unless vLLM is asked for."""
        return "vllm" if self.settings.bench.engine == "vllm" else "sglang"

    @contextmanager
    def speaking(self, speculation: Spoken, batch: int) -> Iterator[Speaker]:
        """Start a server, and stop it at the end."""
        settings = self.settings
        server = settings.server.model_copy(update={"args": self._words(batch), "replicas": 1})
        logs = settings.bench.output.parent / "logs"
        with started(
            server,
            settings.target,
            self.report,
            logs=logs,
            product=self.product,
            speculation=self.speculation(speculation),
        ) as servers:
            path, seconds = settings.target.model_path, float(settings.server.request_timeout)
            yield meet(servers.addresses[0], lambda _: load_voice(settings, path), seconds)

    def speculation(self, spoken: Spoken) -> Speculation | None:
        """The server's flags for a speculation, None for a baseline."""
        return Speculation(str(self.draft), *spoken) if spoken[0] and self.draft is not None else None

    def _words(self, batch: int) -> str:
        """What the user adds, behind what makes room for the batch and takes cached prompts out of the times."""
        most = max(batch, CPU_REQUESTS)
        room = f"--max-num-seqs {most} --no-enable-prefix-caching" if self.product == "vllm" else ""
        return f"{room or f'--max-running-requests {most}'} {self.settings.server.args}".strip()


def serve_command(settings: Settings, config: Config) -> str:
    """The command that serves a configuration, to copy: vLLM's where that is asked for, else SGLang's."""
    product: Product = "vllm" if settings.bench.engine == "vllm" else "sglang"
    room = {"vllm": "--max-num-seqs", "sglang": "--max-running-requests"}[product]
    words = f"{room} {config.batch} {settings.server.args}" if config.batch > CPU_REQUESTS else settings.server.args
    server = settings.server.model_copy(update={"args": words, "python": settings.server.python or "python3"})
    draft = Speculation(str(_draft_folder(settings)), *config.speculation) if config.steps else None
    launch = launches(product, server, settings.target, [settings.server.port or 30000], draft)[0]
    return shlex.join([*(f"{name}={value}" for name, value in launch.environment.items()), *launch.words])


@dataclass
class Running:
    """Servers that run already: each serves the configurations of its own speculation."""

    settings: Settings
    report: Reporter
    name: str = SERVERS
    _speakers: list[RemoteSpeaker] = field(default_factory=list, init=False)

    @contextmanager
    def speaking(self, speculation: Spoken, batch: int) -> Iterator[Speaker]:
        """The server with this speculation."""
        yield self.serving(speculation)

    def serving(self, speculation: Spoken) -> RemoteSpeaker:
        """The server with this speculation. Raises UsageError where none has it, Eagle3Error where one is down."""
        for speaker in self.speakers:
            if (speaker.info.speculative or (0, 0, 0)) == speculation:
                return speaker
        have = ", ".join(f"{s.address} {','.join(map(str, s.info.speculative or (0, 0, 0)))}" for s in self.speakers)
        wanted = ",".join(map(str, speculation))
        fix = "start one with it and give its address, too, or leave out --server-address-port"
        raise UsageError(f"no server speculates with steps,topk,tokens {wanted} (there are: {have})", fix=fix)

    @property
    def has_baseline(self) -> bool:
        """Whether one of the servers has no draft."""
        return any(speaker.info.speculative is None for speaker in self.speakers)

    @property
    def speakers(self) -> list[RemoteSpeaker]:
        """All servers, asked once who they are."""
        if not self._speakers:
            settings, seconds = self.settings, float(self.settings.server.request_timeout)
            for address in settings.server.address_port:
                found = meet(
                    address,
                    lambda info: load_voice(settings, settings.target.model_path or info.path or info.model),
                    seconds,
                )
                self._speakers.append(found)
        return self._speakers
