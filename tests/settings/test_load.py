"""Layers of settings, the origin of each value, and what a person is told about a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagle3cli.errors import UsageError
from eagle3cli.settings.fields import fields
from eagle3cli.settings.load import load, parse_value
from eagle3cli.settings.tables import Settings
from tests.failing import fails


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> Path:
    Path(name).write_text(text)
    return Path(name)


def test_without_files_all_is_default() -> None:
    loaded = load()
    assert loaded.settings == Settings()
    assert loaded.origin("train.batch_size") == "default"
    assert loaded.files == ()


def test_each_layer_wins_over_the_one_below_and_its_origin_is_known() -> None:
    write("eagle3.toml", "[train]\nbatch_size = 1\nseed = 1\nnum_epochs = 1\nttt_length = 1\n\n[view]\nseed = 1\n")
    first = write("a.toml", "[train]\nseed = 2\nnum_epochs = 2\nttt_length = 2\n")
    second = write("b.toml", "# later\n[train]\nnum_epochs = 3\nttt_length = 3\n")
    loaded = load([first, second], ["train.ttt_length=4", "view.seed=4"], {"view.seed": ("--seed", "5")})
    train = loaded.settings.train
    assert (train.batch_size, train.seed, train.num_epochs, train.ttt_length) == (1, 2, 3, 4)
    assert loaded.settings.view.seed == 5
    origins = {key: loaded.origin(f"train.{key}") for key in ("batch_size", "seed", "num_epochs", "ttt_length", "mode")}
    assert origins == {
        "batch_size": "eagle3.toml:2",
        "seed": "a.toml:2",
        "num_epochs": "b.toml:3",
        "ttt_length": "--set train.ttt_length",
        "mode": "default",
    }
    assert loaded.origin("view.seed") == "--seed"
    assert loaded.files == (Path("eagle3.toml"), first, second)


def test_values_of_every_kind_from_a_file() -> None:
    file = write(
        "a.toml",
        '[draft]\naux_layers = [\n  1,\n  2,  # two\n  3,\n]\n[train]\noutput_dir = "runs/x"\nresume = false\n'
        'learning_rate = 5e-5\nmode = "offline"\n[bench]\nconfig_list = ["1,0,0,0"]\n',
    )
    settings = load([file]).settings
    assert settings.draft.aux_layers == (1, 2, 3)
    assert settings.train.output_dir == Path("runs/x")
    assert (settings.train.resume, settings.train.learning_rate, settings.train.mode) == (False, 5e-5, "offline")
    assert settings.bench.config_list == ("1,0,0,0",)


@pytest.mark.parametrize(
    "text",
    [
        "train.batch_size = 8",
        "train = {batch_size = 8}",
        '"train"."batch_size" = 8',
        "\ufeff[train]\r\nbatch_size = 8\r\n",
    ],
)
def test_all_ways_to_write_a_key(text: str) -> None:
    Path("a.toml").write_bytes(text.encode())
    assert load([Path("a.toml")]).settings.train.batch_size == 8


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.batch_size", "8", 8),
        ("train.learning_rate", "5e-5", 5e-5),
        ("train.resume", "no", False),
        ("train.total_steps", "none", None),
        ("train.time_budget", '"40m"', "40m"),
        ("regenerate.sample_range", "0:10", "0:10"),
        ("regenerate.system_prompt", "[be kind", "[be kind"),
        ("draft.aux_layers", "[1, 2, 3]", (1, 2, 3)),
        ("draft.aux_layers", "3", (3,)),
        ("bench.config_list", "1,0,0,0", ("1,0,0,0",)),
        ("data.train_path", "a b/c=d.jsonl", Path("a b/c=d.jsonl")),
    ],
)
def test_what_set_understands(key: str, text: str, value: object) -> None:
    settings = load(assignments=[f"{key}={text}"]).settings
    table, name = key.split(".")
    assert getattr(getattr(settings, table), name) == value


@pytest.mark.parametrize(
    ("assignment", "where", "part"),
    [
        ("train.batch_size", "--set", "write --set table.key=value"),
        ("batch_size=3", "--set", "write --set table.key=value"),
        ("train.batchsize=3", "--set", "did you mean train.batch_size?"),
        ("train.batch_size=x", "--set train.batch_size", "'x' is not a whole number, at least 1"),
        ("train.ttt_length=17", "--set train.ttt_length", "at least 1, at most 16"),
    ],
)
def test_a_mistake_in_set_names_it(assignment: str, where: str, part: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(assignments=[assignment])
    assert caught.value.where == where
    assert part in str(caught.value)


def test_a_mistake_in_a_flag_names_the_flag() -> None:
    with fails("invalid-value", "'0'") as caught:
        load(flags={"train.learning_rate": ("--learning-rate", "0")})
    assert caught.value.where == "--learning-rate"


def test_all_wrong_values_are_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        load([write("a.toml", "[train]\nbatch_size = 0\nseed = 1\nmax_grad_norm = -1\n")], ["view.seed=x"])
    message = str(caught.value)
    assert message.startswith("3 settings are wrong\n")
    assert "a.toml:2: train.batch_size" in message
    assert "a.toml:4: train.max_grad_norm" in message
    assert "--set view.seed" in message


@pytest.mark.parametrize("content", [None, b"\xff\xfe[train]"])
def test_a_file_that_cannot_be_read(content: bytes | None) -> None:
    if content is not None:
        Path("nope.toml").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load([Path("nope.toml")])
    assert caught.value.where == "nope.toml"


def test_a_wrong_value_below_a_right_one_does_no_harm() -> None:
    """Only the value that counts is judged."""
    file = write("a.toml", "[train]\nbatch_size = 0\n")
    assert load([file], flags={"train.batch_size": ("--batch-size", "2")}).settings.train.batch_size == 2


def test_text_of_a_set_stays_text() -> None:
    assert parse_value(fields()["train.time_budget"], "40m") == "40m"
