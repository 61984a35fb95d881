"""The commands that serve a draft: a line for every engine that runs it as it was trained, and why another does not."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eagle3cli.errors import ModelError
from eagle3cli.models.aux_layers import text_part
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.contract import LAYOUT_OF, LEAST_LAYERS, Layout, refusals
from eagle3cli.models.engines import (
    ENGINES,
    VLLM_BY_TRANSFORMERS,
    Engine,
    enough_layers,
    minimum_versions,
    target_class,
    unread_latent,
    unread_weights,
    unread_window,
    unsupported,
)
from eagle3cli.runtime.report import Reporter
from eagle3cli.settings.models import DraftSettings

SGLANG_WINDOW = "--speculative-draft-window-size"
UNQUANTISED = "unquant"
"""SGLang gives a draft the target's ``--quantization``, unless it is told this."""


@dataclass(frozen=True)
class Served:
    """Who serves a draft: ``lines`` by engine, ``refused`` the reasons by engine, ``needs`` the oldest versions."""

    lines: dict[Engine, str]
    refused: dict[Engine, str]
    needs: dict[Engine, str]
    about_target: str | None = None
    """What there is to know of the target's weights."""

    def notes(self, config: DraftConfig) -> list[str]:
        """What a person has to know besides the lines."""
        notes = [f"not by {ENGINES[engine]}: {reason}" for engine, reason in self.refused.items()]
        if self.lines:
            least = " or ".join(f"{ENGINES[engine]} {self.needs[engine]}" for engine in self.lines)
            options = [flag for flag in ("fc_norm", "norm_output", "norm_before_fc", "window") if getattr(config, flag)]
            older = f"; older ones pass over {' and '.join(options)} without a word" if options else ""
            notes.insert(0, f"needs {least} or newer{older}")
        if config.window is not None and "sglang" in self.lines:
            flag = f"{SGLANG_WINDOW} {sglang_window(config.window)}"
            notes.append(f"SGLang reads no window from the draft: without {flag} it attends to all tokens, in silence")
        return [*notes, *([self.about_target] if self.about_target else [])]


def serve(
    target: str,
    folder: Path | str,
    config: DraftConfig,
    *,
    steps: int,
    layout: Layout,
    target_config: Mapping[str, Any] | None = None,
    revision: str | None = None,
    backend: str | None = None,
) -> Served:
    """Who serves ``target`` with the draft in ``folder``, ``steps`` tokens a pass, and how.

    ``config.dtype`` is the folder's type: left alone, servers run a float32 target in float16, which a draft in
    bfloat16 cannot follow. ``target_config`` is the target's, None where it is not known; ``backend`` captured the
    states that the draft was trained on. A folder of the ``vllm`` layout is for vLLM alone; for llama.cpp ``folder`` is
    the draft's file.
    """
    name = target_class(target_config)
    lines: dict[Engine, str] = {}
    refused: dict[Engine, str] = {}
    for engine in engines_of(layout):
        reasons = _reasons(engine, config, target_config, config.dtype)
        missing = unsupported(engine, name, backend=backend)
        if missing or reasons:
            refused[engine] = "; ".join(filter(None, (missing, *reasons)))
        elif engine == "sglang":
            lines[engine] = _sglang_line(target, str(folder), config, steps, revision)
        elif engine == "llama.cpp":
            lines[engine] = _llamacpp_line(target, str(folder), steps)
        else:
            # A draft in the format of speculators names its target and its steps itself.
            words = [str(folder)] if layout == "speculators" else _vllm_words(target, str(folder), steps, revision)
            lines[engine] = _line(["vllm", "serve", *words, *_vllm_options(config, target_config)])
    others = {"llama.cpp"} if layout != "gguf" else {"sglang", "vllm"}
    needs = {engine: version for engine, version in minimum_versions(config, name).items() if engine not in others}
    return Served(lines, refused, needs)


def _reasons(
    engine: Engine, config: DraftConfig, target_config: Mapping[str, Any] | None, dtype: str | None = None
) -> list[str]:
    """Why an engine does not run this draft as it was trained, whatever its target's class; ``dtype`` is the type of
    both, None where it is still to be chosen."""
    # The layout of vLLM holds every draft, what vLLM itself cannot run too.
    own = [*unread_window(engine, config), *unread_latent(engine, config, target_config)] if engine == "vllm" else []
    return refusals(config, LAYOUT_OF[engine], target_config) + own + unread_weights(engine, target_config, dtype)


def engines_of(layout: Layout) -> tuple[Engine, ...]:
    """The engines that may read a draft of this layout."""
    by_layout: dict[Layout, tuple[Engine, ...]] = {
        "vllm": ("vllm",),
        "speculators": ("vllm",),
        "gguf": ("llama.cpp",),
    }
    return by_layout.get(layout, ("sglang", "vllm"))


def unserved(config: DraftConfig, target_config: Mapping[str, Any], *, backend: str | None = None) -> dict[Engine, str]:
    """Why engines will not serve a draft that is still to be trained, by engine; those left out will.

    What ``export`` converts is no reason. ``backend`` is what captures the target's states.
    """
    depth = text_part(target_config).get("num_hidden_layers")
    reasons: dict[Engine, str] = {}
    for engine in ENGINES:
        layers = enough_layers(config, LEAST_LAYERS.get(LAYOUT_OF[engine], 1), depth)
        missing = unsupported(engine, target_class(target_config), backend=backend)
        as_exported = replace(config, aux_layers=layers)
        problems = [*filter(None, (missing,)), *_reasons(engine, as_exported, target_config)]
        if problems:
            reasons[engine] = "; ".join(problems)
    return reasons


