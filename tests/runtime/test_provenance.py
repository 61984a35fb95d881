from __future__ import annotations

from pathlib import Path

import pytest

from eagle3cli.errors import Eagle3Error, UsageError
from eagle3cli.runtime.files import locked
from eagle3cli.runtime.provenance import changes, describe_files, digest_json, refuse_changes
from tests.failing import fails


def test_changes_are_told_key_by_key() -> None:
    before = {"seed": 1, "lr": 0.1, "name": "a", "gone": 4}
    now = {"seed": 2, "lr": 0.1, "name": "b", "new": None}
    assert changes(before, now, absent="not set") == [
        "gone was 4, is 'not set'",
        "name was 'a', is 'b'",
        "seed was 1, is 2",
    ]
    assert changes(before, now, keys=["seed", "new"]) == ["seed was 1, is 2"]
    assert changes(before, now, keys=["name"], text="{key}: {was} there, {now} now") == ["name: a there, b now"]


def test_only_changes_are_refused() -> None:
    refuse_changes([], "here", "none")
    with pytest.raises(UsageError) as error:
        refuse_changes(["a was 1, is 2", "b was 3, is 4"], "here", "pass --overwrite", joint="; ")
    assert error.value.message == "made with other settings: a was 1, is 2; b was 3, is 4"
    assert (error.value.where, error.value.fix) == ("here", "pass --overwrite")


def test_an_untouched_file_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    first = describe_files([path])
    doctored = {name: {**stat, "sha256": "earlier"} for name, stat in first.items()}
    assert describe_files([path], doctored) == doctored
    path.write_text("two")
    assert describe_files([path], doctored)[str(path)]["sha256"] not in ("earlier", first[str(path)]["sha256"])
    with fails("unreadable-file"):
        describe_files([tmp_path / "missing"])


def test_digests_depend_on_the_order_only_where_asked() -> None:
    assert digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1})
    assert digest_json({"a": 1, "b": 2}, sort_keys=False) != digest_json({"b": 2, "a": 1}, sort_keys=False)


@pytest.mark.parametrize("name", ["", ".lock"])
def test_a_second_holder_is_refused_until_the_first_lets_go(tmp_path: Path, name: str) -> None:
    busy = Eagle3Error("locked", "another process is writing here")
    with locked(tmp_path / name, busy), pytest.raises(Eagle3Error) as error, locked(tmp_path / name, busy):
        pass
    assert error.value is busy
    with locked(tmp_path / name, busy):
        pass
