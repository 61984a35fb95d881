"""How trackers are fed: every step once, in any order of kills and failures, and what each package is called with."""

from __future__ import annotations

import json
import sys
import threading
import time
import typing
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from eagle3cli.errors import UsageError
from eagle3cli.runtime.report import Silent
from eagle3cli.runtime.secret import hidden
from eagle3cli.settings.tables import Settings
from eagle3cli.settings.training import TRACKERS, TrainSettings
from eagle3cli.training.trackers import session as session_module
from eagle3cli.training.trackers.feed import Feed, TrackerState, read_state
from eagle3cli.training.trackers.metric_names import named_metrics
from eagle3cli.training.trackers.session import run_name, tracked, tracked_settings
from eagle3cli.training.trackers.tracker import TrackedRun, Tracker, check_trackers, selected_trackers, service
from tests.failing import fails

STEP = {"loss": 2.0, "depth_losses": [1.0, 3.0], "time": {"data wait": 0.5, "draft": None}, "learning_rate": 0.1}
EVAL = {"acceptance_length": [1.5, 1.8], "accepted_per_position": [0.5], "by_reply_position": {"0+": 1.2}, "rows": 4}


def kept(
    run: TrackedRun,
    rows: list[tuple[int, dict[str, float]]],
    closed: list[bool] | None = None,
    session: Path | None = None,
) -> Tracker:
    """A tracker that keeps what it is given; the rows outlive it, as those of a server do."""
    return Tracker(
        id=run.id or "new-id",
        place="somewhere",
        last_step=run.last_step,
        log=lambda step, numbers: rows.append((step, dict(numbers))),
        close=lambda failed: None if closed is None else closed.append(failed),
        session=session,
    )


def tracked_run(folder: Path) -> TrackedRun:
    return TrackedRun(folder / "trackers" / "kept", "project", "name", {"train.seed": 0})


def fed(folder: Path, start_tracker: Any, *events: tuple[str, int]) -> Feed:
    """A feed that got these events and was closed."""
    feed = Feed("kept", start_tracker, tracked_run(folder))
    feed.start()
    for event, step in events:
        feed.put(event, {"step": step, **(STEP if event == "step" else EVAL)})
    feed.close(failed=False, patience=10)
    return feed


def test_names_are_what_every_tracker_takes() -> None:
    found = named_metrics("step", {"step": 3, "event": "step", **STEP, "name": "x", "on": True})
    assert found == {
        "train/loss": 2.0,
        "train/loss_depth_1": 1.0,
        "train/loss_depth_2": 3.0,
        "train/time_data wait": 0.5,
        "train/learning_rate": 0.1,
    }
    assert named_metrics("eval", EVAL) == {
        "eval/acceptance_length_k_1": 1.5,
        "eval/acceptance_length_k_2": 1.8,
        "eval/accepted_at_depth_1": 0.5,
        "eval/by_reply_position_0_": 1.2,
        "eval/rows": 4.0,
    }


def test_the_setting_names_the_trackers_that_there_are() -> None:
    (field,) = (f for name, f in TrainSettings.model_fields.items() if name == "report_to")
    words = typing.get_args(typing.get_args(field.annotation)[0])
    assert words == ("wandb", "tensorboard", "swanlab", "mlflow", "trackio", "none") == (*TRACKERS, "none")
    assert selected_trackers(("wandb", "none", "mlflow", "wandb")) == ("wandb", "mlflow")


def test_events_of_a_step_become_one_row(tmp_path: Path) -> None:
    rows: list[tuple[int, dict[str, float]]] = []
    fed(tmp_path, lambda o: kept(o, rows), ("step", 2), ("step", 4), ("eval", 4), ("eval", 5))
    assert [step for step, _ in rows] == [2, 4, 5]
    assert {"train/loss", "eval/rows"} <= rows[1][1].keys()
    assert read_state(tmp_path / "trackers" / "kept.json") == TrackerState("new-id", 5, None)


