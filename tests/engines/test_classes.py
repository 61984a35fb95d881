"""What the package says of the engines' classes is what the engines' own code does, in the versions that were read."""

from __future__ import annotations

import ast
import json
import shlex
from pathlib import Path

import pytest

from eagle3cli.models.config import DraftConfig
from eagle3cli.models.engines import (
    CHECKED,
    SGLANG,
    SGLANG_FIRST_IS_1,
    VLLM,
    VLLM_BY_TRANSFORMERS,
    VLLM_SINCE,
    Engine,
    sglang_layers,
)
from eagle3cli.models.serve import serve
from tests.engines.lines import CPU_FLAGS, engine_python, said_by

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.families, pytest.mark.timeout(600)]
DRAFTS = ("NextN", "MTP", "Eagle", "Eagle3", "EmbeddingGemmaModel", "AssistantForCausalLM", "MindSporeForCausalLM")
"""Classes of drafts and embeddings that inherit the method, by the ends of their names; and one for another backend."""
SGLANG_PARTS = {"InternS2MobiusForCausalLM", "Qwen3OmniMoeThinkerForConditionalGeneration"}
"""Text models inside others, which no config names."""
REGISTRY = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
"""Tables of vLLM's registry."""
VLLM_MARKED = {"Qwen4ExpForConditionalGeneration"}
"""A class that inherits the mark and keeps no auxiliary states."""
NOT_FOR_A_CPU = ("DeepseekV4", "Glm5Next", "KimiK3", "KimiLinear", "MiniMaxM3")
"""Beginnings of the names of classes that vLLM cannot import on a CPU."""
SGLANG_SAYS = """
import json, logging
from unittest.mock import MagicMock
logging.disable(logging.CRITICAL)
import sglang
from sglang.srt.models.registry import ModelRegistry
said = {}
for name, cls in ModelRegistry.models.items():
    said[name] = None
    setter = getattr(cls, "set_eagle3_layers_to_capture", None)
    if setter is None:
        continue
    said[name] = []
    for numbers in ([1, 4, 5], [2, 4, 5], [4, 1, 6], [1, 0, 4]):
        model = MagicMock()
        model.config.num_hidden_layers = model.config.text_config.num_hidden_layers = 12
        model.model.layers = model.language_model.layers = [MagicMock() for _ in range(12)]
        try:
            setter(model, numbers)
        except Exception:  # a setter that reads more than a stand-in has
            said[name].append(None)
            continue
        inner = model.model
        read = inner.layers_to_capture
        if not isinstance(read, list) and inner.set_eagle3_layers_to_capture.called:
            read = inner.set_eagle3_layers_to_capture.call_args.args[0]
        said[name].append(sorted(read) if isinstance(read, list) else None)
print("SAID" + json.dumps({"version": sglang.__version__, "classes": said}))
"""
VLLM_SAYS = """
import json, sys
import vllm
from vllm.model_executor.models.registry import ModelRegistry, _VLLM_MODELS
from vllm.model_executor.models.interfaces import supports_eagle3
said = {}
for name in json.loads(sys.argv[1]):
    try:
        said[name] = bool(supports_eagle3(ModelRegistry.models[name].load_model_cls()))
    except Exception as error:
        said[name] = repr(error)
print("SAID" + json.dumps({"version": vllm.__version__, "classes": said}))
"""


