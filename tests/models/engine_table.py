"""The table of packaged draft configs by engine in ``examples/models.md``, from ``eagle3cli/models/engines.py``.

``python -m tests.models.engine_table`` writes it; ``test_engines.py`` compares it.
"""

from __future__ import annotations

import textwrap

from eagle3cli.models.engines import CHECKED, ENGINES, support_table
from tests.conftest import ROOT
from tests.models.engine_classes import MORE_THAN_TEXT, NO_NUMBERS, TEXT_OF

BEGIN = "<!-- engines: python -m tests.models.engine_table -->\n"
END = "<!-- /engines -->"


def markdown() -> str:
    """One line for each config."""
    heads = " | ".join(f"{ENGINES[engine]} {CHECKED[engine]}" for engine in ENGINES)
    lines = [f"| `--draft-model-config` | class of the target | {heads} |", "|---" * (2 + len(ENGINES)) + "|"]
    for name, kind, by_engine in support_table():
        cells = (": ".join(filter(None, by_engine[engine])) for engine in ENGINES)
        lines.append(f"| `{name}` | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\n{others()}\n"


def others() -> str:
    """The classes without a packaged config, in words."""
    named = [f"`{name}`" for name in sorted(NO_NUMBERS | MORE_THAN_TEXT | set(TEXT_OF))]
    versions = " and ".join(f"{ENGINES[engine]} {CHECKED[engine]}" for engine in ("sglang", "vllm"))
    what = (
        f"{versions} have auxiliary states of these classes, too (by their sources; not tried); `auto` reads the draft"
    )
    return "\n".join(
        textwrap.wrap(f"{what} off the target's own config: {', '.join(named)}.", 140, break_long_words=False)
    )


def main() -> None:
    """Write it into the page."""
    path = ROOT / "examples" / "models.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    path.write_text(f"{before}{BEGIN}{markdown()}{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
