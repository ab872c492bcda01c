"""Records become a frame, and a record that cannot be used is named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from analysis.load import COLUMNS, LoadError, load_events, load_records


def edit(path: Path, **changes: Any) -> None:
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | changes))


def test_a_frame_has_one_row_per_finished_run(runs: Path, write_run: Any) -> None:
    write_run(seed=1)
    path = write_run(cell__method="dr", cell__engine="published")
    (runs / "unfinished").mkdir()
    frame = load_records(runs)
    assert tuple(frame.columns) == COLUMNS
    assert list(frame["run_id"]) == ["run-000", "run-001"]
    assert frame["path"].iloc[1] == str(path)
    assert list(frame["method"]) == ["sgd", "dr"]
    assert json.loads(frame["config"].iloc[1]) == json.loads(path.read_text())["config"]


def test_the_seed_is_no_part_of_the_digest_and_configuration_and_data_are(runs: Path, write_run: Any) -> None:
    write_run()
    write_run(seed=1)
    assert len(set(load_records(runs)["config_digest"])) == 1
    write_run(config__method__learning_rate=0.1)
    write_run(data__sha256="another")
    assert len(set(load_records(runs)["config_digest"])) == 3


@pytest.mark.parametrize("name", ["runs", "absent"])
def test_no_records_make_an_empty_frame(tmp_path: Path, runs: Path, name: str) -> None:
    frame = load_records(tmp_path / name)
    assert frame.empty
    assert tuple(frame.columns) == COLUMNS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"schema_version": 1,', "not valid JSON"),
        (b"[]", "expected a JSON object, got list"),
        (b"{}", "key 'schema_version' is missing"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_broken_record_is_named(runs: Path, write_run: Any, content: bytes, message: str) -> None:
    path = write_run()
    path.write_bytes(content)
    with pytest.raises(LoadError, match=f"{re.escape(str(path))}: .*{message}"):
        load_records(runs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": {"dataset": "mnist"}}, "key 'cell.model' is missing"),
        ({"clocks": 3}, "key 'clocks.compile_s' is missing"),
        ({"config": None}, "key 'config' is missing or not an object"),
        ({"schema_version": "new"}, "'schema_version' should be a count, got 'new'"),
        ({"seed": True}, "'seed' should be a count, got True"),
        ({"seed": 0.5}, "'seed' should be a count, got 0.5"),
        ({"preset": None}, "'preset' should be a text, got None"),
        ({"run_id": "copy"}, "run_id is 'copy', but the folder is 'run-000'"),
    ],
)
def test_a_record_outside_the_schema_is_named(runs: Path, write_run: Any, change: Any, message: str) -> None:
    path = write_run()
    edit(path, **change)
    with pytest.raises(LoadError, match=re.escape(f"{path}: {message}")):
        load_records(runs)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("metrics__test_accuracy", 95.0, "'metrics.test_accuracy' should be a fraction, got 95.0"),
        ("metrics__time_to_99_s", float("nan"), "'metrics.time_to_99_s' should be a duration or null, got nan"),
        ("clocks__device_ms_per_step", None, "'clocks.device_ms_per_step' should be a duration, got None"),
        ("data__subset", 0, "'data.subset' should be a flag, got 0"),
    ],
)
def test_a_value_outside_its_range_is_named(runs: Path, write_run: Any, key: str, value: Any, message: str) -> None:
    path = write_run(**{key: value})
    with pytest.raises(LoadError, match=re.escape(f"{path}: {message}")):
        load_records(runs)


def test_another_schema_version_is_refused(runs: Path, write_run: Any) -> None:
    path = write_run()
    edit(path, schema_version=2)
    with pytest.raises(LoadError, match=re.escape(f"{path}: schema version 2, but this code reads version 1")):
        load_records(runs)


def test_mixed_schema_versions_are_refused_together(runs: Path, write_run: Any) -> None:
    one, two = write_run(), write_run(seed=1)
    edit(two, schema_version=2)
    with pytest.raises(
        LoadError, match="different schema versions are not read together without --mixed-versions"
    ) as error:
        load_records(runs)
    assert str(one) in str(error.value)
    assert str(two) in str(error.value)


def test_mixed_schema_versions_are_read_if_told(runs: Path, write_run: Any) -> None:
    write_run()
    two = write_run(seed=1)
    edit(two, schema_version=2, config=json.loads(two.read_text())["config"] | {"schema_version": 2})
    frame = load_records(runs, mixed=True)
    assert list(frame["schema_version"]) == [1, 2]
    assert len(set(frame["config_digest"])) == 1
    record = json.loads(two.read_text())
    del record["clocks"]["compile_s"]
    two.write_text(json.dumps(record))
    with pytest.raises(LoadError, match=re.escape(f"{two}: key 'clocks.compile_s' is missing")):
        load_records(runs, mixed=True)


def test_broken_events_are_named_with_their_line(runs: Path, write_run: Any) -> None:
    folder = write_run().parent
    assert len(load_events(folder)) == 10
    path = folder / "events.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-20])
    with pytest.raises(LoadError, match=re.escape(f"{path}, line 10: not valid JSON")):
        load_events(folder)
    path.write_text(whole.replace('"train_s"', '"seconds"', 1))
    with pytest.raises(LoadError, match=re.escape(f"{path}, line 1: key 'train_s' is missing")):
        load_events(folder)
    path.unlink()
    with pytest.raises(LoadError, match=re.escape(f"{path}: the run has a record but no event file")):
        load_events(folder)
