"""Flags made from the settings tables, and several values after one flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.cli import options
from eagle3cli.cli.argv import repeat_flags
from eagle3cli.cli.command import Command, fields_of
from eagle3cli.cli.options import function
from eagle3cli.errors import UsageError
from eagle3cli.settings.packaged import find_recipe, recipes
from eagle3cli.settings.tables import Settings


def command(**changes: Any) -> Command:
    kept: dict[str, Any] = {"fields": ("draft.*", "bench.config_list", "view.*"), "arguments": ("prepare.source",)}
    return Command("try", "Try.", ("eagle3 try",), lambda settings, out: None, **(kept | changes))


def parse(words: list[str], **changes: Any) -> Settings:
    """The settings that a command line gives."""
    got: list[Settings] = []
    tried = command(**{"fields": ("draft.*", "bench.config_list", "cache.view_train_data", "train.*"), **changes})
    tried = Command(**{**vars(tried), "run": lambda settings, out: got.append(settings)})
    app = typer.Typer()
    app.command("try")(function(tried))
    app(args=repeat_flags(words, tried), standalone_mode=False)
    return got[0]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_several_values_after_one_flag() -> None:
    words = ["--aux-layers", "1", "2", "3", "--config-list", "1,0,0,0", "4,3,1,4", "--view-train-data", "1", "2"]
    settings = parse(words)
    assert settings.draft.aux_layers == (1, 2, 3)
    assert settings.bench.config_list == ("1,0,0,0", "4,3,1,4")
    assert settings.cache.view_train_data == (1, 2)


@pytest.mark.parametrize(
    ("has_bfloat16", "gpus", "device", "dtype"),
    [
        (True, 0, "auto", "bfloat16"),
        (False, 0, "auto", "auto"),
        (True, 2, "auto", "auto"),
        (True, 2, "cpu", "bfloat16"),
        (True, 0, "cuda", "auto"),
    ],
)
def test_the_fastest_type_of_a_target(
    has_bfloat16: bool, gpus: int, device: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "has_bfloat16", lambda: has_bfloat16)
    monkeypatch.setattr(options, "visible_gpus", lambda: gpus)
    assert parse(["--dtype", "fastest", "--device", device], fields=("target.*",)).target.dtype == dtype


def test_a_flag_may_also_be_repeated_or_joined_with_equals() -> None:
    assert parse(["--aux-layers", "1", "--aux-layers", "2"]).draft.aux_layers == (1, 2)
    assert parse(["--aux-layers=1", "--aux-layers=2"]).draft.aux_layers == (1, 2)


def test_several_assignments_after_one_set_and_a_position_after_them() -> None:
    settings = parse(["--set", "train.seed=3", "view.seed=4", "gsm8k"])
    assert (settings.train.seed, settings.view.seed, settings.prepare.source) == (3, 4, ("gsm8k",))


def test_a_position_after_numbers_is_not_taken_for_one() -> None:
    settings = parse(["--aux-layers", "1", "2", "gsm8k"])
    assert (settings.draft.aux_layers, settings.prepare.source) == ((1, 2), ("gsm8k",))


def test_what_is_not_typed_leaves_the_file_in_force() -> None:
    Path("eagle3.toml").write_text("[train]\nresume = false\nbatch_size = 8\n[draft]\naux_layers = [4]\n")
    settings = parse(["--batch-size", "4"])
    assert (settings.train.batch_size, settings.train.resume, settings.draft.aux_layers) == (4, False, (4,))


def test_a_flag_may_set_a_value_back_to_its_default() -> None:
    Path("eagle3.toml").write_text("[train]\nresume = false\n")
    assert parse(["--resume"]).train.resume is True


@given(st.lists(st.text(min_size=1), max_size=6))
def test_words_without_a_many_valued_flag_are_left_alone(words: list[str]) -> None:
    words = [word for word in words if word not in ("--set", "--aux-layers")]
    assert repeat_flags(words, command(fields=("draft.*",))) == words


@given(st.lists(st.integers(-5, 99), min_size=1, max_size=6))
def test_each_value_gets_its_flag(values: list[int]) -> None:
    words = repeat_flags(["--aux-layers", *map(str, values), "--json"], command())
    assert words == [w for value in values for w in ("--aux-layers", str(value))] + ["--json"]


def test_words_after_two_dashes_are_left_alone() -> None:
    assert repeat_flags(["--aux-layers", "1", "--", "2", "3"], command()) == ["--aux-layers", "1", "--", "2", "3"]


def test_two_fields_of_one_command_cannot_share_a_flag() -> None:
    with pytest.raises(ValueError, match="--output-dir would set both merge.output_dir and train.output_dir"):
        fields_of(command(fields=("merge.output_dir", "train.output_dir")))


def test_an_unknown_field_is_a_programming_error() -> None:
    with pytest.raises(KeyError, match="train.nope"):
        fields_of(command(fields=("train.nope",)))


def test_a_recipe_is_a_settings_file_below_config() -> None:
    Path("r.toml").write_text("[train]\nseed = 1\nbatch_size = 1\n")
    Path("c.toml").write_text("[train]\nseed = 2\n")
    settings = parse(["r.toml", "--config", "c.toml"], recipe=True, arguments=())
    assert (settings.train.seed, settings.train.batch_size) == (2, 1)


def test_a_recipe_that_does_not_exist_is_told_with_what_there_is() -> None:
    with pytest.raises(UsageError) as caught:
        find_recipe("nonsense")
    assert caught.value.where == "RECIPE"
    for name in recipes():
        assert find_recipe(name).is_file()
