"""Identity and the record's contract."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from experiments.compose import compose_run
from experiments.config import ROOT
from experiments.records import Cell, Clocks, DataInfo, Metrics, Record, run_id, scientific_config, write_record

METRICS = Metrics(0.9, 0.95, 0.96, 2000, 7000, 1000, 0.5, "patience")
CLOCKS = Clocks(1.0, 2.0, 0.1, 0.2, 0.3, 0.4)
DATA = DataInfo("digits", 10, 1, 2, "0" * 64, False)
CELL = Cell("digits", "mlp_1x32", "sgd", None)
RECORD = Record(1, "id", CELL, 0, "paper", {}, METRICS, CLOCKS, 10, DATA, "then", "now", {})


def test_a_run_keeps_its_name() -> None:
    """Finished runs are found by these names: a change here orphans every committed record."""
    assert run_id(compose_run(["dataset=mnist", "model=mlp_1x128", "method=sgd"])) == "mnist-mlp_1x128-sgd-s0-68a76be3"
    assert (
        run_id(compose_run(["dataset=mnist", "model=mlp_1x128", "method=dr", "seed=3"]))
        == "mnist-mlp_1x128-dr-published-s3-75a2939d"
    )
    ap = compose_run(["dataset=mnist", "model=mlp_1x128", "method=ap"])
    assert run_id(ap) == "mnist-mlp_1x128-ap-published-s0-0bba6ad7"


def committed() -> list[Path]:
    """Folders of the runs that the repository has, beside which a user's own may lie; all of them where git is not."""
    listed = subprocess.run(["git", "ls-files", "results/runs"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = {Path(line).parts[2] for line in listed.stdout.splitlines()}
    return sorted(folder for folder in (ROOT / "results" / "runs").iterdir() if not names or folder.name in names)


@pytest.mark.parametrize("folder", committed(), ids=lambda folder: folder.name)
def test_a_committed_record_is_found_by_todays_configuration(folder: Path) -> None:
    record = json.loads((folder / "record.json").read_text())
    cell = record["cell"]
    names = [f"{key}={cell[key]}" for key in ("dataset", "model", "method", "engine") if cell[key] is not None]
    assert run_id(compose_run([*names, f"seed={record['seed']}"])) == folder.name == record["run_id"]


def test_a_method_is_named_by_its_own_options_alone() -> None:
    common = {"name", "output_bias", "steps_per_update", "representation"}
    assert set(scientific_config(compose_run(["method=cp"]))["method"]) == common
    assert set(scientific_config(compose_run(["method=dr"]))["method"]) == common | {"relaxation", "window"}


@pytest.mark.parametrize(
    "override",
    [
        "paths.results=elsewhere",
        "paths.data=elsewhere",
        "retry_failed=true",
        "preset.name=other",
        "checkpoint_every_s=0",
    ],
)
def test_what_changes_no_number_changes_no_name(override: str) -> None:
    assert run_id(compose_run(["method=dr", override])) == run_id(compose_run(["method=dr"]))


@pytest.mark.parametrize(
    "override", ["seed=1", "engine=exact", "engine.prox_lambda=4", "protocol.patience=6", "model.hidden=[31]"]
)
def test_what_changes_a_number_changes_the_name(override: str) -> None:
    assert run_id(compose_run(["method=dr", override])) != run_id(compose_run(["method=dr"]))


LATER = [
    ("dataset.limit=null", "dataset.limit=100"),
    ("dataset.subset=false", "dataset.subset=true"),
    ("dataset.altered=false", "dataset.altered=true"),
    ("model.family=mlp", "model.family=cnn"),
    ("method.kernel_init=he_normal", "method.kernel_init=lecun_normal"),
    ("method.embedding_init=he_normal", "method.embedding_init=flax_embed"),
]
"""Keys that came after the first runs, as these had them and otherwise."""


@pytest.mark.parametrize(("as_before", "other"), LATER)
def test_a_later_key_is_in_the_name_where_it_differs_from_the_first_runs(as_before: str, other: str) -> None:
    group, _, key = other.partition("=")[0].partition(".")
    first, changed = compose_run(["method=dr", as_before]), compose_run(["method=dr", other])
    assert run_id(first) == run_id(compose_run(["method=dr"])) != run_id(changed)
    assert key not in scientific_config(first)[group]
    assert key in scientific_config(changed)[group]


def test_every_key_of_a_group_is_in_the_name_or_known_not_to_be() -> None:
    left_out = {
        f"{group}.{key}"
        for group in ("dataset", "model", "method", "protocol", "engine")
        for key in dataclasses.asdict(getattr(compose_run(["method=dr"]), group))
        if key not in scientific_config(compose_run(["method=dr"]))[group]
    }
    # Options are a family's own.
    assert left_out == {"dataset.kind", "model.options"} | {key.partition("=")[0] for key, _ in LATER}


def test_a_familys_own_options_are_in_the_name() -> None:
    two, other = compose_run(["model=quantized_2"]), compose_run(["model=quantized_2"])
    other.model.options = {"levels": 4}
    assert run_id(two) != run_id(other)
    assert scientific_config(other)["model"]["options"] == {"levels": 4}


def test_gradient_methods_have_no_engine() -> None:
    sgd = compose_run(["method=sgd"])
    assert run_id(compose_run(["method=sgd", "engine=exact"])) == run_id(sgd)
    assert "engine" not in scientific_config(sgd)


def test_a_record_is_written_as_the_contract_says(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    content = json.loads((tmp_path / "record.json").read_text())
    assert content["cell"] == {"dataset": "digits", "model": "mlp_1x32", "method": "sgd", "engine": None}
    assert content["metrics"]["stopped_by"] == "patience"
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"metrics": dataclasses.replace(METRICS, test_accuracy=90.0)}, "metrics.test_accuracy"),
        ({"metrics": dataclasses.replace(METRICS, test_accuracy=float("nan"))}, "metrics.test_accuracy"),
        ({"metrics": dataclasses.replace(METRICS, stopped_by="boredom")}, "metrics.stopped_by"),
        ({"metrics": dataclasses.replace(METRICS, best_step=9000)}, "out of order"),
        ({"clocks": dataclasses.replace(CLOCKS, train_s=-1.0)}, "clocks.train_s"),
        ({"data": dataclasses.replace(DATA, subset=0)}, "data.subset"),
        ({"seed": "0"}, "seed"),
    ],
)
def test_a_record_that_breaks_the_contract_is_not_written(change: dict[str, Any], field: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=field):
        write_record(tmp_path, dataclasses.replace(RECORD, **change))
    assert not list(tmp_path.iterdir())
