"""Which engine the benchmark runs on, and how it comes by one for every speculation: loaded, running or started."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from eagle3cli.backends.target.gguf.folder import local_folder
from eagle3cli.errors import UsageError
from eagle3cli.models.checkpoint import read_config
from eagle3cli.models.converters import is_speculators
from eagle3cli.models.engines import ENGINES as ENGINE_NAMES
from eagle3cli.models.folders import find_draft, gguf_draft
from eagle3cli.runtime.report import Reporter
from eagle3cli.serving.bench.configs import Config, DraftShape, require_chains
from eagle3cli.serving.bench.remote import ServerEngine, connect
from eagle3cli.serving.bench.session import Engine
from eagle3cli.serving.chat_tokenizer import ChatTokenizer, load_chat_tokenizer
from eagle3cli.serving.client.client import Info
from eagle3cli.serving.client.protocol import ServerKind
from eagle3cli.serving.client.same_model import PROBE, model_path, same_answers, same_files
from eagle3cli.serving.engine import resolve_engine
from eagle3cli.serving.launch.commands import (
    CPU_REQUESTS,
    DRAWN_DRAFTS,
    LLAMACPP_CONTEXT,
    SPECULATIVE,
    Product,
    Speculation,
    launches,
    one_type,
    product_of,
    visible_gpus,
    vllm_knows,
)
from eagle3cli.serving.launch.server import started
from eagle3cli.settings.models import TargetSettings
from eagle3cli.settings.tables import Settings

if TYPE_CHECKING:
    from eagle3cli.serving.bench.local import LocalEngine

SERVERS = "servers"
"""What results call servers that are given."""
SAMPLE = "The 12 foxes: def f(x): return x + 1.5  # naïve, 漢字"
"""A text on which two tokenizers that are not the same part."""
COUNTERS_FLAG = "--per-request-spec-decode-metrics"
ROOM: dict[Product, str] = {
    "vllm": "--max-num-seqs",
    "sglang": "--max-running-requests",
    "llama.cpp": "--parallel",
}
"""The argument for the requests that a server decodes together."""


class EngineProvider(Protocol):
    """Gives an engine for a speculation."""

    @property
    def name(self) -> str:
        """What the results call it."""

    @property
    def target(self) -> str:
        """The model that it serves, as it names it."""

    @property
    def has_baseline(self) -> bool:
        """Whether it decodes without a draft, too."""

    @property
    def has_all(self) -> bool:
        """Whether the engines of all speculations are there at once, so that they can take turns."""

    def engine(self, shape: DraftShape, batch: int) -> AbstractContextManager[Engine]:
        """An engine within the block, for at most ``batch`` replies at once."""

    def judge(self) -> AbstractContextManager[Engine]:
        """An engine without the draft within the block: it says how near a tie a difference is."""


def open_provider(settings: Settings, configs: Sequence[Config], report: Reporter) -> EngineProvider:
    """The engines that the settings mean. Raises UsageError for configurations that they cannot run."""
    kind = resolve_engine(settings.bench.engine, settings.server)
    drafts = [config for config in configs if not config.is_baseline]
    if kind == "running":
        running = RunningProvider(settings, report)
        for shape in dict.fromkeys(config.shape for config in drafts):
            running.find(shape)
        if not running.has_baseline:
            report.warn("no server without a draft is among them: no baseline, so no speed-up and no comparison")
        return running
    if not settings.target.model_path:
        raise UsageError("missing-target", "no target model", where="--model-path", fix="give a folder or a hub id")
    draft = _draft_folder(settings) if drafts else None
    if draft is not None and gguf_draft(draft) is not None and settings.bench.engine != "llama.cpp":
        fix = "add --engine llama.cpp, or give the folder that it was exported from"
        raise UsageError(
            "draft-format", "a draft for llama.cpp, which no other engine reads", where=str(draft), fix=fix
        )
    if kind == "local":
        require_chains(drafts, "the local engine", ", and --engine sglang with --server-python PYTHON serves trees")
        return LocalProvider(settings, draft, report)
    if settings.draft.path:  # its type is the servers', with and without it
        draft = _draft_folder(settings)
    provider = StartedProvider(settings, draft, report)
    if provider.name != "sglang":
        require_chains(drafts, ENGINE_NAMES[provider.name])
    elif draft is not None and is_speculators(read_config(draft)):
        fix = f"eagle3 import --draft-model-path {draft} --output-path FOLDER, and measure that"
        raise UsageError(
            "draft-format",
            "a draft in the format of speculators, which SGLang does not read",
            where=str(draft),
            fix=fix,
        )
    return provider


def _draft_folder(settings: Settings) -> Path:
    if settings.draft.path is None:
        fix = "run eagle3 export first, give a draft folder, or only baselines (--config-list 1,0,0,0)"
        raise UsageError("missing-draft", "no draft", where="--speculative-draft-model-path", fix=fix)
    path = Path(settings.draft.path)
    return path if gguf_draft(path) is not None else find_draft(path)


@dataclass
class LocalProvider:
    """This process, loaded once."""

    settings: Settings
    draft: Path | None
    report: Reporter
    name: str = "local"
    has_baseline: bool = True
    has_all: bool = True

    def engine(self, shape: DraftShape, batch: int) -> AbstractContextManager[Engine]:
        """The same engine every time: one draft serves every chain."""
        return nullcontext(self._engine)

    def judge(self) -> AbstractContextManager[Engine]:
        """The same engine: it asks the target alone."""
        return nullcontext(self._engine)

    @property
    def target(self) -> str:
        """As the settings name it."""
        return self.settings.target.model_path

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
    has_all: bool = False

    @property
    def name(self) -> Product:
        """What is started."""
        return product_of(self.settings.bench.engine)

    @property
    def target(self) -> str:
        """As the settings name it."""
        return self.settings.target.model_path

    @contextmanager
    def engine(self, shape: DraftShape, batch: int) -> Iterator[Engine]:
        """Start a server, and stop it at the end."""
        settings = self.settings
        target, draft = self._models(speculates=bool(shape[0]))
        on_cpu = not (target.device != "cpu" and visible_gpus())
        sampled = draft is not None and not on_cpu and self._draws_drafts(shape)
        arguments = self._arguments(batch, speculates=bool(shape[0]))
        server = settings.server.model_copy(update={"args": arguments, "replicas": 1})
        with started(
            server,
            target,
            self.report,
            logs=settings.bench.output.parent / "logs",
            product=self.name,
            speculation=Speculation(draft, *shape, sampled) if shape[0] and draft is not None else None,
        ) as servers:
            seconds = float(settings.server.request_timeout)
            dtype = "" if self.name == "llama.cpp" else target.dtype
            engine = connect(servers.addresses[0], lambda _: self._tokenizer, seconds, dtype, on_cpu=on_cpu)
            engine.drafting = "" if self.name == "llama.cpp" else "probabilistic" if sampled else "greedy"
            yield engine

    def _draws_drafts(self, shape: DraftShape) -> bool:
        """Whether draft tokens are to be drawn: at a temperature more of them are accepted so. vLLM's choice; on a CPU
        it stays with the likeliest, for what it writes there at a temperature is not the target's either way."""
        if self.name != "vllm" or not shape[0] or not any(self.settings.bench.temperature):
            return False
        return vllm_knows(self.settings.server.python, DRAWN_DRAFTS, SPECULATIVE)

    @cached_property
    def _tokenizer(self) -> ChatTokenizer:
        if self.name != "llama.cpp":
            return load_chat_tokenizer(self.settings, images=_shows_images(self.settings, self.name))
        from eagle3cli.serving.launch.gguf import target_folder

        return load_chat_tokenizer(self.settings, target_folder(self.settings, self.report))

    def _models(self, *, speculates: bool) -> tuple[TargetSettings, str | None]:
        """The target and the draft as the server is given them."""
        if self.name != "llama.cpp":
            draft = None if self.draft is None else str(self.draft)
            return one_type(self.settings.target, self.draft), draft
        from eagle3cli.serving.launch.gguf import draft_file, target_file

        file = target_file(self.settings, self.report)
        target = self.settings.target.model_copy(update={"model_path": str(file)})
        return target, str(draft_file(self.settings, self.report)) if speculates else None

    def judge(self) -> AbstractContextManager[Engine]:
        """The baseline's server once more."""
        return self.engine((0, 0, 0), 1)

    def _arguments(self, batch: int, *, speculates: bool) -> str:
        """What the user adds, behind what makes room for the batch, takes cached prompts out of the times, and has vLLM
        tell the counters of every reply where its version can."""
        if self.name == "llama.cpp":  # each request has a context of its own
            words = [ROOM[self.name], str(batch), "--ctx-size", str(batch * LLAMACPP_CONTEXT)]
            return f"{shlex.join(words)} {self.settings.server.args}".strip()
        words = [ROOM[self.name], str(max(batch, CPU_REQUESTS))]
        if self.name == "vllm":
            words.append("--no-enable-prefix-caching")
            if speculates and vllm_knows(self.settings.server.python, COUNTERS_FLAG):
                words += [COUNTERS_FLAG, "summary"]
        return f"{shlex.join(words)} {self.settings.server.args}".strip()


