"""The table of packaged draft configs by engine in ``examples/models.md``, from ``eagle3cli/models/engines.py``.

``python -m tests.models.engine_table`` writes it; ``test_engines.py`` compares it.
"""

from __future__ import annotations

from eagle3cli.models.engines import CHECKED, ENGINES, KNOWN, support, support_table
from tests.conftest import ROOT
from tests.families import DECODED, FAMILIES, WRAPPERS
from tests.models.engine_classes import MORE_THAN_TEXT, NO_NUMBERS, TEXT_OF
from tests.young_families import ALSO_DECODED, NOT_LOADED, REFUSED, YOUNG_FAMILIES, YOUNG_WRAPPERS

BEGIN = "<!-- engines: python -m tests.models.engine_table -->\n"
END = "<!-- /engines -->"
SAME_HERE = {
    "Glm5NextForCausalLM": "Glm5NextForConditionalGeneration",
    "InternLM3ForCausalLM": "LlamaForCausalLM",
    "LLaMAForCausalLM": "LlamaForCausalLM",
    "LightOnOCRForConditionalGeneration": "LightOnOcrForConditionalGeneration",
    "MiniCPMOcrForConditionalGeneration": "MiniCPMV4_6ForConditionalGeneration",
    "MiniCPMV4_7ForConditionalGeneration": "MiniCPMV4_6ForConditionalGeneration",
    "MiniMaxM3SparseForCausalLM": "MiniMaxM3SparseForConditionalGeneration",
    "MuseGlimmerForCausalLM": "MuseGlimmerForConditionalGeneration",
    "Qwen3_5ForConditionalGeneration": "Qwen3_5ForCausalLM",
    "Qwen3_5MoeForConditionalGeneration": "Qwen3_5MoeForCausalLM",
    "SarvamMLAForCausalLM": "DeepseekV3ForCausalLM",
    "SarvamMoEForCausalLM": "Glm4MoeForCausalLM",
}
"""What transformers makes of a class, or of which it has the same text model."""


def tried_here() -> dict[str, str]:
    """What was tried here of each class on a tiny model, by the tests of families."""
    tried = {}
    decoded = {*DECODED, *ALSO_DECODED, *YOUNG_FAMILIES, *YOUNG_WRAPPERS} - REFUSED - NOT_LOADED
    for name, (config, _) in {**FAMILIES, **YOUNG_FAMILIES}.items():
        kind = config.removesuffix("Config").removesuffix("Text") + "ForCausalLM"
        if name in decoded or name in REFUSED:
            tried[kind] = "lossless" if name in decoded else "states; no rollback"
    for name, (_, kind, _, _) in {**WRAPPERS, **YOUNG_WRAPPERS}.items():
        if name in decoded or name in REFUSED:
            tried[kind] = "lossless" if name in decoded else "states; no rollback"
    tried["Qwen4ExpForConditionalGeneration"] = "refused: several states side by side"
    tried["Qwen3OmniMoeForConditionalGeneration"] = "refused: a thinker and a talker"
    return tried | {name: tried[same] for name, same in SAME_HERE.items()}


def markdown() -> str:
    """One line for each config."""
    tried = tried_here()
    heads = " | ".join(f"{ENGINES[engine]} {CHECKED[engine]}" for engine in ENGINES)
    lines = [f"| `--draft-model-config` | class of the target | here | {heads} |", "|---" * (3 + len(ENGINES)) + "|"]
    for name, kind, by_engine in support_table():
        cells = (": ".join(filter(None, by_engine[engine])) for engine in ENGINES)
        lines.append(f"| `{name}` | {kind} | {tried.get(kind, 'config only')} | {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\n{others()}\n"


def why_no_config(name: str) -> str:
    """Of a class without a packaged config."""
    if name in TEXT_OF:
        return f"those of {TEXT_OF[name]}"
    if name in MORE_THAN_TEXT:
        return "none: the text model differs by the checkpoint, or no copy of one was found"
    special = {"VaultGemmaForCausalLM": "the context", "ExaoneMoEForCausalLM": "the number of layers"}
    special["ExaoneMoeForCausalLM"] = special["ExaoneMoEForCausalLM"]
    lacks = special.get(name)
    return f"none: copies of its config.json lack {lacks}" if lacks else "none: no copy of a config.json was found"


def others() -> str:
    """The classes without a packaged config of their own, with the reason."""
    tried = tried_here()
    lines = [
        "The other classes of which the sources of SGLang 0.5.23, vLLM 0.32.0 or vLLM 0.33.0 have auxiliary states;",
        "`auto` reads the draft off the target's own config. No engine was tried with them.",
        "",
        "| class of the target | here | SGLang | vLLM | packaged configs |",
        "|---|---|---|---|---|",
    ]
    for name in sorted(NO_NUMBERS | MORE_THAN_TEXT | set(TEXT_OF)):
        has = {}
        for engine in ("sglang", "vllm"):
            status, reason = support(engine, name) if name in KNOWN[engine] else ("no", "")  # type: ignore[arg-type]
            has[engine] = {"no": "no", "refused": f"no: {reason}"}.get(status, "yes")
            if "has no build for a CPU" in reason:
                has[engine] = "from 0.33.0 on"
        here = tried.get(name, "not tried: transformers has no such class")
        lines.append(f"| {name} | {here} | {has['sglang']} | {has['vllm']} | {why_no_config(name)} |")
    return "\n".join(lines)


def main() -> None:
    """Write it into the page."""
    path = ROOT / "examples" / "models.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    path.write_text(f"{before}{BEGIN}{markdown()}{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
