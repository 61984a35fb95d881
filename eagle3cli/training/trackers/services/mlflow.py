"""MLflow: the server or the files that ``MLFLOW_TRACKING_URI`` names, else where mlflow itself keeps its runs."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from eagle3cli.training.trackers.tracker import TrackedRun, Tracker, require_package

PARAMS_AT_ONCE = 100
LONGEST_PARAM = 500
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}
"""Its own are 120 seconds and 7 times."""


def check() -> None:
    """Raise UsageError without the package; mlflow-skinny will do for a server."""
    require_package("mlflow")


def start(run: TrackedRun) -> Tracker:
    """Begin a run or go on with it; its metric ``step`` tells a later session how far this one came."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    import mlflow
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(mlflow.get_tracking_uri())
    last_step = -1
    if run.id is not None:
        run_id = run.id
        earlier = client.get_run(run_id)
        client.update_run(run_id, status="RUNNING")
        experiment_id = earlier.info.experiment_id
        last_step = int(earlier.data.metrics.get("step", -1))
    else:
        experiment = client.get_experiment_by_name(run.project)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(run.project)
        run_id = client.create_run(experiment_id, run_name=run.name).info.run_id
        params = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in run.config.items()]
        for at in range(0, len(params), PARAMS_AT_ONCE):
            client.log_batch(run_id, params=params[at : at + PARAMS_AT_ONCE])

    def log(step: int, numbers: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        values = {**numbers, "step": float(step)}
        client.log_batch(run_id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    server = str(client.tracking_uri)
    web = f"{server}/#/experiments/{experiment_id}/runs/{run_id}"
    return Tracker(
        id=run_id,
        place=web if server.startswith("http") else f"mlflow ui --backend-store-uri {server}",
        last_step=last_step,
        log=log,
        close=lambda failed: client.set_terminated(run_id, "FAILED" if failed else "FINISHED"),
    )
