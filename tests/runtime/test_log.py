"""A run's log holds what its reporter was told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eagle3cli.runtime.log import logged
from eagle3cli.runtime.report import Silent


def test_all_is_passed_on_and_appended_with_the_time(tmp_path: Path) -> None:
    path = tmp_path / "run" / "log.txt"
    silent = Silent()
    for _ in range(2):
        with logged(silent, path) as report:
            report.info("begins")
            report.warn("look")
            with report.task("walk", 10, "rows", done=2) as task:
                task.advance(3, loss=0.5)
    assert silent.warnings == ["look", "look"]
    lines = path.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d ", line) for line in lines)
    assert [line[26:] for line in lines[:4]] == [
        "begins",
        "warning: look",
        "walk: begins at 2 of 10 rows",
        "walk: ends at 5 of 10 rows, loss 0.5",
    ]
    assert len(lines) == 8


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_told_once_and_ends_nothing() -> None:
    silent = Silent()
    with logged(silent, Path("/dev/full")) as report:
        report.info("text")
        report.warn("look")
    assert len(silent.warnings) == 2
    assert "cannot write: No space left on device" in silent.warnings[0]
    assert silent.warnings[1] == "look"
