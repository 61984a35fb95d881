"""What the program never does: unpickle, run a shell, delete behind links, read beside an index, let a key out."""

from __future__ import annotations

import ast
import json
import os
import stat
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from eagle3cli.backends.target.head import read_target_tensors
from eagle3cli.cli.remote_code import code_files
from eagle3cli.models.card import Origin, model_card
from eagle3cli.models.checkpoint import read_tensors
from eagle3cli.models.config import FLAGS
from eagle3cli.runtime import files
from eagle3cli.runtime.files import refuse_existing, remove, write_folder, write_text
from tests.conftest import ROOT, RunCli
from tests.failing import fails
from tests.tiny import SETTINGS, conversations

SECRETS = {
    "HF_TOKEN": "hf_SecretSecretSecretSecret01",
    "WANDB_API_KEY": "wandbSecret0123456789wandbSecret01234567",
    "SWANLAB_API_KEY": "swanlabSecret0123456789",
    "OPENAI_API_KEY": "sk-SecretSecretSecret0123",
    "EAGLE3_API_KEY": "serverSecret0123456789",
}
HOSTILE = '"><img src=x onerror=alert(1)> | [x](javascript:alert(1)) `a`\n\n# title\n<script>alert(1)</script>'


@cache
def calls() -> list[tuple[str, ast.Call, Path]]:
    """Every call in the package, by its dotted name."""
    found = []
    for path in sorted((ROOT / "eagle3cli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                found.append((ast.unparse(node.func), node, path))
    return found


def given(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(word.value) for word in call.keywords if word.arg == name), None)


@pytest.mark.slow
def test_no_shell_no_pickle_no_archive_that_unpacks_itself() -> None:
    refused = {"os.system", "os.popen", "pickle.load", "pickle.loads", "shutil.unpack_archive", "yaml.load", "eval"}
    refused |= {"tempfile.mktemp", "np.load", "numpy.load", "marshal.loads", "joblib.load"}
    for name, call, path in calls():
        assert name not in refused, f"{path}:{call.lineno}: {name}"
        assert not name.endswith((".extractall", ".extract")), f"{path}:{call.lineno}: {name}"
        assert given(call, "shell") in (None, "False"), f"{path}:{call.lineno}: shell"
        if name in ("torch.load", "load") and "map_location" in ast.unparse(call):
            assert given(call, "weights_only") == "True", f"{path}:{call.lineno}: torch.load unpickles"
        if name == "exec":
            assert path.name == "sandboxed.py", f"{path}:{call.lineno}: exec"


@pytest.mark.slow
def test_remote_code_is_never_allowed_by_the_program_itself() -> None:
    for _, call, path in calls():
        value = given(call, "trust_remote_code")
        assert value != "True", f"{path}:{call.lineno}: {value}"


def test_no_address_that_others_reach() -> None:
    for path in (ROOT / "eagle3cli").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "0.0.0.0" not in text, path
        assert 'bind(("",' not in text, path


# Links and the places that people live in.


def test_nothing_is_deleted_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    link = tmp_path / "out"
    link.symlink_to(tmp_path / "precious")
    with fails("unsafe-overwrite"):
        refuse_existing(link, overwrite=True)
    remove(link)
    assert not link.is_symlink()
    assert (tmp_path / "precious" / "file").read_text() == "x"
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "absent")
    with fails("already-exists"):
        refuse_existing(dangling, overwrite=False)


@pytest.mark.parametrize("overwrite", ["train", "export"])
def test_overwrite_through_a_link_is_refused(overwrite: str, tmp_path: Path, tiny: Path, run_cli: RunCli) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "settings.toml").write_text("")
    (tmp_path / "link").symlink_to(precious)
    (tmp_path / "train.jsonl").write_text(conversations(4, 0))
    words = ("train", "--train-data-path", "train.jsonl", "--output-dir", "link", "--overwrite")
    if overwrite == "train":
        ran = run_cli(*words, "--target-model-path", tiny)
        assert (ran.code, ran.error == "unsafe-overwrite") == (2, True), ran.err
    else:
        write_folder(tmp_path / "link", lambda folder: write_text(folder / "new", "x"))
        assert (tmp_path / "link" / "new").exists()
    assert (precious / "settings.toml").exists()


def test_folders_that_people_live_in_are_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home" / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "home", Path(".")):
        with fails("unsafe-overwrite"):
            refuse_existing(folder, overwrite=True)
    refuse_existing(tmp_path / "home" / "work", overwrite=True)
    assert not (tmp_path / "home" / "work").exists()


def test_overwrite_deletes_a_run_and_nothing_else(tmp_path: Path, tiny: Path, run_cli: RunCli) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(conversations(4, 0))
    words = ("train", "--train-data-path", "data/train.jsonl", "--target-model-path", tiny, "--overwrite")
    ran = run_cli(*words, "--output-dir", "data")
    assert (ran.code, ran.error == "foreign-files") == (2, True), ran.err
    assert (tmp_path / "data" / "train.jsonl").exists()


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    path = tmp_path / "out.json"
    files._temporary(path).symlink_to(tmp_path / "precious")
    write_text(path, "new")
    assert ((tmp_path / "precious").read_text(), path.read_text()) == ("x", "new")
    folder = tmp_path / "folder"
    (tmp_path / "kept").mkdir()
    files._temporary(folder).symlink_to(tmp_path / "kept")
    write_folder(folder, lambda inside: write_text(inside / "a", "x"))
    assert (list((tmp_path / "kept").iterdir()), (folder / "a").read_text()) == ([], "x")