def test_a_later_session_goes_on_under_the_same_id_without_doubles(tmp_path: Path) -> None:
    rows: list[tuple[int, dict[str, float]]] = []
    fed(tmp_path, lambda o: kept(o, rows), ("step", 2), ("step", 4))
    seen: list[TrackedRun] = []

    def again(o: TrackedRun) -> Tracker:
        seen.append(o)
        return kept(o, rows)

    fed(tmp_path, again, ("step", 2), ("step", 4), ("eval", 4), ("step", 6))
    assert [step for step, _ in rows] == [2, 4, 6]
    assert (seen[0].id, seen[0].last_step) == ("new-id", 4)


def test_a_session_that_a_kill_left_is_set_aside_and_logged_again(tmp_path: Path) -> None:
    rows: list[tuple[int, dict[str, float]]] = []
    session = tmp_path / "trackers" / "kept" / "session-1"
    session.mkdir(parents=True)
    (tmp_path / "trackers" / "kept.json").write_text(json.dumps({"id": "a", "last_step": 2, "session": str(session)}))
    fed(tmp_path, lambda o: kept(o, rows), ("step", 2), ("step", 4))
    assert [step for step, _ in rows] == [4]
    assert [p.name[:17] for p in session.parent.iterdir()] == ["cut-off-session-1"]


def test_only_folders_of_its_own_are_set_aside(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers" / "kept.json").write_text(json.dumps({"id": "a", "last_step": 2, "session": str(other)}))
    fed(tmp_path, lambda o: kept(o, []), ("step", 2))
    assert other.is_dir()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"id": null, "last_step": "x", "session": 1}', "\ufffd", "[" * 9999])
def test_a_damaged_note_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "n.json").write_text(text)
    assert read_state(tmp_path / "n.json") == TrackerState()


def test_a_tracker_that_breaks_is_left_out_and_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")

    rows: list[tuple[int, dict[str, float]]] = []
    closed: list[bool] = []

    def start(run: TrackedRun) -> Tracker:
        whole = kept(run, rows, closed)

        def log(step: int, numbers: Mapping[str, float]) -> None:
            if step > 2:
                raise ConnectionError("lost http://me:word@host/0123456789abcdef\nmore")
            whole.log(step, numbers)

        return replace(whole, log=log)

    feed = fed(tmp_path, start, ("step", 2), ("step", 4), ("step", 6))
    assert feed.problem == "ConnectionError: lost http://(hidden)@host/(hidden)"
    assert closed == [True]
    fed(tmp_path, lambda o: kept(o, rows), ("step", 2), ("step", 4), ("step", 6))
    assert [step for step, _ in rows] == [2, 4, 6]


def test_a_tracker_that_hangs_does_not_keep_the_training(tmp_path: Path) -> None:
    release = threading.Event()

    def hang(o: TrackedRun) -> Tracker:
        release.wait(60)
        raise AssertionError

    began = time.monotonic()
    feed = Feed("kept", hang, tracked_run(tmp_path))
    feed.start()
    for step in range(1000):
        feed.put("step", {"step": step, **STEP})
    feed.close(failed=False, patience=0.2)
    assert time.monotonic() - began < 20
    assert feed.problem == "did not end within 0 seconds"
    release.set()


def fake_trainer(folder: Path) -> Any:
    return SimpleNamespace(report=Silent(), listeners=[], output_dir=folder)


def settings_for(folder: Path, *trackers: str) -> Settings:
    return Settings(train=TrainSettings(report_to=trackers, output_dir=folder))  # type: ignore[arg-type]


