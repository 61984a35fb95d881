"""Which backend runs the target: the one that the settings name, or the best that this machine has for its model."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

from eagle3cli.backends.target.group import SharedTarget, load_tensor_parallel
from eagle3cli.backends.target.hf import load_target, pick_device, read_target_config
from eagle3cli.backends.target.sglang import MODEL_TYPES, VERSIONS, load_sglang
from eagle3cli.backends.target.target import LiveTarget
from eagle3cli.data.tokens.rows import TokenRows
from eagle3cli.errors import UsageError
from eagle3cli.models.aux_layers import default_aux_layers, text_part
from eagle3cli.runtime.distributed import Ranks
from eagle3cli.runtime.packages import installed_version
from eagle3cli.runtime.report import Reporter, Silent
from eagle3cli.settings.models import TargetSettings

BackendName = Literal["hf", "sglang"]


def open_target(
    target: TargetSettings, report: Reporter, aux_layers: tuple[int, ...] | None = None, ranks: Ranks | None = None
) -> LiveTarget:
    """Load the target with the backend that the settings mean; ``aux_layers`` defaults to EAGLE-3's choice.

    Of ``ranks`` that train, each ``tp_size`` neighbours share one.
    """
    config = read_target_config(target)
    name, why = choose_backend(target, config)
    report.info(f"target backend {name}: {why}")
    chosen = target.model_copy(update={"backend": name})
    layers = aux_layers or default_aux_layers(int(text_part(config)["num_hidden_layers"]))
    if target.tp_size > 1 and ranks is not None:
        return SharedTarget(load_backend(chosen, layers, report), ranks, target.tp_size)
    if target.tp_size > 1:
        return load_tensor_parallel(chosen, layers, partial(load_backend, report=report))
    return load_backend(chosen, layers, report)


def shown_images(
    target: TargetSettings, splits: Iterable[TokenRows | None], *, on_ranks: bool = False
) -> TargetSettings:
    """The settings of a target that is shown the images of these rows: it runs by transformers, in one process.

    ``on_ranks``: it runs on ranks of its own. Raises UsageError where it is to run in another way.
    """
    row = next((at for rows in splits if rows is not None and (at := rows.first_with_images) is not None), None)
    if row is None:
        return target
    ways = {
        "SGLang": target.backend == "sglang",
        "a target over several processes": target.tp_size > 1,
        "a target on ranks of its own": on_ranks,
    }
    other = next((name for name, used in ways.items() if used), None)
    if other is not None:
        what = f"row {row + 1} has images, which {other} is not shown"
        fix = "use --target-model-backend hf in one process for each draft, or leave rows with images out"
        raise UsageError("unsupported-engine", what, where="target.backend", fix=fix)
    return target.model_copy(update={"backend": "hf"})


def load_backend(target: TargetSettings, aux_layers: tuple[int, ...], report: Reporter = Silent()) -> LiveTarget:  # noqa: B008
    """Load the target with the backend that ``target`` names."""
    load = load_sglang if target.backend == "sglang" else load_target
    return load(target, report, aux_layers)


def choose_backend(target: TargetSettings, config: dict[str, Any]) -> tuple[BackendName, str]:
    """The backend for this target (``config`` is its config), and why."""
    if target.backend == "sglang":
        return "sglang", "as named"
    if target.backend != "auto":
        return "hf", "as named"
    version = installed_version("sglang")
    model_type = str(text_part(config).get("model_type"))
    if target.spreads:
        return "hf", "transformers alone spreads a target over devices and disk"
    if pick_device(target.device).type != "cuda":
        return "hf", "no GPU"
    if version is None:
        return "hf", "SGLang is not installed"
    if version not in VERSIONS:
        return "hf", f"SGLang {version} is installed; known is {', '.join(VERSIONS)}"
    if model_type not in MODEL_TYPES:
        return "hf", f"SGLang captures no auxiliary layers of {model_type}"
    return "sglang", f"a GPU, SGLang {version} and a model type that it captures ({model_type})"