def _shows_images(settings: Settings, kind: ServerKind) -> bool:
    """Whether a server is shown images: in chat completions, by its own template; llama.cpp is asked by tokens."""
    return settings.data.chat_template == "auto" and kind != "llama.cpp"


def serve_command(settings: Settings, config: Config) -> str:
    """The command that serves a configuration, to copy."""
    product = product_of(settings.bench.engine)
    args = settings.server.args
    if product == "llama.cpp":
        args = f"{ROOM[product]} {config.batch} --ctx-size {config.batch * LLAMACPP_CONTEXT} {args}"
    elif config.batch > CPU_REQUESTS:
        args = f"{ROOM[product]} {config.batch} {args}"
    server = settings.server.model_copy(update={"args": args, "python": settings.server.python or "python3"})
    draft = Speculation(str(_draft_folder(settings)), *config.shape) if config.steps else None
    target = one_type(settings.target, _draft_folder(settings) if settings.draft.path else None)
    launch = launches(product, server, target, [settings.server.port or 30000], draft)[0]
    return shlex.join([*(f"{name}={value}" for name, value in launch.environment.items()), *launch.argv])


@dataclass
class RunningProvider:
    """Servers that run already: each serves the configurations of its own speculation."""

    settings: Settings
    report: Reporter
    name: str = SERVERS
    has_all: bool = True

    def engine(self, shape: DraftShape, batch: int) -> AbstractContextManager[Engine]:
        """The server with this speculation."""
        return nullcontext(self.find(shape))

    def judge(self) -> AbstractContextManager[Engine]:
        """The server without a draft."""
        return nullcontext(self.find((0, 0, 0)))

    def find(self, shape: DraftShape) -> ServerEngine:
        """The server with this speculation. Raises UsageError where none has it, Eagle3Error where one is down."""
        for server in self._servers:
            if (server.info.speculative or (0, 0, 0)) == shape:
                return server
        shapes = ", ".join(f"{s.address} {_text(s.info.speculative or (0, 0, 0))}" for s in self._servers)
        fix = "start one with it and give its address, too, or leave out --server-address-port"
        raise UsageError(
            "conflicting-options",
            f"no server speculates with steps,topk,tokens {_text(shape)} (there are: {shapes})",
            fix=fix,
        )

    @property
    def target(self) -> str:
        """The model that the servers say they hold."""
        return model_path(self._servers[0].info)

    @property
    def has_baseline(self) -> bool:
        """Whether one of the servers has no draft."""
        return any(server.info.speculative is None for server in self._servers)

    @cached_property
    def _servers(self) -> list[ServerEngine]:
        """All servers, asked once who they are. Raises UsageError where they hold different models."""
        seconds = float(self.settings.server.request_timeout)
        servers = [connect(address, self._tokenizer_of, seconds) for address in self.settings.server.address_port]
        for server in servers:
            self._require_tokenizer(server)
            if server.info.kind == "openai" and self.settings.bench.top_k:
                fix = "leave it out, or measure SGLang or vLLM"
                raise UsageError(
                    "conflicting-options", f"{server.address} may not know top_k", where="--top-k", fix=fix
                )
        for server in servers[1:]:
            self._require_same_model(servers[0], server)
        return servers

    def _tokenizer_of(self, info: Info) -> ChatTokenizer:
        """That of the server's own model where its folder is here; else that of the settings' model."""
        own = model_path(info)
        if own.endswith(".gguf") and Path(own).is_file():
            own = local_folder(own, self.settings.data.cache_dir / "models", self.report)
        asked = self.settings.target.model_path
        if asked.endswith(".gguf"):
            asked = local_folder(asked, self.settings.data.cache_dir / "models", self.report)
        is_here = not asked or Path(own).is_dir()
        if asked and is_here and not same_files(own, asked):
            self.report.warn(f"the server holds {own}; --model-path {asked} is not used")
        return load_chat_tokenizer(
            self.settings, own if is_here else asked, images=_shows_images(self.settings, info.kind)
        )

    def _require_tokenizer(self, server: ServerEngine) -> None:
        """Ids of another vocabulary would be answered with nonsense, and may end a server."""
        theirs = server.tokens_of(SAMPLE)
        ours = server.tokenizer.tokenizer.encode(SAMPLE, add_special_tokens=False)
        if theirs is not None and theirs != ours:
            what = f"{server.address} holds {model_path(server.info)}, whose tokens are not those of --model-path"
            raise UsageError(
                "other-target", what, where="--model-path", fix="leave it out, or give the model that the servers hold"
            )

    def _require_same_model(self, one: ServerEngine, other: ServerEngine) -> None:
        names = [model_path(server.info) for server in (one, other)]
        same = same_files(*names)
        if same is None:
            likely = [server.likely_tokens(PROBE) for server in (one, other)]
            same = None if None in likely else same_answers(*(tokens or {} for tokens in likely))
        if same is None:
            self.report.warn(f"whether {names[0]} and {names[1]} are the same model cannot be told")
        elif not same:
            what = f"the servers hold different models: {one.address} {names[0]}, {other.address} {names[1]}"
            raise UsageError(
                "servers-differ", what, where="--server-address-port", fix="start all of them with the same model"
            )
        types = {server.info.dtype for server in (one, other)} - {"", "auto"}
        if len(types) > 1:
            what = f"{one.address} computes in {one.info.dtype}, {other.address} in {other.info.dtype}"
            self.report.warn(f"{what}: answers and speed differ for that alone; start them with one --dtype")


def _text(shape: DraftShape) -> str:
    return ",".join(map(str, shape))
