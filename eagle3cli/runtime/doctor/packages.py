"""Versions: Python, what eagle3 needs, the servers and what they need in turn, trackers, the quickstart's packages."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from eagle3cli.runtime import demo
from eagle3cli.runtime.doctor.finding import Finding
from eagle3cli.runtime.llama_server import GET, NAME, find_llama_server, knows_drafts, version_of
from eagle3cli.runtime.packages import installed_version

SERVERS = {"sglang": "SGLang", "vllm": "vLLM"}
SHARED = ("torch", "transformers")
"""Packages of which a server often wants one exact version."""
OWN_PYTHON = "give it an environment of its own and name that: --server-python /path/to/python"


def python() -> Iterator[Finding]:
    """The Python that runs this."""
    required = metadata.metadata("eagle3")["Requires-Python"]
    version = platform.python_version()
    if SpecifierSet(required).contains(version, prereleases=True):
        yield Finding("Python", "ok", f"{version} (needs {required})")
    else:
        fix = "python3.12 -m venv .venv && .venv/bin/pip install eagle3"
        yield Finding("Python", "problem", f"{version}, needs {required}", fix)


def requirements() -> Iterator[Finding]:
    """The packages that eagle3 cannot do without, each with the range that it may have."""
    fitting = [f"eagle3 {metadata.version('eagle3')}"]
    for requirement in _requirements("eagle3"):
        version = installed_version(requirement.name)
        if version is None:
            yield Finding(requirement.name, "problem", "not installed", f"pip install '{requirement}'")
        elif not requirement.specifier.contains(version, prereleases=True):
            detail = f"{version} is installed, {requirement.specifier} is needed"
            yield Finding(requirement.name, "problem", detail, f"pip install --upgrade '{requirement}'")
        else:
            fitting.append(f"{requirement.name} {version} ({requirement.specifier})")
    yield Finding("packages", "ok", ", ".join(fitting))


def servers() -> Iterator[Finding]:
    """SGLang, vLLM and llama.cpp: whether they are here, and fit to what else is."""
    for name, shown in SERVERS.items():
        version = installed_version(name)
        if version is None:
            fix = (
                "pip install 'eagle3[gpu]'" if name == "sglang" else "python3 -m venv vllm && vllm/bin/pip install vllm"
            )
            yield Finding(shown, "note", "not installed; it serves targets and drafts on GPUs", fix)
            continue
        extra = [requirement for requirement in _requirements("eagle3", "gpu") if requirement.name == name]
        unmet = [requirement for requirement in extra if not requirement.specifier.contains(version, prereleases=True)]
        clashes = [clash for requirement in _requirements(name) if (clash := _clash(requirement))]
        if unmet:
            yield Finding(shown, "problem", f"{version}, needs {unmet[0].specifier}", f"pip install '{unmet[0]}'")
        elif clashes:
            yield Finding(shown, "problem", f"{version} wants {', '.join(clashes)}", OWN_PYTHON)
        else:
            yield Finding(shown, "ok", version)
    yield _llamacpp()


def _llamacpp() -> Finding:
    program = find_llama_server()
    if program is None:
        return Finding(
            "llama.cpp", "note", f"no {NAME} on the PATH; it serves GGUF targets and drafts, on a CPU too", GET
        )
    version = f"{version_of(program) or 'of an unknown version'} ({program})"
    if knows_drafts(program):
        return Finding("llama.cpp", "ok", f"{version}, reads EAGLE-3 drafts")
    return Finding("llama.cpp", "problem", f"{version} is older than EAGLE-3 drafts", GET)


def _clash(requirement: Requirement) -> str | None:
    """What a server wants of a shared package, where another version is here."""
    version = installed_version(requirement.name)
    if requirement.name not in SHARED or version is None:
        return None
    public = version.partition("+")[0]  # 2.9.1+cu128 is what ==2.9.1 asks for
    if requirement.specifier.contains(public, prereleases=True):
        return None
    return f"{requirement.name}{requirement.specifier} ({version} is here)"


def trackers() -> Iterator[Finding]:
    """The packages behind ``--report-to`` and of charts: nothing needs them unless asked for."""
    extras = [name for name in metadata.metadata("eagle3").get_all("Provides-Extra") or () if name.startswith("track-")]
    names = {extra.removeprefix("track-"): extra for extra in sorted(extras)}
    present = [name for name in names if installed_version(name)]
    absent = [extra for name, extra in names.items() if name not in present]
    detail = f"installed: {', '.join(present) or 'none'}"
    fix = f"pip install 'eagle3[{absent[0]}]'" + (f" (or {', '.join(absent[1:])})" if absent[1:] else "")
    yield Finding("trackers", "ok" if present else "note", detail, None if present else fix)


def quickstart() -> Iterator[Finding]:
    """What ``eagle3 run quickstart`` needs besides."""
    absent = demo.missing()
    if absent:
        yield Finding("quickstart", "note", f"not installed: {', '.join(absent)}", demo.install_line())
    else:
        yield Finding("quickstart", "ok", "its model and prompts are installed")


def _requirements(package: str, extra: str = "") -> list[Requirement]:
    """What a package needs: always, or (``extra``) for that extra alone."""
    listed = [Requirement(text) for text in metadata.requires(package) or ()]
    always = [
        requirement
        for requirement in listed
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ]
    if not extra:
        return always
    return [
        requirement
        for requirement in listed
        if requirement not in always and requirement.marker and requirement.marker.evaluate({"extra": extra})
    ]