# Names that lead elsewhere.


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/secret.safetensors", "a/../../b.safetensors", "..", ""]
)
def test_an_index_names_files_beside_it_alone(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"model.embed_tokens.weight": torch.zeros(2, 2)}, tmp_path / "secret.safetensors")
    index = {"weight_map": {"model.embed_tokens.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"num_hidden_layers": 1, "model_type": "llama"}')
    with fails("damaged-file"):
        read_tensors(folder)
    with fails("damaged-file"):
        read_target_tensors(str(folder))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "quickstart/../../x"])
def test_names_of_packaged_things_are_no_paths(name: str, run_cli: RunCli, tiny: Path) -> None:
    for words in (
        ("run", name),
        ("train", "--draft-model-config", name, "--target-model-path", tiny, "--train-data-path", "x.jsonl"),
        ("regenerate", "--recorded", name, "--engine", "local", "--target-model-path", tiny, "--input-path", "x.jsonl"),
    ):
        ran = run_cli(*words)
        assert ran.code in (1, 2), ran.err
        assert ran.error
        assert "Traceback" not in ran.err


# What is shown.


def test_a_model_card_shows_hostile_names_as_text() -> None:
    config: Any = SimpleNamespace(
        aux_layers=(1, 2, 3),
        num_hidden_layers=1,
        hidden_size=8,
        intermediate_size=8,
        draft_vocab_size=4,
        vocab_size=8,
        max_position_embeddings=16,
        latent=None,
        **dict.fromkeys(FLAGS, False),
    )
    origin = Origin(HOSTILE, [HOSTILE], {"loss": HOSTILE, "chat_template": "a|b"})
    card = model_card(HOSTILE, config, origin, {}, licence=HOSTILE, target=None)
    header, body = card.split("\n---\n", 1)
    assert "<" not in body
    assert "\n# title" not in body
    assert "](javascript" not in body.replace("\\](javascript", "")
    assert "| chat_template | a\\|b |" in body
    assert len([line for line in header.split("\n") if line.startswith("license:")]) == 1
    assert all(line.startswith(("---", "license:", "pipeline", "tags:", "- ")) for line in header.split("\n"))


def test_remote_code_is_told_with_its_files_and_who_allowed_it(tmp_path: Path, tiny: Path, run_cli: RunCli) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in tiny.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "configuration_x.X", "AutoModel": "them/model--modeling_x.Y"}
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "config.json").write_text(json.dumps(config))
    assert code_files(tmp_path / "code") == ["configuration_x.py", "modeling_x.py"]
    (model / "own.py").write_text("")
    (tmp_path / "train.jsonl").write_text(conversations(2, 0))
    (tmp_path / "eagle3.toml").write_text("[target]\ntrust_remote_code = true\n")
    words = ("view", "1", "--target-model-path", model, "--train-data-path", "train.jsonl")
    told = run_cli(*words)
    assert "warning: eagle3.toml:2: own.py of " in told.err
    assert "may run on this machine with your rights" in told.err
    quiet = run_cli(*words, "--no-trust-remote-code")
    assert "your rights" not in quiet.err


# Files, and what stands in them.


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_have_the_rights_that_the_umask_leaves(umask: int, tmp_path: Path, tiny: Path, run_cli: RunCli) -> None:
    (tmp_path / "train.jsonl").write_text(conversations(14, 0))
    (tmp_path / "eagle3.toml").write_text(SETTINGS.format(tiny=tiny).replace('eval_path = "eval.jsonl"', ""))
    before = os.umask(umask)
    try:
        assert run_cli("train", "--output-dir", "run", "--total-steps", "2").code == 0
        assert run_cli("export", "--draft-model-path", "run", "--output-path", "draft").code == 0
    finally:
        os.umask(before)
    for folder in ("run", "draft", "cache"):
        for path in [tmp_path / folder, *(tmp_path / folder).rglob("*")]:
            mode = stat.S_IMODE(path.stat().st_mode)
            assert not mode & umask, f"{path}: {mode:o}"
            assert mode & stat.S_IRUSR


@pytest.mark.slow
def test_no_key_of_the_environment_is_written_or_said(tmp_path: Path, tiny: Path, run_cli: RunCli) -> None:
    (tmp_path / "data.jsonl").write_text(conversations(16, 0))
    (tmp_path / "eval.jsonl").write_text(conversations(4, 100))
    settings = SETTINGS.format(tiny=tiny).replace("train.jsonl", "cache/prepared/train.jsonl")
    (tmp_path / "eagle3.toml").write_text(settings)
    down = ("--server-address-port", "127.0.0.1:9", "--engine", "sglang", "--dist-timeout", "1")
    chain: tuple[tuple[object, ...], ...] = (
        ("prepare", "data.jsonl", "--output-path", "cache/prepared"),
        ("cache",),
        ("train", "--output-dir", "run", "--total-steps", "2"),
        ("export", "--draft-model-path", "run", "--output-path", "draft"),
        (
            "bench",
            "--engine",
            "local",
            "--benchmark-list",
            "eval.jsonl:2",
            "--config-list",
            "1,0,0,0",
            "--max-tokens",
            2,
        ),
        ("regenerate", *down, "--input-path", "data.jsonl", "--output-dir", "regenerated"),
        ("config", "show"),
    )
    said = ""
    for words in chain:
        ran = run_cli(*words, env=SECRETS)
        said += ran.out + ran.err
        if words[0] != "regenerate":  # no server is there: an error that could name the key
            assert ran.code == 0, ran.err
    for name, secret in SECRETS.items():
        assert secret not in said, name
        for path in tmp_path.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), (name, path)
