"""Synthetic records, marked as such, for the tests of `analysis`."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.published import load_published

WriteRun = Callable[..., Path]

_RECORD: dict[str, Any] = {
    "schema_version": 1,
    "run_id": "",
    "cell": {"dataset": "mnist", "model": "mlp_1x128", "method": "sgd", "engine": None},
    "seed": 0,
    "preset": "paper",
    "config": {
        "dataset": {"name": "mnist", "num_classes": 10, "test_fraction": None},
        "model": {"name": "mlp_1x128", "hidden": [128], "skip": False},
        "method": {},
        "protocol": {
            "name": "paper",
            "batch_size": 256,
            "validation_fraction": 0.1,
            "evaluate_every": 1000,
            "patience": 5,
            "max_steps": 500000,
        },
        "seed": 0,
        "schema_version": 1,
    },
    "metrics": {
        "test_accuracy": 0.95,
        "validation_accuracy": 0.96,
        "train_accuracy": 0.97,
        "best_step": 4000,
        "steps_run": 9000,
        "steps_to_99": 3000,
        "time_to_99_s": 1.5,
        "stopped_by": "patience",
    },
    "clocks": {
        "compile_s": 1.0,
        "train_s": 4.5,
        "device_ms_per_step": 0.25,
        "end_to_end_ms_per_step": 0.4,
        "published_ms_per_step": 0.5,
        "evaluation_s": 0.2,
    },
    "parameters": 101770,
    "data": {"name": "mnist", "n_train": 54000, "n_validation": 6000, "n_test": 10000, "sha256": "0f", "subset": False},
    "started": "2025-01-01T00:00:00+00:00",
    "finished": "2025-01-01T00:01:00+00:00",
    "environment": {"device": "synthetic device"},
}
_EVENT_STEPS = range(0, 9001, 1000)
_GRADIENT: dict[str, Any] = {"learning_rate": 0.001, "output_bias": True}
_PROJECTION: dict[str, Any] = {"steps_per_update": 50, "representation": "auto", "output_bias": False}
_METHODS: dict[str, dict[str, Any]] = {
    "sgd": _GRADIENT,
    "adam": _GRADIENT,
    "dr": {**_PROJECTION, "relaxation": 0.5, "window": 1},
    "ap": _PROJECTION,
    "cp": _PROJECTION,
}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """An empty folder for run folders."""
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def write_run(runs: Path) -> WriteRun:
    """A function that writes a run folder; keywords are dotted paths with `__` for the dot, such as `cell__method`.

    The configuration is the paper's for the method and the operators of the cell, before the changes.
    """

    def write(**changes: Any) -> Path:
        record = copy.deepcopy(_RECORD)
        method = changes.get("cell__method", record["cell"]["method"])
        record["config"]["method"] = {"name": method, **_METHODS.get(method, {})}
        if engine := changes.get("cell__engine"):
            record["config"]["engine"] = {"name": engine, "prox_lambda": 5.0}
        for path, value in changes.items():
            *parents, last = path.split("__")
            place = record
            for key in parents:
                place = place[key]
            place[last] = value
        record["config"]["seed"] = record["seed"]
        folder = runs / f"run-{len(list(runs.iterdir())):03d}"
        record["run_id"] = folder.name
        folder.mkdir()
        (folder / "record.json").write_text(json.dumps(record))
        accuracy = record["metrics"]["validation_accuracy"]
        events = [
            {
                "step": step,
                "update": step,
                "train_loss": 1.0,
                "validation_accuracy": accuracy * step / 9000,
                "validation_loss": 1.0,
                "train_s": step / 2000,
                "wall_s": step / 1500,
            }
            for step in _EVENT_STEPS
        ]
        (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        return folder / "record.json"

    return write


@pytest.fixture
def write_all(write_run: WriteRun) -> Callable[[int], None]:
    """A function that writes ``seeds`` runs of all 87 cells, drawn about the published means with their deviations."""

    def write(seeds: int) -> None:
        published, rng = load_published(), np.random.default_rng(0)
        for cell in published.cells:
            engine = None if cell.method in ("sgd", "adam") else "published"
            config: dict[str, dict[str, Any]] = {}
            for key, value in published.expected(*cell.key, engine).items():
                group, _, name = key.partition(".")
                config.setdefault(group, {})[name] = value
            config["protocol"] |= {"name": "paper", "max_steps": 500000}
            mean, std = cell.accuracy
            for seed in range(seeds):
                accuracy = float(np.clip(rng.normal(mean, std) / 100, 0, 1))
                steps = 1000 * max(1, round(rng.normal(*cell.steps_k)))
                write_run(
                    seed=seed,
                    cell__dataset=cell.dataset,
                    cell__model=cell.model,
                    cell__method=cell.method,
                    cell__engine=engine,
                    metrics__test_accuracy=accuracy,
                    metrics__validation_accuracy=accuracy,
                    metrics__steps_to_99=steps,
                    clocks__published_ms_per_step=cell.ms_per_step[0] * rng.uniform(0.98, 1.02),
                    **{f"config__{group}": values for group, values in config.items()},
                )

    return write