def test_one_that_breaks_leaves_the_others_and_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[tuple[int, dict[str, float]]] = []

    def broken(o: TrackedRun) -> Tracker:
        raise OSError("no way there")

    files = {"wandb": SimpleNamespace(start=broken), "mlflow": SimpleNamespace(start=lambda o: kept(o, rows))}
    monkeypatch.setattr(session_module, "service", files.__getitem__)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"event": "step", "step": 1, **STEP}) + "\n")
    trainer = fake_trainer(tmp_path)
    with tracked(trainer, settings_for(tmp_path, "wandb", "mlflow")):
        for step in (2, 3):
            trainer.listeners[0]("step", {"step": step, **STEP})
    assert [step for step, _ in rows] == [1, 2, 3]
    assert [w.split(";")[0] for w in trainer.report.warnings] == ["wandb is left out: OSError: no way there"]


def test_no_tracker_is_no_work(tmp_path: Path) -> None:
    trainer = fake_trainer(tmp_path)
    with tracked(trainer, settings_for(tmp_path, "none")):
        assert trainer.listeners == []


def test_run_names_and_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_name(Path("runs/train")) == "train"
    assert run_name(Path("runs/quickstart/train")) == "quickstart-train"
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    target = Settings().target.model_copy(update={"model_path": "https://u:p@hub/hf_abcdefgh"})
    config = tracked_settings(Settings(target=target))
    assert config["train.batch_size"] == 4
    assert config["target.model_path"] == "https://(hidden)@hub/(hidden)"
    assert not any(key.startswith(("server", "export")) for key in config)