def classes_in(*folders: Path) -> dict[str, tuple[set[str], set[str]]]:
    """Every class in an engine's models: its bases, and what its body defines; of one for each kind of hardware all."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases, defined = found.setdefault(node.name, (set(), set()))
                bases |= {ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases}
                defined |= {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


def has(
    classes: dict[str, tuple[set[str], set[str]]], name: str, wanted: str, above: frozenset[str] = frozenset()
) -> bool:
    """Whether a class, or one that it is made of, is or defines what is wanted."""
    if name == wanted or name not in classes or name in above:
        return name == wanted
    bases, defined = classes[name]
    return wanted in defined or any(has(classes, base, wanted, above | {name}) for base in bases)


def vllms_targets(registry: Path) -> dict[str, str]:
    """The classes that vLLM's registry loads targets with, by the names that configs have for them."""
    targets: dict[str, str] = {}
    for node in ast.parse(registry.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in REGISTRY:
            targets |= {name: kind for name, (_, kind) in ast.literal_eval(node.value).items()}
    return targets


def models_folder(engine: Engine, *parts: str) -> Path:
    """Where an engine's models are defined."""
    (folder,) = Path(engine_python(engine)).parents[1].glob(f"lib/python*/site-packages/{'/'.join(parts)}")
    return folder


def test_no_class_of_sglangs_sources_is_missing() -> None:
    """Also those that a CPU cannot import."""
    sglang = classes_in(models_folder("sglang", "sglang", "srt", "models"))
    named = {name for name in sglang if name.endswith(("ForCausalLM", "ForConditionalGeneration"))}
    hooked = {name for name in named if has(sglang, name, "set_eagle3_layers_to_capture")}
    assert {name for name in hooked if not name.endswith(DRAFTS)} - (SGLANG | SGLANG_FIRST_IS_1) == SGLANG_PARTS


def test_no_class_of_vllms_sources_is_missing() -> None:
    """What the list has besides is of a newer version."""
    folder = models_folder("vllm", "vllm", "model_executor", "models")
    vllm = classes_in(folder, folder.parents[1] / "models")
    targets = vllms_targets(folder / "registry.py")
    hooked = {name for name, kind in targets.items() if has(vllm, kind, "SupportsEagle3")}
    assert len(hooked) > 90
    assert hooked - VLLM == VLLM_MARKED
    assert VLLM - hooked <= set(VLLM_SINCE)


def test_sglangs_classes() -> None:
    said = said_by("sglang", SGLANG_SAYS)
    assert said["version"] == CHECKED["sglang"]
    classes = {name: read for name, read in said["classes"].items() if not name.endswith(DRAFTS)}
    assert {name for name, read in classes.items() if read is not None} <= SGLANG | SGLANG_FIRST_IS_1
    followed = 0
    for name, read in classes.items():
        if name not in SGLANG | SGLANG_FIRST_IS_1:
            continue
        assert read is not None, f"{name} has no auxiliary states"
        for numbers, found in zip(([1, 4, 5], [2, 4, 5], [4, 1, 6], [1, 0, 4]), read, strict=True):
            if found is None:
                continue
            followed += 1
            kept = name in SGLANG_FIRST_IS_1 and numbers[0] != 1
            assert found == sorted(numbers if kept else [number + 1 for number in numbers]), (name, numbers)
    assert followed > 100
    assert sglang_layers((0, 3, 5), "DeepseekV2ForCausalLM") == [4, 1, 6]


def test_vllms_classes() -> None:
    importable = {name for name in VLLM - set(VLLM_SINCE) if not name.startswith(NOT_FOR_A_CPU)}
    names = sorted(importable | VLLM_BY_TRANSFORMERS)
    said = said_by("vllm", VLLM_SAYS, json.dumps(names))
    assert said["version"].startswith(CHECKED["vllm"])
    wrong = {name: found for name, found in said["classes"].items() if found is not (name in VLLM)}
    assert wrong == {}


SGLANG_QUANTISES = """
import json, sys
from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.server_args import prepare_server_args
arguments = prepare_server_args(json.loads(sys.argv[1]))
arguments.resolve_once()
resolved = resolving_view(arguments)
print("SAID" + json.dumps([resolved.quantization, resolved.speculative_draft_model_quantization]))
"""


def test_the_targets_quantisation_does_not_reach_the_draft(shared: Path) -> None:
    """SGLang's own arguments, made from the printed line and what a user adds to it."""
    folder = shared / "engines" / "tiny_eagle3"
    if not folder.is_dir():
        pytest.skip(f"no trained tiny draft at {folder}")
    raw = json.loads((folder / "target" / "config.json").read_text())
    draft = json.loads((folder / "draft" / "config.json").read_text())
    config = DraftConfig.from_dict(draft, aux_layers=(0, 1, 2))
    served = serve(str(folder / "target"), folder / "draft", config, steps=3, layout="sglang", target_config=raw)
    words = [*shlex.split(served.lines["sglang"])[3:], *CPU_FLAGS["sglang"], "--quantization", "fp8"]
    assert said_by("sglang", SGLANG_QUANTISES, json.dumps(words)) == ["fp8", None]
    at = words.index("--speculative-draft-model-quantization")
    without = words[:at] + words[at + 2 :]
    assert said_by("sglang", SGLANG_QUANTISES, json.dumps(without)) == ["fp8", "fp8"]
