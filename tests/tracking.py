"""A stand-in for MLflow: it keeps what it is told, and refuses what MLflow 3 refuses."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

SCHEME = "sqlite:///"


class Client:
    """The methods of `mlflow.MlflowClient` that MONAI's handler calls; JSON in place of a database.

    The file holds runs: number -> `name`, `status`, `params`, and `metrics`: name -> [step, value].
    """

    def __init__(self, tracking_uri: str) -> None:
        assert tracking_uri.startswith(SCHEME)
        self.file = Path(tracking_uri.removeprefix(SCHEME))
        self.runs: list[dict[str, Any]] = []

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=name, lifecycle_stage="active")

    def search_runs(self, experiment: str) -> list[Any]:
        self.runs = json.loads(self.file.read_text()) if self.file.is_file() else []
        return [self.get_run(number) for number in reversed(range(len(self.runs)))]

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        new = {"experiment": experiment_id, "name": run_name, "status": "RUNNING"}
        self.runs.append({**new, "params": {}, "metrics": {}})
        self._keep()
        return self.get_run(len(self.runs) - 1)

    def get_run(self, number: int) -> Any:
        run = self.runs[number]
        info = SimpleNamespace(run_id=number, run_name=run["name"], status=run["status"])
        return SimpleNamespace(info=info, data=SimpleNamespace(params=run["params"]))

    def log_batch(
        self, run_id: int, metrics: list[Any], params: list[Any], tags: list[Any]
    ) -> None:
        self.runs = json.loads(self.file.read_text())  # two handlers share a run
        run = self.runs[run_id]
        for key, value in params:
            if run["params"].setdefault(key, value) != value:
                raise RuntimeError(f"Changing param values is not allowed: {key}")
        for key, value, _, step in metrics:
            run["metrics"].setdefault(key, []).append([step, value])
        self._keep()

    def set_terminated(self, run_id: int, status: str) -> None:
        self.runs = json.loads(self.file.read_text())
        self.runs[run_id]["status"] = status
        self._keep()

    def _keep(self) -> None:
        self.file.write_text(json.dumps(self.runs))


def install() -> None:
    """Have this process find the stand-in, also where MONAI has looked for MLflow already."""
    from monai.handlers import mlflow_handler

    package: Any = ModuleType("mlflow")
    package.__spec__ = ModuleSpec("mlflow", None)
    package.MlflowClient = Client
    package.entities = SimpleNamespace(
        Param=lambda key, value: (key, value),
        Metric=lambda key, value, time, step: (key, float(value), time, step),
        RunStatus=SimpleNamespace(FINISHED="FINISHED", to_string=lambda status: status),
        LifecycleStage=SimpleNamespace(ACTIVE="active"),
    )
    sys.modules["mlflow"] = mlflow_handler.mlflow = package
    mlflow_handler.MlflowException = RuntimeError
