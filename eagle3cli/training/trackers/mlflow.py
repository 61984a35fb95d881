"""MLflow: the server or the files that ``MLFLOW_TRACKING_URI`` names, else where mlflow itself keeps its runs."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eagle3cli.training.trackers.tracker import Opening, need

PARAMS_AT_ONCE, LONGEST_PARAM = 100, 500
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}
"""Its own are 120 seconds and 7 times."""


def ready() -> None:
    """Raise UsageError without the package; mlflow-skinny will do for a server."""
    need("mlflow", "track-mlflow")


class Mlflow:
    """A run of MLflow."""

    session: Path | None = None

    def __init__(self, client: Any, run_id: str, experiment_id: str, last_step: int) -> None:
        self.client, self.id, self.last_step = client, run_id, last_step
        where = str(client.tracking_uri)
        web = f"{where}/#/experiments/{experiment_id}/runs/{run_id}"
        self.place = web if where.startswith("http") else f"mlflow ui --backend-store-uri {where}"

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """One point of every curve; the metric ``step`` tells a later session how far this one came."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = {**numbers, "step": float(step)}
        self.client.log_batch(self.id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def close(self, *, failed: bool) -> None:
        """End the run."""
        self.client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


def open(opening: Opening) -> Mlflow:
    """Begin a run or go on with it."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    import mlflow
    from mlflow import MlflowClient

    client = MlflowClient(mlflow.get_tracking_uri())
    if opening.id is not None:
        run = client.get_run(opening.id)
        client.update_run(opening.id, status="RUNNING")
        last_step = int(run.data.metrics.get("step", -1))
        return Mlflow(client, opening.id, run.info.experiment_id, last_step)
    found = client.get_experiment_by_name(opening.project)
    experiment = found.experiment_id if found else client.create_experiment(opening.project)
    run = client.create_run(experiment, run_name=opening.name)
    _log_params(client, run.info.run_id, opening.config)
    return Mlflow(client, run.info.run_id, experiment, -1)


def _log_params(client: Any, run_id: str, config: Mapping[str, object]) -> None:
    from mlflow.entities import Param

    params = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in config.items()]
    for at in range(0, len(params), PARAMS_AT_ONCE):
        client.log_batch(run_id, params=params[at : at + PARAMS_AT_ONCE])
