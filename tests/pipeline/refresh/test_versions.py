"""The served path is a whole draft at every moment, and the ledger says what was tried."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.pipeline.refresh import versions as module
from eagle3cli.pipeline.refresh.versions import Versions, weights_digest
from tests.failing import fails


class KilledError(BaseException):
    """Stands for a kill: no handler of an Exception sees it."""


def draft_folder(path: Path, content: str) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_text(content)
    return path


def content(path: Path) -> str:
    """The draft as a server reads it; raises where it is not whole."""
    assert (path / "config.json").read_text() == "{}"
    return (path / "model.safetensors").read_text()


def promote(versions: Versions, folder: Path, text: str) -> int:
    """Promote a draft as a refresh does; its version."""
    with versions.held():
        parent = versions.begin()
        version = versions.next_version()
        candidate = draft_folder(folder / f"made-{version}", text)
        (folder / "rows.jsonl").write_text("{}\n")
        entry = {"version": version, "event": "refresh", "parent": parent, "promoted": True, "reason": ""}
        versions.commit(entry, candidate, {"train.jsonl": folder / "rows.jsonl"}, [f"{version:032x}"])
    return version


def test_versions_follow_one_another_and_go_back(tmp_path: Path) -> None:
    draft = draft_folder(tmp_path / "runs" / "draft", "zero")
    versions = Versions(draft)
    assert [promote(versions, tmp_path, text) for text in ("one", "two")] == [1, 2]
    assert draft.is_symlink()
    assert not os.path.isabs(draft.readlink())  # the folder around both may move
    assert content(draft) == "two"
    assert [content(versions.path(version)) for version in (0, 1, 2)] == ["zero", "one", "two"]
    assert versions.ancestors(2) == [2, 1, 0]
    assert versions.seen() == {f"{version:032x}" for version in (1, 2)}
    with versions.held():
        assert versions.rollback("parent") == {"version": 1, "from": 2}
        assert content(draft) == "one"
        assert versions.rollback("parent") == {"version": 0, "from": 1}
        assert versions.rollback("v2") == {"version": 2, "from": 0}
    assert content(draft) == "two"
    events = [(entry["event"], entry["version"]) for entry in versions.entries()]
    assert events == [("base", 0), ("refresh", 1), ("refresh", 2), ("rollback", 1), ("rollback", 0), ("rollback", 2)]
    assert all(entry["date"][:2] == "20" for entry in versions.entries())
    assert promote(versions, tmp_path, "three") == 3
    assert versions.ancestors(3) == [3, 2, 1, 0]


@pytest.mark.parametrize(("version", "value"), [("parent", "0"), ("7", "0, 1"), ("best", "best")])
def test_a_version_that_is_not_there_is_refused(tmp_path: Path, version: str, value: str) -> None:
    versions = Versions(draft_folder(tmp_path / "draft", "zero"))
    promote(versions, tmp_path, "one")
    with versions.held():
        versions.rollback("0")
        with fails("unknown-name", value):
            versions.rollback(version)
    assert content(versions.draft) == "zero"


def test_nothing_to_go_back_to(tmp_path: Path) -> None:
    versions = Versions(draft_folder(tmp_path / "draft", "zero"))
    with versions.held(), fails("unknown-name"):
        versions.rollback("parent")


def kill_at(monkeypatch: pytest.MonkeyPatch, count: int) -> Callable[[], bool]:
    """Die before the call number ``count`` that changes the disk; tells whether it came to that."""
    left = [count]

    def dying(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise KilledError
            return function(*args, **kwargs)

        return call

    for name in ("rename", "replace", "symlink_to", "unlink", "mkdir"):
        monkeypatch.setattr(Path, name, dying(getattr(Path, name)))
    for name in ("append", "exchange", "write_folder", "write_json"):
        monkeypatch.setattr(module, name, dying(getattr(module, name)))
    return lambda: left[0] <= 0


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_kill_at_any_moment_leaves_a_whole_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(ctypes, "CDLL", lambda *args, **kwargs: object())
    for first in (True, False):  # the folder becomes a link; a link becomes another one
        for count in range(1, 100):
            place = tmp_path / f"{first}-{count}"
            versions = Versions(draft_folder(place / "draft", "zero"))
            if not first:
                promote(versions, place, "zero")
            with monkeypatch.context() as patch:
                came_to_it = kill_at(patch, count)
                with suppress(KilledError):
                    promote(versions, place, "one")
                killed = came_to_it()
            if can_exchange or not first:
                assert content(versions.draft) in ("zero", "one")
            with versions.held():  # the next night
                served = content(versions.draft)
                current = versions.begin()
            told = {entry["version"] for entry in versions.entries() if entry["event"] == "refresh"}
            assert served == "one" if current == (1 if first else 2) else served == "zero"
            assert {int(path.name) for path in versions.folder.glob("data/*")} == told
            assert not list(place.glob(".draft*"))
            if not killed:
                assert served == "one"
                break
        else:
            pytest.fail("never came to its end")


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    draft = draft_folder(tmp_path / "draft", "zero")
    with Versions(draft).held(), fails("locked"), Versions(draft).held():
        pytest.fail("both hold it")


def test_a_torn_line_is_told_again_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    versions = Versions(draft_folder(tmp_path / "draft", "zero"))
    promote(versions, tmp_path, "one")
    ledger = versions.folder / "ledger.jsonl"
    whole = ledger.read_text()
    ledger.write_text(whole[:-20])  # killed while the last line was written
    with versions.held():
        assert ledger.read_text() == whole
    ledger.write_bytes(whole.encode() + b"\xff\xff")
    with versions.held():
        versions.rollback("0")
    assert [entry["version"] for entry in versions.entries()] == [0, 1, 0]
    for broken in (b"broken\n", b"\xff{\n", b'{"version": 1}\n'):
        ledger.write_bytes(broken + whole.encode())
        with fails("damaged-file", "ledger.jsonl:1"):
            versions.entries()
    ledger.write_text("")
    (versions.data(1) / "entry.json").write_bytes(b"\xff")
    with fails("damaged-file"), versions.held():
        pytest.fail("what it decided is not known")


def test_somebodys_own_link_is_a_first_version_too(tmp_path: Path) -> None:
    elsewhere = draft_folder(tmp_path / "models" / "draft", "zero")
    draft = tmp_path / "draft"
    draft.symlink_to(elsewhere)
    versions = Versions(draft)
    assert promote(versions, tmp_path, "one") == 1
    with versions.held():
        versions.rollback("parent")
    assert (content(draft), content(elsewhere)) == ("zero", "zero")


def test_a_new_folder_in_the_place_of_the_link_is_a_new_beginning(tmp_path: Path) -> None:
    draft = draft_folder(tmp_path / "draft", "zero")
    versions = Versions(draft)
    promote(versions, tmp_path, "one")
    draft.unlink()
    draft_folder(draft, "trained anew")
    with versions.held():
        assert versions.begin() == 2
        assert versions.begin() == 2
    assert versions.ancestors(2) == [2]
    assert promote(versions, tmp_path, "two") == 3
    assert [json.loads(line)["event"] for line in (versions.folder / "ledger.jsonl").read_text().splitlines()] == [
        *("base", "refresh", "base", "refresh")
    ]
    assert content(versions.path(2)) == "trained anew"


def test_old_versions_go_but_not_those_that_are_needed(tmp_path: Path) -> None:
    versions = Versions(draft_folder(tmp_path / "draft", "zero"))
    for text in ("one", "two", "three", "four"):
        promote(versions, tmp_path, text)
    with versions.held():
        versions.rollback("1")
        assert versions.prune(1) == [2, 3]
    assert sorted(path.name for path in versions.folder.glob("v*")) == ["v0", "v1", "v4"]
    assert weights_digest(versions.draft) == weights_digest(versions.path(1))