def with_options(config: DraftConfig, draft: DraftSettings) -> DraftConfig:
    """The config with the options that the settings ask for, and without those that ``serve_with`` cannot run."""
    default = replace(config, norm_output=False, fc_norm=False) if draft.serve_with == "llama.cpp" else config
    options = replace(
        config,
        fc_norm=default.fc_norm if draft.fc_norm is None else draft.fc_norm,
        norm_output=default.norm_output if draft.norm_output is None else draft.norm_output,
    )
    return with_window(options, draft)


def with_window(config: DraftConfig, draft: DraftSettings) -> DraftConfig:
    """The config with the window that the settings ask for, its own where they name none."""
    window = config.window if draft.window is None else draft.window
    sinks = config.sinks if draft.sinks is None else draft.sinks
    return replace(config, window=window, sinks=sinks)


def check_served(
    config: DraftConfig, target_config: Mapping[str, Any], serve_with: str | None, *, backend: str | None = None
) -> None:
    """Raise ModelError where the engine that is to serve the draft cannot; ``local`` can always."""
    reasons = unserved(config, target_config, backend=backend)
    for engine, reason in reasons.items():
        if engine == serve_with:
            fix = "change that, or name the engine that will serve it: --serve-with"
            raise ModelError(
                "unservable-draft",
                f"{ENGINES[engine]} will not serve this draft: {reason}",
                where=f"--serve-with {engine}",
                fix=fix,
            )


def report_unserved(
    config: DraftConfig, target_config: Mapping[str, Any], report: Reporter, *, backend: str | None = None
) -> None:
    """Say before the work which engines will not serve its draft: a warning where none of those that are known will."""
    reasons = unserved(config, target_config, backend=backend)
    if len(reasons) == len(ENGINES):
        report.warn(f"no server that is known will run this draft: {'; '.join(reasons.values())}")
        return
    for engine, reason in reasons.items():
        if engine == "llama.cpp":  # auto has what it cannot run, and --serve-with asks for a draft without
            continue
        report.info(f"{ENGINES[engine]} will not serve this draft: {reason}")


def _sglang_line(target: str, folder: str, config: DraftConfig, steps: int, revision: str | None) -> str:
    words = ["python", "-m", "sglang.launch_server", "--model-path", target]
    words += ["--revision", revision] if revision else []
    words += ["--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", folder]
    words += ["--speculative-num-steps", str(steps), "--speculative-eagle-topk", "1"]
    words += ["--speculative-num-draft-tokens", str(steps + 1)]
    words += ["--speculative-draft-model-quantization", UNQUANTISED, "--dtype", config.dtype]
    window = sglang_window(config.window)
    words += [SGLANG_WINDOW, window] if window else []
    return _line(words)


def sglang_window(window: int | None) -> str | None:
    """The value of SGLang's flag for a draft's window, which it does not read from the draft's config.

    It counts the keys before a query's own (``q - N <= k``), where the config and vLLM count that one, too.
    """
    return None if window is None else str(window - 1)


def _llamacpp_line(target: str, file: str, steps: int) -> str:
    return _line(["llama-server", "-m", gguf_name(target), *draft_words(file, steps)])


def draft_words(file: str, steps: int) -> list[str]:
    """llama-server's arguments for a draft: exactly ``steps`` tokens a pass, as every other engine here."""
    flags = {"--model-draft": file, "--spec-type": "draft-eagle3", "--spec-draft-n-max": str(steps)}
    return [word for pair in flags.items() for word in pair]


def gguf_name(target: str) -> str:
    """The target's file for llama.cpp: its own, or one called like it."""
    return target if target.endswith(".gguf") else f"{Path(target).name}.gguf"


def _vllm_words(target: str, folder: str, steps: int, revision: str | None) -> list[str]:
    draft = {"method": "eagle3", "model": folder, "num_speculative_tokens": steps}
    return [target, *(("--revision", revision) if revision else ()), "--speculative-config", json.dumps(draft)]


def _vllm_options(config: DraftConfig, target_config: Mapping[str, Any] | None) -> list[str]:
    context = _short_context(target_config)
    words = ["--dtype", config.dtype]
    words += ["--max-model-len", str(context)] if context else []
    return words + (["--model-impl", "transformers"] if target_class(target_config) in VLLM_BY_TRANSFORMERS else [])


def _line(words: list[str]) -> str:
    return shlex.join([*words, "--host", "127.0.0.1", "--port", "30000"])


def _short_context(target_config: Mapping[str, Any] | None) -> int | None:
    """The context in which vLLM computes LongRoPE as transformers does for short texts; None for another RoPE.

    Where the server's context is longer, vLLM takes the table of long texts for every text, and other states with it.
    """
    text = text_part(target_config or {})
    scaling = text.get("rope_parameters") or text.get("rope_scaling")
    if not isinstance(scaling, dict):
        return None
    kind = scaling.get("rope_type") or scaling.get("type")
    short = scaling.get("original_max_position_embeddings") or text.get("original_max_position_embeddings")
    longest = text.get("max_position_embeddings")
    is_long = kind in ("longrope", "su") and isinstance(short, int) and isinstance(longest, int) and short < longest
    return short if is_long else None
