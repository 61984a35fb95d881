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
VLLM_DRAFTS = ("DFlash", "Eagle", "Peagle", "LiLiCorr")
"""Drafts of vLLM, by the beginnings of their names."""
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


def classes_in(folder: Path) -> dict[str, tuple[list[str], set[str]]]:
    """Every class in an engine's models: its bases, and what its body defines."""
    found = {}
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases = [ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases]
                found[node.name] = (bases, {part.name for part in node.body if isinstance(part, ast.FunctionDef)})
    return found


def has(classes: dict[str, tuple[list[str], set[str]]], name: str, wanted: str) -> bool:
    """Whether a class, or one that it is made of, is or defines what is wanted."""
    if name not in classes:
        return name == wanted
    bases, defined = classes[name]
    return wanted in defined or any(base != name and has(classes, base, wanted) for base in bases)


def models_folder(engine: Engine, *parts: str) -> Path:
    """Where an engine's models are defined."""
    (folder,) = Path(engine_python(engine)).parents[1].glob(f"lib/python*/site-packages/{'/'.join(parts)}")
    return folder


def test_no_class_of_the_engines_sources_is_missing() -> None:
    """Also those that a CPU cannot import."""
    sglang = classes_in(models_folder("sglang", "sglang", "srt", "models"))
    named = {name for name in sglang if name.endswith(("ForCausalLM", "ForConditionalGeneration"))}
    hooked = {name for name in named if has(sglang, name, "set_eagle3_layers_to_capture")}
    assert {name for name in hooked if not name.endswith(DRAFTS)} - (SGLANG | SGLANG_FIRST_IS_1) == SGLANG_PARTS
    vllm = classes_in(models_folder("vllm", "vllm", "model_executor", "models"))
    named = {name for name in vllm if name.endswith(("ForCausalLM", "ForConditionalGeneration"))}
    hooked = {name for name in named if has(vllm, name, "SupportsEagle3")}
    assert {name for name in hooked if not name.startswith(VLLM_DRAFTS)} - VLLM == set()


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
    names = sorted(VLLM | VLLM_BY_TRANSFORMERS)
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
