"""Records of finished runs as one pandas frame, checked against the record's schema, and the runs that failed."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

SCHEMA_VERSION = 1


class LoadError(ValueError):
    """A record or event file that cannot be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class _Field:
    path: str  # dotted path in the record
    column: str
    kind: str


# One line per column of the frame.
_FIELDS: tuple[_Field, ...] = (
    _Field("run_id", "run_id", "text"),
    _Field("cell.dataset", "dataset", "text"),
    _Field("cell.model", "model", "text"),
    _Field("cell.method", "method", "text"),
    _Field("cell.engine", "engine", "text or null"),
    _Field("seed", "seed", "count"),
    _Field("preset", "preset", "text"),
    _Field("metrics.test_accuracy", "test_accuracy", "fraction"),
    _Field("metrics.validation_accuracy", "validation_accuracy", "fraction"),
    _Field("metrics.train_accuracy", "train_accuracy", "fraction"),
    _Field("metrics.best_step", "best_step", "count"),
    _Field("metrics.steps_run", "steps_run", "count"),
    _Field("metrics.steps_to_99", "steps_to_99", "count"),
    _Field("metrics.time_to_99_s", "time_to_99_s", "duration or null"),
    _Field("metrics.stopped_by", "stopped_by", "text"),
    _Field("clocks.compile_s", "compile_s", "duration"),
    _Field("clocks.train_s", "train_s", "duration"),
    _Field("clocks.device_ms_per_step", "device_ms_per_step", "duration"),
    _Field("clocks.end_to_end_ms_per_step", "end_to_end_ms_per_step", "duration"),
    _Field("clocks.published_ms_per_step", "published_ms_per_step", "duration"),
    _Field("clocks.evaluation_s", "evaluation_s", "duration"),
    _Field("parameters", "parameters", "count"),
    _Field("data.name", "data_name", "text"),
    _Field("data.n_train", "n_train", "count"),
    _Field("data.n_validation", "n_validation", "count"),
    _Field("data.n_test", "n_test", "count"),
    _Field("data.sha256", "data_sha256", "text"),
    _Field("data.subset", "subset", "flag"),
    _Field("data.altered", "altered", "flag or absent"),
    _Field("started", "started", "text"),
    _Field("finished", "finished", "text"),
    _Field("environment.device", "device", "text"),
)
_MORE = ("schema_version", "config", "config_digest", "environment", "path")
COLUMNS: tuple[str, ...] = (*(field.column for field in _FIELDS), *_MORE)

_EVENT_KEYS = ("step", "update", "train_loss", "validation_accuracy", "validation_loss", "train_s", "wall_s")


@dataclass(frozen=True)
class Failure:
    """A run that ended by an error at a step: its cell, seed, configuration (the record's) and device, and the error.

    ``preset`` is the name of its protocol, which a preset sets: only records name the preset itself.
    """

    run_id: str
    cell: tuple[str, str, str]
    engine: str | None
    seed: int
    preset: str
    device: str
    config: dict[str, Any]
    error: str
    step: int


def load_records(folder: Path, *, mixed: bool = False) -> pd.DataFrame:
    """Reads ``<folder>/<run_id>/record.json`` of every finished run into a frame with ``COLUMNS``, sorted by run id.

    Units are the record's: accuracies as fractions, ``*_s`` in seconds, ``*_ms_per_step`` in milliseconds. Runs without
    a record (not finished, failed) are not in the frame, and a folder that does not exist holds none. ``config`` is
    the scientific configuration as JSON, ``environment`` the machine's. ``config_digest`` names the configuration
    without its seed and schema version, and the data: runs with equal digests differ by their seed only. A run that
    shared its program with other seeds, or went on on another device, has no clocks: NaN.

    Raises LoadError, naming the file, for broken JSON, a missing key, a value of the wrong kind, or a schema version
    that is not ``SCHEMA_VERSION``; records of several versions are refused together. With ``mixed``, records of any
    version are read that have every field.
    """
    paths = sorted(folder.glob("*/record.json"))
    records = [(path, _read_object(path)) for path in paths]
    _check_versions(records, mixed)
    rows = [_row(path, record) for path, record in records]
    return pd.DataFrame(rows, columns=pd.Index(COLUMNS))


def load_failures(folder: Path) -> list[Failure]:
    """Reads ``<folder>/<run_id>/FAILED.json`` of every run without a record, with the configuration beside it, by name.

    Raises LoadError, naming the file, for one that is missing or broken, or lacks what a failure has.
    """
    paths = sorted(path.parent for path in folder.glob("*/FAILED.json"))
    return [_failure(path) for path in paths if not (path / "record.json").exists()]


