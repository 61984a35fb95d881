"""eagle3 refresh as typed: a log of a server's traffic becomes a better draft, or the served one stays as it is."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.data.traffic.private import EMAIL
from eagle3cli.models.checkpoint import check_folder
from eagle3cli.pipeline.refresh.versions import Versions
from tests.commands.refresh_case import NEW, exchange, make_served, own_replies, prompts, write_log
from tests.conftest import RunCli

REFRESH = ("refresh", "runs/draft", "--json", "--logs")
_made: dict[str, tuple[Path, dict[str, str], dict[str, str]]] = {}


@pytest.fixture
def served(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, run_cli: RunCli, tiny: Path) -> Path:
    """A folder with a served draft, made once."""
    if "here" not in _made:
        folder = tmp_path_factory.mktemp("served")
        make_served(run_cli, folder, tiny)
        greedy = own_replies(run_cli, folder, prompts(NEW, 90), "new")
        texts = [f"Ask {EMAIL} for {word}." for word in NEW]
        _made["here"] = (folder, greedy, own_replies(run_cli, folder, texts, "mailed"))
    shutil.copytree(_made["here"][0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def replies() -> dict[str, str]:
    return _made["here"][1]


def mailed() -> dict[str, str]:
    return _made["here"][2]


def weights(draft: Path) -> bytes:
    return (draft / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_traffic_makes_a_better_draft_once_and_it_can_be_taken_back(
    served: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = served / "runs" / "draft"
    before = weights(draft)
    pairs = list(replies().items())
    assert len(pairs) > 42
    key = "sk-" + "a1B2" * 8
    rows = [exchange(prompt, reply) for prompt, reply in pairs[:30]]
    rows += [{**exchange(*pair), "edited": True} for pair in pairs[32:36]]
    rows += [exchange(prompt, "made up", temperature=0.7) for prompt, _ in pairs[36:38]]
    rows += [exchange(prompt.replace(EMAIL, "ann@mail.net"), reply) for prompt, reply in list(mailed().items())[:2]]
    rows += [exchange(f"{prompt} {key}", reply) for prompt, reply in pairs[30:32]]
    rows += [*rows[:3], "a damaged line", {"level": "info"}]
    with gzip.open(served / "server.jsonl.gz", "wt") as file:
        file.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    with monkeypatch.context() as patch:  # killed before its decision: what is done by then is not done again
        patch.setattr(Versions, "commit", interrupted)
        assert run_cli(*REFRESH, "server.jsonl.gz", "--time-budget", "10m", cwd=served).code == 130
    assert weights(draft) == before
    ran = run_cli(*REFRESH, "server.jsonl.gz", "--time-budget", "10m", cwd=served)
    assert "going on from" in ran.err
    assert "hidden states of" in ran.err  # of several passes the target makes one
    assert ran.code == 3, ran.err  # a line was damaged
    result = ran.json
    assert result["promoted"], result["reason"]
    counts = result["rows"]
    assert (counts["read"], counts["rejected"], counts["duplicates"], counts["written"]) == (45, 1, 3, 38)
    assert counts["reasons"]["holds an API key (sk-)"] == 2
    assert counts["origins"] == {"greedy": 30, "edited": 6, "sampled": 2}
    judged = counts["judged"]  # text of a random target may have other tokens than those that it wrote
    assert judged["own"] >= 26
    assert judged["to regenerate"] >= 4
    assert 2 <= judged["foreign"] <= 7
    usable = counts["usable"]["usable"]
    assert usable == judged["own"] + judged["to regenerate"]
    assert counts["trained_on"] == usable - usable // 5
    assert counts["rehearsed"] == min(counts["trained_on"], len((served / "train.jsonl").read_text().splitlines()))
    assert set(result["acceptance"]) == {"traffic", "old"}
    traffic = result["acceptance"]["traffic"]
    assert traffic["after"] > traffic["before"]
    assert result["next"].startswith("eagle3 bench")
    assert draft.is_symlink()
    assert weights(draft) != before
    check_folder(draft)
    versions = served / "runs" / "draft.versions"
    assert weights(versions / "v0") == before
    assert not (versions / "work").exists()
    kept = "".join((versions / "data" / "1" / name).read_text() for name in ("train.jsonl", "eval.jsonl"))
    assert key not in kept
    assert "ann@" not in kept
    assert EMAIL in kept
    assert "made up" not in kept
    lines = [json.loads(line) for line in (versions / "ledger.jsonl").read_text().splitlines()]
    assert [(line["version"], line["event"], line.get("promoted")) for line in lines] == [
        (0, "base", None),
        (1, "refresh", True),
    ]
    assert list(lines[1]["logs"]) == ["server.jsonl.gz"]
    assert lines[1]["acceptance"] == result["acceptance"]

    again = run_cli(*REFRESH, "server.jsonl.gz", cwd=served)
    assert (again.code, again.json["promoted"]) == (0, False)
    assert again.json["state"].startswith("nothing new")
    more = write_log(served / "more.jsonl", [*rows[:30], *(exchange(*pair) for pair in pairs[38:42])])
    (served / "quiet.jsonl").touch()
    waiting = run_cli(*REFRESH, "quiet.jsonl", more, cwd=served)
    assert waiting.json["state"].startswith("waiting: 4 new rows of at least 16"), waiting.json
    assert len((versions / "ledger.jsonl").read_text().splitlines()) == 2

    back = run_cli("refresh", "runs/draft", "--rollback", cwd=served)
    assert (back.code, "version 0 again" in back.out) == (0, True), back.err
    assert weights(draft) == before
    assert run_cli("refresh", "runs/draft", "--rollback", "1", cwd=served).code == 0
    assert weights(draft) != before
    wrong = run_cli("refresh", "runs/draft", "--rollback", "9", cwd=served)
    assert (wrong.code, "version 9 is not there (there are: 0, 1)" in wrong.err) == (2, True)


def interrupted(*args: object) -> None:
    raise KeyboardInterrupt


def garbage() -> list[Any]:
    return [exchange(prompt, f"zq {i} xv", temperature=0) for i, prompt in enumerate(replies())]


def anothers() -> list[Any]:
    pairs = list(replies().items())
    swapped = zip(pairs, pairs[1:] + pairs[:1], strict=True)
    return [exchange(prompt, reply) for (prompt, _), (_, reply) in swapped]


def flood() -> list[Any]:
    prompt, reply = next(iter(replies().items()))
    return [exchange(prompt, reply) for _ in range(10_000)]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("poison", "reason"),
    [
        (garbage, "not promoted: the logs are not trusted"),
        (anothers, "not promoted: the logs are not trusted"),
        (flood, "waiting: 1 new rows"),
    ],
)
def test_a_poisoned_log_is_not_promoted(
    served: Path, run_cli: RunCli, poison: Callable[[], list[Any]], reason: str
) -> None:
    draft = served / "runs" / "draft"
    before = weights(draft)
    write_log(served / "server.jsonl", poison())
    ran = run_cli(*REFRESH, "server.jsonl", cwd=served)
    assert ran.code == 0, ran.err
    assert not ran.json["promoted"]
    assert ran.json["state"].startswith(reason)
    assert not draft.is_symlink()
    assert weights(draft) == before


@pytest.mark.slow
def test_what_is_missing_is_said(served: Path, run_cli: RunCli) -> None:
    write_log(served / "server.jsonl", [exchange(*pair) for pair in replies().items()])
    none = run_cli("refresh", "runs/draft", cwd=served)
    assert (none.code, none.error == "missing-data") == (2, True)
    pipe = run_cli("refresh", "runs/draft", "--logs", "/dev/null", cwd=served)
    assert (pipe.code, pipe.error == "not-a-file") == (1, True)
    lost = run_cli("refresh", "runs/draft", "--logs", "serve.jsonl", cwd=served)
    assert (lost.code, lost.error == "no-such-path") == (1, True)
    run = run_cli("refresh", "runs/train", "--logs", "server.jsonl", cwd=served)
    assert (run.code, run.error == "not-a-draft" and "runs/train/best" in run.err) == (2, True)
    for name in ("train.jsonl", "eval.jsonl"):
        (served / name).unlink()
    gone = run_cli("refresh", "runs/draft", "--logs", "server.jsonl", cwd=served)
    assert gone.code == 2
    assert gone.error == "old-rows-missing"
    shutil.rmtree(served / "runs" / "train")
    unknown = run_cli("refresh", "runs/draft", "--logs", "server.jsonl", cwd=served)
    assert (unknown.code, "runs/train/settings.toml" in unknown.err) == (2, True), unknown.err