def test_values_of_secret_variables_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "abcdefgh")
    monkeypatch.setenv("MONKEY", "bananas!")
    monkeypatch.setenv("DB_PASSWORD", "abc")
    assert hidden("abcdefgh bananas! abc") == "(hidden) bananas! abc"


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_told_with_the_line_to_type(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eagle3cli.training.trackers.tracker.find_spec", lambda package: None)
    with pytest.raises(UsageError) as caught:
        check_trackers([name])
    assert caught.value.fix == f'pip install "eagle3[track-{name}]"'


@pytest.mark.parametrize(("name", "variable"), [("wandb", "WANDB"), ("swanlab", "SWANLAB")])
def test_a_missing_key_is_told_without_asking_the_network(
    name: str, variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("eagle3cli.training.trackers.tracker.find_spec", lambda package: True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for end in ("MODE", "API_KEY", "BASE_URL", "API_HOST"):
        monkeypatch.delenv(f"{variable}_{end}", raising=False)
    with fails("missing-key") as caught:
        check_trackers([name])
    assert f"{variable}_MODE=offline" in str(caught.value.fix)
    monkeypatch.setenv(f"{variable}_MODE", "offline")
    check_trackers([name])
    monkeypatch.delenv(f"{variable}_MODE")
    monkeypatch.setenv(f"{variable}_API_KEY", "k" * 40)
    check_trackers([name])


class Calls(ModuleType):
    """A package that answers every call with itself and keeps the calls."""

    def __init__(self, module: str, /, **values: Any) -> None:
        super().__init__(module)
        self.module, self.calls = module, list[tuple[str, Any, Any]]()
        vars(self).update(values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            return self

        return call

    def named(self, name: str) -> list[tuple[Any, Any]]:
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]


def made(package: Calls, tracker: str, monkeypatch: pytest.MonkeyPatch, folder: Path, **known: Any) -> Any:
    monkeypatch.setitem(sys.modules, package.module, package)
    return service(tracker).start(TrackedRun(folder / tracker, "project", "name", {"train.seed": 0}, **known))


def test_wandb_is_called_as_it_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Calls("wandb", id="abc", dir="w/run/files", url="https://x/abc", offline=False, summary={"step": 40})
    tracker = made(fake, "wandb", monkeypatch, tmp_path, id="abc", last_step=30)
    assert (tracker.id, tracker.last_step, tracker.session, tracker.place) == ("abc", 40, None, "https://x/abc")
    ((_, asked),) = fake.named("init")
    assert (asked["id"], asked["resume"], asked["project"], asked["name"]) == ("abc", "allow", "project", "name")
    assert asked["config"] == {"train.seed": 0}
    ((_, settings),) = fake.named("Settings")
    assert (settings["console"], settings["save_code"], settings["disable_git"]) == ("off", False, True)
    tracker.log(50, {"train/loss": 1.0})
    tracker.close(failed=True)
    assert fake.named("log") == [(({"step": 50, "train/loss": 1.0},), {})]
    assert fake.named("finish") == [((), {"exit_code": 1})]


def test_swanlab_is_called_as_it_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Calls("swanlab", id="abc", mode="offline", dir=tmp_path / "run")
    tracker = made(fake, "swanlab", monkeypatch, tmp_path, last_step=30)
    assert (tracker.id, tracker.session) == ("abc", tmp_path / "run")
    ((_, asked),) = fake.named("init")
    assert (len(asked["id"]), asked["resume"], asked["log_dir"]) == (8, "allow", str(tmp_path / "swanlab"))
    ((_, settings),) = fake.named("Settings")
    assert (settings["interactive"], settings["terminal"]["proxy_type"]) == (False, "none")
    tracker.log(50, {"train/loss": 1.0})
    tracker.close(failed=False)
    assert fake.named("log") == [(({"train/loss": 1.0},), {"step": 50})]
    assert fake.named("finish") == [((), {})]


def test_trackio_is_called_as_it_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Calls("trackio", name="name-1234", _initial_last_step=20)
    tracker = made(fake, "trackio", monkeypatch, tmp_path, id="name-1234", last_step=30)
    assert (tracker.id, tracker.last_step) == ("name-1234", 20)
    ((_, asked),) = fake.named("init")
    assert (asked["name"], asked["resume"], asked["auto_log_cpu"]) == ("name-1234", "allow", False)
    tracker.log(50, {"train/loss": 1.0})
    tracker.close(failed=False)
    assert fake.named("log") == [(({"train/loss": 1.0},), {"step": 50})]
    assert fake.named("finish") == [((), {})]


def test_mlflow_is_called_as_it_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = SimpleNamespace(
        info=SimpleNamespace(run_id="r1", experiment_id="7"), data=SimpleNamespace(metrics={"step": 40.0})
    )
    client = Calls("client", tracking_uri="http://127.0.0.1:5000")
    client.get_run, client.create_run = (lambda run_id: run), (lambda *args, **kwargs: run)  # type: ignore[attr-defined]
    client.get_experiment_by_name = lambda name: None  # type: ignore[attr-defined]
    entities = Calls("mlflow.entities", Metric=lambda *args: args, Param=lambda *args: args)
    fake = Calls("mlflow", MlflowClient=lambda uri: client, entities=entities)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")  # also puts back what open() sets
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    first = made(fake, "mlflow", monkeypatch, tmp_path)
    assert (first.id, first.last_step) == ("r1", -1)
    assert client.named("log_batch") == [(("r1",), {"params": [("train.seed", "0")]})]
    later = made(fake, "mlflow", monkeypatch, tmp_path, id="r1", last_step=30)
    assert later.last_step == 40
    later.log(50, {"train/loss": 1.0})
    later.close(failed=True)
    names = [(metric[0], metric[1], metric[3]) for metric in client.named("log_batch")[1][1]["metrics"]]
    assert names == [("train/loss", 1.0, 50), ("step", 50.0, 50)]
    assert client.named("set_terminated") == [(("r1", "FAILED"), {})]
    assert later.place.endswith("/#/experiments/7/runs/r1")


def test_tensorboard_is_called_as_it_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Calls("torch.utils.tensorboard")
    tracker = made(fake, "tensorboard", monkeypatch, tmp_path, id="tensorboard", last_step=30)
    assert fake.named("SummaryWriter") == [((str(tmp_path / "tensorboard"),), {"purge_step": 31})]
    tracker.log(50, {"train/loss": 1.0})
    tracker.close(failed=False)
    assert [name for name, *_ in fake.calls] == ["SummaryWriter", "add_scalar", "flush", "close"]
    assert fake.named("add_scalar") == [(("train/loss", 1.0, 50), {})]