def shared_part(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what the configurations of runs have in common that differ by their seed only."""
    return {key: value for key, value in config.items() if key not in ("seed", "schema_version")}


def _failure(folder: Path) -> Failure:
    failed, environment = (_read_object(folder / name) for name in ("FAILED.json", "environment.json"))
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return Failure(
            run_id=folder.name,
            cell=(config["dataset"]["name"], config["model"]["name"], config["method"]["name"]),
            engine=config["engine"]["name"] if "engine" in config else None,
            seed=config["seed"],
            preset=config["protocol"]["name"],
            device=environment["device"],
            config=config,
            error=f"{failed['type']}: {failed['message']}",
            step=failed["step"],
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise LoadError(f"{folder}: the run failed, and its files do not say which it was: {found}") from error


def load_events(run_folder: Path, start: int = 0) -> pd.DataFrame:
    """Reads ``events.jsonl`` of a run: one row per evaluation, ``train_s`` and ``wall_s`` in seconds.

    With ``start``, only those from that line on, counted from zero; the ones before are not looked at.

    Raises LoadError, naming file and line, for a missing file, broken JSON or a missing key.
    """
    path = run_folder / "events.jsonl"
    if not path.is_file():
        raise LoadError(f"{path}: the run has a record but no event file")
    events: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8").splitlines()[start:]
    for number, line in enumerate(lines, start=start + 1):
        event = _parse_object(line, f"{path}, line {number}")
        for key in _EVENT_KEYS:
            if key not in event:
                raise LoadError(f"{path}, line {number}: key '{key}' is missing")
        events.append({key: event[key] for key in _EVENT_KEYS})
    return pd.DataFrame(events, columns=pd.Index(_EVENT_KEYS))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise LoadError(f"{path}: there is no such file") from error
    except UnicodeDecodeError as error:
        raise LoadError(f"{path}: not UTF-8 text ({error})") from error
    return _parse_object(text, str(path))


def _parse_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise LoadError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise LoadError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _check_versions(records: list[tuple[Path, dict[str, Any]]], mixed: bool) -> None:
    examples: dict[str, Path] = {}
    for path, record in records:
        if "schema_version" not in record:
            raise LoadError(f"{path}: key 'schema_version' is missing")
        if not _is("count", record["schema_version"]):
            raise LoadError(f"{path}: 'schema_version' should be a count, got {record['schema_version']!r}")
        examples.setdefault(json.dumps(record["schema_version"]), path)
    if mixed:
        return
    if len(examples) > 1:
        found = "; ".join(f"version {version}, for example {path}" for version, path in examples.items())
        raise LoadError(f"records of different schema versions are not read together without --mixed-versions: {found}")
    for version, path in examples.items():
        if version != json.dumps(SCHEMA_VERSION):
            raise LoadError(
                f"{path}: schema version {version}, but this code reads version {SCHEMA_VERSION};"
                " --mixed-versions reads others that have every field"
            )


def _row(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    row = {field.column: _value(path, record, field) for field in _FIELDS}
    # A folder copied by hand would otherwise count a run twice.
    if row["run_id"] != path.parent.name:
        raise LoadError(f"{path}: run_id is '{row['run_id']}', but the folder is '{path.parent.name}'")
    config = record.get("config")
    if not isinstance(config, dict):
        raise LoadError(f"{path}: key 'config' is missing or not an object")
    row["schema_version"] = record["schema_version"]
    row["environment"] = json.dumps(record["environment"], sort_keys=True)
    row["config"] = json.dumps(config, sort_keys=True)
    row["config_digest"] = _digest(config, row["data_sha256"])
    row["path"] = str(path)
    return row


def _value(path: Path, record: dict[str, Any], field: _Field) -> Any:
    value: Any = record
    if field.path.startswith("clocks.") and record.get("clocks", 0) is None:
        return math.nan
    for key in field.path.split("."):
        if field.kind == "flag or absent" and isinstance(value, dict) and key not in value:
            return False
        if not isinstance(value, dict) or key not in value:
            raise LoadError(f"{path}: key '{field.path}' is missing")
        value = value[key]
    if value is None and field.kind == "duration or null":
        return math.nan
    if not _is(field.kind, value):
        raise LoadError(f"{path}: '{field.path}' should be a {field.kind}, got {value!r}")
    return value


def _is(kind: str, value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    match kind:
        case "text":
            return isinstance(value, str)
        case "text or null":
            return value is None or isinstance(value, str)
        case "flag" | "flag or absent":
            return isinstance(value, bool)
        case "count":
            return number and isinstance(value, int) and value >= 0
        case "fraction":
            return number and 0 <= value <= 1
        case "duration" | "duration or null":
            return number and value >= 0
        case _:
            raise ValueError(f"unknown kind of field: {kind}")


def _digest(config: dict[str, Any], data_sha256: str) -> str:
    text = json.dumps([shared_part(config), data_sha256], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
