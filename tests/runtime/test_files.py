"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from eagle3cli.errors import Eagle3Error, UsageError
from eagle3cli.runtime.files import locked, read_json, refuse_existing, write_folder, write_json, write_text, writing
from tests.conftest import ROOT
from tests.failing import fails


def test_text_and_json_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "a.json", {"ü": [1, None]})
    assert read_json(tmp_path / "new" / "a.json") == {"ü": [1, None]}
    assert os.listdir(tmp_path / "new") == ["a.json"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail() -> None:
        with writing(path) as file:
            file.write("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_kill_9_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    code = (
        "import os, signal, sys; from pathlib import Path; from eagle3cli.runtime.files import writing\n"
        "with writing(Path(sys.argv[1])) as f: f.write('half'); f.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_a_full_disk_names_the_file_and_the_fix(tmp_path: Path) -> None:
    with pytest.raises(Eagle3Error) as caught, writing(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.where == str(tmp_path / "a.txt")
    assert "make space" in str(caught.value)
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_really_full_device_is_told_by_the_program() -> None:
    command = [sys.executable, "-m", "eagle3cli", "config", "schema"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error [disk-full]: ")
    assert "Traceback" not in done.stderr


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "a").write_text("new")

    def fail(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise ZeroDivisionError

    write_folder(tmp_path / "made", fill)
    with pytest.raises(ZeroDivisionError):
        write_folder(tmp_path / "made", fail)
    assert (tmp_path / "made" / "a").read_text() == "new"
    assert os.listdir(tmp_path) == ["made"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot exchange two folders at once")
def test_a_folder_that_several_processes_write_is_whole_at_every_moment(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        for name in ("a", "b"):
            (folder / name).write_text(str(os.getpid()))

    place = tmp_path / "made"
    write_folder(place, fill)
    writers = []
    for _ in range(3):
        writers.append(os.fork())
        if not writers[-1]:
            code = 1
            with suppress(Exception):
                for _ in range(20):
                    write_folder(place, fill)
                code = 0
            os._exit(code)
    for writer in writers:
        while (ended := os.waitpid(writer, os.WNOHANG)) == (0, 0):
            assert place.is_dir()
        assert ended == (writer, 0)
    assert (place / "a").read_text() == (place / "b").read_text()
    assert os.listdir(tmp_path) == ["made"]


@pytest.mark.parametrize("content", [None, "{", b"\xff"])
def test_json_that_cannot_be_read_names_the_file(content: str | bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(Eagle3Error) as caught:
        read_json(path)
    assert caught.value.where == str(path)


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with fails("already-exists"):
        refuse_existing(tmp_path / "a", overwrite=False)
    refuse_existing(tmp_path / "a", overwrite=True)
    assert not (tmp_path / "a").exists()
    refuse_existing(tmp_path / "a", overwrite=False)


def test_a_file_system_without_locks_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refused)
    with locked(tmp_path, UsageError("locked", "taken", where="", fix="")):
        (tmp_path / "written").touch()
    assert (tmp_path / "written").exists()
