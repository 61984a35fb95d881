"""train and eval as typed: both modes, resume after every kind of stop, and what goes wrong."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eagle3cli.backends.target.head import read_target_tensors
from eagle3cli.models.checkpoint import check_folder
from tests.commands.train.runs import STATE, last_state, result_of, start, wait_for
from tests.conftest import RunCli
from tests.tiny import tiny_target


def test_online_leaves_folders_that_a_server_loads(trained: Path) -> None:
    result = json.loads((trained / "result.json").read_text())
    assert result["steps"] == 12
    assert len(result["acceptance_length"]) == 5
    run = trained / "run"
    names = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert names == ["epoch_1_step_6", "epoch_2_step_12", "epoch_2_step_9"]
    for folder in [run / "best", *(run / "checkpoints").iterdir()]:
        check_folder(folder)
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "step"] == [2, 4, 6, 8, 10, 12]
    assert [e["step"] for e in events if e["event"] == "eval"] == [6, 12]
    assert all(e["loss"] > 0 and len(e["accuracy"]) == 3 for e in events if e["event"] == "step")
    assert "vocab_size = 200" in (run / "settings.toml").read_text()


@pytest.mark.slow
def test_offline_gives_what_online_gives(place: Path, run_cli: RunCli) -> None:
    """The target in bfloat16, whose states the store keeps bit for bit."""
    assert run_cli("hidden-states", "--states-dtype", "bfloat16", "--batch-tokens", "1").code == 0
    result_of(run_cli("train", "--mode", "offline", "--output-dir", "off", "--json"))
    sources = ("--dtype", "bfloat16", "--draft-dtype", "float32", "--batch-size", "4")
    result_of(run_cli("train", "--mode", "online", "--output-dir", "on", *sources, "--json"))
    on, off = ([json.loads(x) for x in (place / n / "metrics.jsonl").read_text().splitlines()] for n in ("on", "off"))
    for a, b in zip(on, off, strict=True):
        if a["event"] == "step":
            assert a["loss"] == pytest.approx(b["loss"], rel=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--draft-micro-batch-size", "1"), ("--max-tokens-per-gpu", "40")])
def test_gradients_accumulate_to_the_whole_batch(place: Path, run_cli: RunCli, words: tuple[str, str]) -> None:
    short = ("--total-steps", "2", "--log-interval", "1", "--json")
    result_of(run_cli("train", "--output-dir", "whole", *short))
    result_of(run_cli("train", "--output-dir", "cut", *words, *short))
    whole, cut = (
        [json.loads(x) for x in (place / n / "metrics.jsonl").read_text().splitlines()] for n in ("whole", "cut")
    )
    for a, b in zip(whole, cut, strict=True):
        if a["event"] == "step":
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


@pytest.mark.slow
def test_a_kept_head_is_the_targets(place: Path, tiny: Path, run_cli: RunCli) -> None:
    """Also after going on from a checkpoint."""
    words = ("train", "--output-dir", "run", "--head-lr-scale", "0", "--json")
    result_of(run_cli(*words))
    newest = place / "run" / "checkpoints" / "epoch_2_step_12" / STATE
    newest.write_bytes(b"")
    assert result_of(run_cli(*words))["steps_this_time"] == 3
    best = load_file(place / "run" / "best" / "model.safetensors")
    ids = best["d2t"] + torch.arange(len(best["d2t"]))
    torch.testing.assert_close(best["lm_head.weight"], read_target_tensors(str(tiny))["head"][ids].float())


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_the_same(place: Path, run_cli: RunCli) -> None:
    result_of(run_cli("train", "--output-dir", "whole", "--json"))
    process = start(place, "--output-dir", "killed")
    wait_for(process, (place / "killed" / "checkpoints" / "epoch_1_step_6").exists)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert start(place, "--output-dir", "killed").wait() == 0
    assert last_state(place / "killed") == last_state(place / "whole")
    assert (place / "killed/best/model.safetensors").read_bytes() == (
        place / "whole/best/model.safetensors"
    ).read_bytes()
    steps = [json.loads(x)["step"] for x in (place / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


@pytest.mark.slow
def test_sigterm_saves_says_so_and_goes_on(place: Path, run_cli: RunCli) -> None:
    process = start(place, "--output-dir", "run", "--total-steps", "2000", "--num-epochs", "900")
    wait_for(process, lambda: any((place / "run" / "checkpoints").glob("epoch_*")))
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 128 + signal.SIGTERM
    assert "saved step" in said
    assert "run the same command again" in said


@pytest.mark.slow
def test_a_damaged_checkpoint_falls_back_to_the_one_before(place: Path, run_cli: RunCli) -> None:
    result_of(run_cli("train", "--output-dir", "run", "--json"))
    torn = place / "run" / "checkpoints" / ".epoch_9_step_99.tmp-999999999"  # of a save that kill -9 ended
    torn.mkdir()
    newest = place / "run" / "checkpoints" / "epoch_2_step_12" / STATE
    newest.write_bytes(newest.read_bytes()[:100])
    ran = run_cli("train", "--output-dir", "run", "--json")
    assert result_of(ran)["steps_this_time"] == 3
    assert "trying the one before" in ran.err
    assert not torn.exists()


@pytest.mark.slow
def test_other_settings_do_not_mix_with_an_earlier_run(finished: Path, run_cli: RunCli) -> None:
    ran = run_cli("train", "--output-dir", "run", "--learning-rate", "5e-4")
    assert ran.code == 2
    assert ran.error == "made-differently"
    table = [line.split() for line in ran.err.splitlines() if line.startswith("  ")]
    assert table == [["key", "was", "is"], ["train.learning_rate", "0.001", "0.0005"]]
    assert run_cli("train", "--output-dir", "run", "--no-resume").code == 2
    assert run_cli("train", "--output-dir", "run", "--learning-rate", "5e-4", "--overwrite").code == 0


@pytest.mark.slow
def test_every_option_of_the_step_resumes_exactly(place: Path, run_cli: RunCli) -> None:
    optimizer = "muon" if hasattr(torch.optim, "Muon") else "adamw"
    options = ("--loss", "mix", "--kl-scale", "0.9", "--optimizer", optimizer, "--anchor-fraction", "0.7", "--fc-norm")
    more = ("--norm-output", "--activation-checkpointing", "--alignment", "specforge", "--early-stop", "50", "--json")
    more = ("--ema-decay", "0.9", *more)
    result_of(run_cli("train", "--output-dir", "whole", *options, *more))
    cut = ("train", "--output-dir", "cut", *options, *more)
    result_of(run_cli(*cut))
    newest = place / "cut" / "checkpoints" / "epoch_2_step_12" / STATE
    newest.write_bytes(b"")
    assert result_of(run_cli(*cut))["steps_this_time"] == 3
    assert last_state(place / "cut") == last_state(place / "whole")
    config = json.loads((place / "cut" / "best" / "config.json").read_text())
    assert (config["fc_norm"], config["norm_output"]) == (True, True)
    assert run_cli("eval", "--draft-model-path", "cut/best").code == 0
    assert run_cli("export", "--draft-model-path", "cut/best", "--output-path", "out").code == 0
    legacy = run_cli("export", "--draft-model-path", "cut/best", "--output-path", "old", "--layout", "legacy")
    assert (
        legacy.code,
        legacy.error == "unservable-draft" and "fc_norm" in legacy.err and "EAGLE-3.1" in legacy.err,
    ) == (1, True), legacy.err


@pytest.mark.slow
def test_the_average_of_the_weights_is_what_is_kept(place: Path, run_cli: RunCli) -> None:
    """The weights train as they do without it; what is measured, and what a server loads, is their average."""
    result_of(run_cli("train", "--output-dir", "plain", "--json"))
    result_of(run_cli("train", "--output-dir", "run", "--ema-decay", "0.8", "--eval-interval", "12", "--json"))
    plain, averaged = last_state(place / "plain"), last_state(place / "run")
    assert plain == {name: value for name, value in averaged.items() if not name.startswith("ema.")}
    served = load_file(place / "run" / "best" / "model.safetensors")
    (projection,) = (name for name in served if name.endswith("o_proj.weight"))
    assert served[projection].numpy().tobytes() == averaged[f"ema.{projection}"] != plain[f"master.{projection}"]
    newest = place / "run" / "checkpoints" / "epoch_2_step_12" / "model.safetensors"
    assert all(torch.equal(served[name], value) for name, value in load_file(newest).items())
    other = run_cli("train", "--output-dir", "run", "--ema-decay", "0.9")
    assert (other.code, "train.ema_decay" in other.err) == (2, True), other.err
    for words in (("--ema-decay", "0.9"), ("--echo-factor", "2")):  # at their defaults no checkpoint names them
        begun = run_cli("train", "--output-dir", "plain", *words)
        assert (begun.code, begun.err.count("train.e")) == (2, 1), begun.err


@pytest.mark.slow
def test_echoes_resume_exactly_though_their_states_are_gone(place: Path, run_cli: RunCli) -> None:
    """Steps 8 to 13 train on three batches of the second epoch twice; the run goes on at 9."""
    echoes = ("--echo-factor", "2", "--echo-buffer", "3")
    whole = result_of(run_cli("train", "--output-dir", "whole", *echoes, "--json"))
    assert (whole["steps"], whole["rows_seen"]) == (12, 14)
    cut = ("train", "--output-dir", "cut", *echoes, "--json")
    result_of(run_cli(*cut))
    (place / "cut" / "checkpoints" / "epoch_1_step_12" / STATE).write_bytes(b"")
    assert result_of(run_cli(*cut))["steps_this_time"] == 3
    assert last_state(place / "cut") == last_state(place / "whole")
    other = run_cli("train", "--output-dir", "cut", "--echo-factor", "3", "--json")
    assert (other.code, "train.echo_factor" in other.err) == (2, True), other.err


@pytest.mark.slow
def test_a_time_budget_ends_the_run(place: Path, run_cli: RunCli) -> None:
    words = ("--total-steps", "100000", "--num-epochs", "100000", "--time-budget", "1s", "--eval-interval", "100000")
    result = result_of(run_cli("train", "--output-dir", "run", *words, "--json"))
    assert 0 < int(str(result["steps"])) < 100000


@pytest.mark.slow
def test_eval_measures_a_draft(finished: Path, run_cli: RunCli) -> None:
    ran = run_cli("eval", "--draft-model-path", "run/best", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["replies"] == 4
    assert list(ran.json["acceptance_length"]) == ["1", "2", "3", "4", "5", "6", "7"]
    assert all(1.0 <= value <= 8.0 for value in ran.json["acceptance_length"].values())


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--train-data-path", "absent.jsonl"), 1, "absent.jsonl"),
        (("--target-model-path", "./nowhere"), 1, "no such folder"),
        (("--target-model-path", "."), 1, "no config.json"),
        (("--time-budget", "soon"), 2, "not a duration"),
        (("--draft-micro-batch-size", "3"), 2, "does not divide"),
        (("--aux-layers", "1", "3", "40"), 2, "has layers 0 to 7"),
        (("--mode", "offline"), 1, "no hidden-state store"),
        (("--draft-model-config", "absent.json"), 1, "no such draft config"),
        (("--learning-rat", "1"), 2, "--learning-rate"),
        (("--attention-backend", "flex_attention"), 2, "flex_attention trains on CUDA alone"),
        (("--anchor-fraction", "0"), 2, "anchor-fraction"),
        (("--mode", "offline", "--echo-factor", "2"), 2, "train.num_epochs does the same"),
        (("--loss", "kld"), 2, "loss"),
    ],
)
def test_mistakes_are_named(place: Path, run_cli: RunCli, words: tuple[str, ...], code: int, said: str) -> None:
    ran = run_cli("train", "--output-dir", "run", *words)
    assert (ran.code, said in ran.err) == (code, True), ran.err


@pytest.mark.slow
def test_states_and_runs_of_another_target_are_refused(finished: Path, run_cli: RunCli, tiny: Path) -> None:
    assert run_cli("hidden-states").code == 0
    namesake = tiny_target(finished / "elsewhere" / tiny.name, seed=1)
    offline = run_cli("train", "--mode", "offline", "--output-dir", "off", "--target-model-path", namesake)
    assert (offline.code, offline.error == "store-unfit") == (2, True), offline.err
    online = run_cli("train", "--output-dir", "run", "--target-model-path", namesake)
    assert (online.code, online.error == "made-differently") == (2, True), online.err


def test_rows_without_a_reply_are_refused(place: Path, run_cli: RunCli) -> None:
    row = {"id": "a", "conversations": [{"role": "user", "content": "Hello."}]}
    (place / "train.jsonl").write_text(json.dumps(row) + "\n")
    online = run_cli("train", "--output-dir", "run")
    assert (online.code, online.error == "no-reply-tokens") == (1, True), online.err


def test_no_rows_to_train_on(place: Path, run_cli: RunCli) -> None:
    (place / "train.jsonl").write_text("")
    ran = run_cli("train", "--output-dir", "run")
    assert ran.code != 0
    assert "train.jsonl" in ran.err
    assert "Traceback" not in ran.err
