"""What is offered where the cursor stands, without a shell."""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from eagle3cli.cli import main as cli
from eagle3cli.cli.completion import values
from eagle3cli.cli.completion.complete import complete
from eagle3cli.cli.completion.shells import script, split
from eagle3cli.data.chat.named import NAMED
from eagle3cli.data.sources.presets import PRESETS
from eagle3cli.models.packaged import packaged_configs
from eagle3cli.serving.bench.tasks import NAMES as BENCHMARKS
from eagle3cli.settings.fields import fields, tables
from eagle3cli.settings.packaged import recipes
from tests.conftest import ROOT

NAMES = [spec.name for spec in cli.TABLE]


def offered(line: str) -> list[str]:
    """The words offered for the last word of ``line`` (after "eagle3 ")."""
    words, current = split(line)
    return list(complete(words, current, cli.TABLE).words)


def paths(line: str) -> str:
    words, current = split(line)
    return complete(words, current, cli.TABLE).paths


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", NAMES),
        ("tra", ["train"]),
        ("--v", ["--version"]),
        ("--install-completion z", ["zsh"]),
        ("nonsense ", []),
        ("config s", ["show", "schema"]),
        ("hidden-states ver", ["verify"]),
        ("train --lear", ["--learning-rate"]),
        ("train --learning-rate 1e-4 --lear", []),
        ("train --draft-g", ["--draft-global-batch-size"]),
        ("train --res", ["--resume"]),
        ("train --no-res", ["--no-resume"]),
        ("train --mode ", ["online", "offline"]),
        ("train --mode off", ["offline"]),
        ("train --mode=off", ["--mode=offline"]),
        ("train --learning-rate ", []),
        ("prepare ", list(PRESETS)),
        ("prepare gsm8k ", [name for name in PRESETS if name != "gsm8k"]),
        ("prepare gsm8k --seed 3 mag", ["magpie", "magicoder"]),
        ("cache --chat-template ", ["auto", *NAMED]),
        ("view --check-template phi4", ["phi4", "phi4-mini"]),
        ("train --draft-model-config qwen3-8", ["qwen3-8b"]),
        ("train --draft-model-config ", ["auto", *packaged_configs()]),
        ("run ", list(recipes())),
        ("run --config a.toml quic", ["quickstart"]),
        ("bench --benchmark-list ", [f"{name}:" for name in BENCHMARKS]),
        ("bench --benchmark-list mtbench:", ["mtbench:8", "mtbench:80"]),
        ("bench --benchmark-list=gsm", ["--benchmark-list=gsm8k:"]),
        ("bench --benchmark-list mtbench:80 gsm8k:200 hum", ["humaneval:"]),
        ("bench --benchmark-list gsm8k:20 --config-list 4,", ["4,0,0,0", "4,3,1,4", "4,7,10,60"]),
        ("bench --config-list 1,0,0,0 4,3,1,4 4,", ["4,0,0,0", "4,7,10,60"]),
        ("train --set tr", ["train."]),
        ("train --set train.batch", ["train.batch_size="]),
        ("train --set train.mode=", ["train.mode=online", "train.mode=offline"]),
        ("train --set train.resume=f", ["train.resume=false"]),
        ("cache --set data.chat_template=qwen3-i", ["data.chat_template=qwen3-instruct"]),
        ("train --set train.seed=1 view.se", ["view.seed="]),
        ("config show ", list(tables())),
        ("config show train run.k", ["run.k"]),
        ("config show eval", ["eval", *(key for key in fields() if key.startswith("eval."))]),
        ("config show --set eval.d", ["eval.depths="]),
        ("config check quic", ["quickstart"]),
        ("train -- --m", []),
        ("plan tra", ["train"]),
        ("plan quic", ["quickstart"]),
        ("plan run qui", ["quickstart"]),
        ("plan quickstart --time", ["--time-budget"]),
        ("plan cache --chat-template gl", ["glm"]),
        ("train --dry", ["--dry-run"]),
        ("train --gpus ", ["auto", "1", "2", "4", "8"]),
    ],
)  # fmt: skip
def test_words(line: str, expected: list[str]) -> None:
    assert offered(line) == expected


def test_flags_are_offered_by_their_usual_name_and_only_once() -> None:
    names = offered("train --")
    assert len(names) == len(set(names))
    assert {"--mode", "--batch-size", "--no-resume", "--set", "--config", "--json", "--help"} <= set(names)
    assert not {"--draft-global-batch-size", "--resume"} & set(names)
    left = offered("train --batch-size 4 --set a.b=1 --")
    assert set(names) - set(left) == {"--batch-size"}
    assert offered("train ") == offered("train --"), "with nothing else to offer the flags are"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train --train-data-path ", "files"),
        ("train --train-data-path=", "files"),
        ("train --output-dir ", "folders"),
        ("merge --input-dir x", "folders"),
        ("train --config ", "files"),
        ("prepare x", "files"),
        ("run x", "files"),
        ("export --draft-model-path ", "folders"),
        ("train --target-model-path ", "files"),
        ("bench --benchmark-list da", "files"),
        ("bench --benchmark-list gsm8k:", ""),
        ("train --mode ", ""),
        ("tra", ""),
    ],
)
def test_paths(line: str, expected: str) -> None:
    assert paths(line) == expected


