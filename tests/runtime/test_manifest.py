from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eagle3cli.runtime import manifest
from tests.failing import fails


def test_outputs_are_made_once_for_equal_inputs_and_options(tmp_path: Path) -> None:
    source, output = tmp_path / "source", tmp_path / "out" / "rows"
    source.write_text("one")
    output.parent.mkdir()
    runs: list[str] = []

    def make() -> dict[str, Any]:
        runs.append(source.read_text())
        output.write_text(f"made of {source.read_text()}")
        return {"rows": len(runs)}

    def run(seed: int = 0, overwrite: bool = False) -> tuple[dict[str, Any], bool]:
        path = output.parent / "made.json"
        return manifest.make_once(path, {"seed": seed}, [source], [output.name], make, overwrite=overwrite)

    assert run() == ({"rows": 1}, False)
    assert run() == ({"rows": 1}, True)
    with fails("made-differently"):
        run(seed=1)
    source.write_text("two")
    with fails("made-differently"):
        run()
    assert run(overwrite=True) == ({"rows": 2}, False)
    output.write_text("cut")
    with fails("made-differently"):
        run()
    assert runs == ["one", "two"]


def test_what_an_interrupted_run_left_is_replaced(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        (tmp_path / "rows").write_text("half")
        (tmp_path / ".rows.tmp-999999999").write_text("half")
        raise KeyboardInterrupt

    def make() -> dict[str, Any]:
        assert not list(tmp_path.glob(".rows*"))
        (tmp_path / "rows").write_text("whole")
        return {}

    with pytest.raises(KeyboardInterrupt):
        manifest.make_once(tmp_path / "made.json", {}, [], ["rows"], fail, overwrite=False)
    assert manifest.make_once(tmp_path / "made.json", {}, [], ["rows"], make, overwrite=False) == ({}, False)
