"""What a run leaves behind, and by which name: its identity, its events and its record.

The record is a fixed contract with `analysis/`, which reads records and nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_type_hints

from experiments.config import OwnConfig, ProjectionConfig, RunConfig
from experiments.storage import write_whole

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Event:
    """One evaluation, one line of `events.jsonl`.

    Attributes:
        step: counted steps so far.
        update: batches so far.
        train_loss: mean over the updates since the last evaluation; None before the first.
        validation_accuracy: 0 to 1.
        validation_loss: mean over the validation samples.
        train_s: seconds on the device in training so far, without compilation and evaluation; None in a run without
            clocks of its own (see `Record`).
        wall_s: seconds since the loop began.
    """

    step: int
    update: int
    train_loss: float | None
    validation_accuracy: float
    validation_loss: float
    train_s: float | None
    wall_s: float


@dataclass(frozen=True)
class Cell:
    """The cell of a table a run belongs to; gradient methods have no engine."""

    dataset: str
    model: str
    method: str
    engine: str | None


@dataclass(frozen=True)
class Metrics:
    """Accuracies, 0 to 1, at the parameters with the best validation accuracy, and when they were reached.

    `steps_to_99` and `time_to_99_s` (device seconds in training, None in a run without clocks) belong to the first
    evaluation with at least 99 % of the best validation accuracy.
    """

    test_accuracy: float
    validation_accuracy: float
    train_accuracy: float
    best_step: int
    steps_run: int
    steps_to_99: int
    time_to_99_s: float | None
    stopped_by: Literal["patience", "max_steps"]


@dataclass(frozen=True)
class Clocks:
    """Separate clocks.

    Attributes:
        compile_s: tracing and compilation of training and evaluation.
        train_s: blocked time of the training dispatches, data on the device.
        device_ms_per_step: the same per counted step.
        end_to_end_ms_per_step: the whole loop, checkpoints included, but for compilation and evaluation, per counted
            step.
        published_ms_per_step: one dispatch per batch, batches from host memory, per counted step; median of a probe.
        evaluation_s: all evaluations.
        checkpoint_s: all checkpoints; None where a record is older than they are.
        attempts: how often the run was started or resumed until it was finished; all clocks are sums over them, without
            what a cut attempt did after its last checkpoint. None as above.
    """

    compile_s: float
    train_s: float
    device_ms_per_step: float
    end_to_end_ms_per_step: float
    published_ms_per_step: float
    evaluation_s: float
    checkpoint_s: float | None = None
    attempts: int | None = None


@dataclass(frozen=True)
class DataInfo:
    """The data a run saw; `subset` where they are not the whole published set, `altered` where not a true copy."""

    name: str
    n_train: int
    n_validation: int
    n_test: int
    sha256: str
    subset: bool
    altered: bool = False


@dataclass(frozen=True)
class Record:
    """A finished run, `record.json`; `started` and `finished` are ISO 8601 in UTC.

    A run that shares its program with other seeds has no clocks, nor has one that went on on another device: seconds of
    two devices have no sum.
    """

    schema_version: int
    run_id: str
    cell: Cell
    seed: int
    preset: str
    config: dict[str, Any]
    metrics: Metrics
    clocks: Clocks | None
    parameters: int
    data: DataInfo
    started: str
    finished: str
    environment: dict[str, Any]


def scientific_config(config: RunConfig) -> dict[str, Any]:
    """What determines a run's numbers, and nothing else: no paths, no preset, no engine for gradient methods.

    A key that came after the first runs (it has a default in experiments/config.py) is left out where it has the value
    that they had.
    """
    groups = ["dataset", "model", "method", "protocol"]
    if _has_engine(config):
        groups.append("engine")
    content: dict[str, Any] = {group: _scientific(getattr(config, group)) for group in groups}
    return {**content, "seed": config.seed, "schema_version": SCHEMA_VERSION}


def _has_engine(config: RunConfig) -> bool:
    """Whether projection operators have a part in the run."""
    method = config.method
    return isinstance(method, ProjectionConfig) or (isinstance(method, OwnConfig) and method.engine)


def _scientific(group: Any) -> dict[str, Any]:
    kept = [
        item.name
        for item in dataclasses.fields(group)
        if item.metadata.get("scientific", True) and getattr(group, item.name) != item.default
    ]
    return {name: getattr(group, name) for name in kept}


def cell_of(config: RunConfig) -> Cell:
    """The cell a run belongs to."""
    engine = config.engine.name if _has_engine(config) else None
    return Cell(config.dataset.name, config.model.name, config.method.name, engine)


def run_id(config: RunConfig) -> str:
    """The name of a run: its cell and seed for people, a hash of its scientific configuration for certainty."""
    canonical = json.dumps(scientific_config(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
    parts = [part for part in dataclasses.astuple(cell_of(config)) if part is not None]
    return "-".join([*parts, f"s{config.seed}", digest])


def saved_steps(folder: Path) -> list[int]:
    """The steps of a run folder's checkpoints, newest first."""
    return sorted((int(path.name) for path in folder.glob("checkpoint/*") if path.name.isdecimal()), reverse=True)


def validate(record: Record) -> None:
    """Check types and ranges of a record before it is written.

    Raises:
        ValueError: a field that breaks the contract; the message names it.
    """
    for name, value, kind in _leaves(record, ""):
        if not _fits(value, kind):
            raise ValueError(f"record field {name} = {value!r} is not of type {kind}")
        if name.endswith("_accuracy") and not 0 <= value <= 1:
            raise ValueError(f"record field {name} = {value} is not between 0 and 1")
        if isinstance(value, float | int) and value < 0:
            raise ValueError(f"record field {name} = {value} is negative")
    if record.metrics.steps_to_99 > record.metrics.best_step or record.metrics.best_step > record.metrics.steps_run:
        raise ValueError(f"record steps are out of order: {record.metrics}")


def _leaves(node: Any, prefix: str) -> list[tuple[str, Any, Any]]:
    hints = get_type_hints(type(node))
    found: list[tuple[str, Any, Any]] = []
    for item in dataclasses.fields(node):
        value = getattr(node, item.name)
        if dataclasses.is_dataclass(value):
            found += _leaves(value, f"{prefix}{item.name}.")
        else:
            found.append((prefix + item.name, value, hints[item.name]))
    return found


def _fits(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, float) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (str, bool):
        return isinstance(value, kind)
    if isinstance(kind, UnionType):
        return any(_fits(value, each) for each in get_args(kind))
    if kind is type(None):
        return value is None
    if kind == dict[str, Any]:
        return isinstance(value, dict)
    return value in get_args(kind)


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that the file is there complete or not at all.

    Raises:
        StorageError: it could not be written; an older one is as it was.
    """
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_record(folder: Path, record: Record) -> None:
    """Validate and write `record.json`."""
    validate(record)
    write_json(folder / "record.json", dataclasses.asdict(record))