@pytest.mark.parametrize("spec", cli.TABLE, ids=lambda spec: spec.name)
def test_every_command_offers_its_flags_with_help(spec: cli.CommandSpec) -> None:
    module = importlib.import_module(spec.module)
    words, current = split(f"{spec.name} show --" if hasattr(module, "app") else f"{spec.name} --")
    offered = complete(words, current, cli.TABLE).words
    assert {"--help", "--debug"} <= set(offered)
    assert all(offered.values())


def test_registered_values_name_keys_that_exist() -> None:
    keys = [name for name in values.SPECIAL if "." in name]
    assert keys
    assert set(keys) <= set(fields())
    assert set(fields()) >= values.IS_FOLDER


def draft(folder: str) -> None:
    path = Path(folder)
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLMEagle3"]}))
    (path / "model.safetensors").touch()


def test_folders_with_drafts_are_offered_and_others_only_where_none_fits() -> None:
    draft("runs/a/train/best")
    draft("runs/b/checkpoints/epoch_0_step_20")
    draft("elsewhere/draft")
    Path("runs/a/target").mkdir()
    Path("runs/a/target/config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    found = ["runs/a/train/best", "runs/b/checkpoints/epoch_0_step_20"]
    assert sorted(offered("export --draft-model-path ")) == found
    assert offered("eval --draft-model-path runs/b") == found[1:]
    assert offered("eval --draft-model-path elsewhere/") == ["elsewhere/draft"]
    assert paths("eval --draft-model-path runs/b") == ""
    assert paths("eval --draft-model-path else") == "folders"


def test_folders_of_runs_are_offered() -> None:
    for folder, name in (("runs/a", "metrics.jsonl"), ("runs/b", "stages.json"), ("runs/b/train", "metrics.jsonl")):
        Path(folder).mkdir(parents=True)
        Path(folder, name).touch()
    assert sorted(offered("watch ")) == ["runs/a", "runs/b", "runs/b/train"]
    assert sorted(offered("report runs/a ")) == ["runs/b", "runs/b/train"]
    assert offered("report runs/b/") == ["runs/b/train"]


def test_models_in_the_hubs_cache_are_offered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "hub" / "models--Qwen--Qwen3-8B").mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert offered("train --target-model-path Qw") == ["Qwen/Qwen3-8B"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("eagle3 train", (["eagle3"], "train")),
        ("eagle3 train ", (["eagle3", "train"], "")),
        ('eagle3 --set "a.b=x y', (["eagle3", "--set"], "a.b=x y")),
        ("eagle3 'a b", (["eagle3"], "a b")),
        ("eagle3 a\\ b", (["eagle3"], "a b")),
        ("eagle3 a\\", (["eagle3"], "a")),
        ("", ([], "")),
    ],
)
def test_a_line_up_to_the_cursor(line: str, expected: tuple[list[str], str]) -> None:
    assert split(line) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shipped_completion_scripts_are_current(shell: str) -> None:
    shipped = (ROOT / "completions" / f"eagle3.{shell}").read_text(encoding="utf-8")
    assert shipped == script(shell), "run make completions"
    shown = subprocess.run(
        [sys.executable, "-m", "eagle3cli", "--show-completion", shell], cwd=ROOT, stdout=-1, text=True
    )
    assert shown.stdout == shipped


LINES = [
    *("", "train --mode ", "prepare ", "bench --benchmark-list ", "view --chat-template ", "run ", "plan ", "watch "),
    *("export --draft-model-path ", "train --draft-model-config ", "train --set train.", "config show "),
]


def test_completion_imports_neither_torch_nor_typer() -> None:
    """config alone is written for Typer by hand."""
    code = (
        "import os, sys; os.environ['_EAGLE3_COMPLETE'] = 'zsh'\n"
        "heavy = {'torch', 'transformers', 'datasets', 'huggingface_hub', 'httpx', 'pyarrow', 'numpy', 'rich'}\n"
        "from eagle3cli.cli.main import entry\n"
        f"for words in {[[*shlex.split(line), ''] for line in LINES]!r}:\n"
        "    sys.argv = ['eagle3', *words]; entry()\n"
        "    assert not heavy & set(sys.modules), (words, heavy & set(sys.modules))\n"
        "    assert 'typer' not in sys.modules or words[0] == 'config', words\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train\tTrain the draft" in done.stdout
