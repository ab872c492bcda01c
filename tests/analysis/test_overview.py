"""Runs of other presets: what their table shows, marks, keeps apart and says below."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis import overview

DR = {"cell__method": "dr", "cell__engine": "published"}
CNN = {"cell__dataset": "cifar10", "cell__model": "cnn_1x32"}
FAILED = {"type": "Diverged", "message": "the loss is not\nfinite at step 1200", "step": 1200, "traceback": "..."}


@pytest.fixture
def quick(write_run: Any) -> Any:
    """A function that writes a run of preset quick, changes as in `write_run`."""

    def write(**changes: Any) -> Path:
        preset = {"name": "quick", "max_steps": 5000}
        given = {f"config__protocol__{key}": value for key, value in preset.items()}
        if "cell__dataset" in changes:
            given |= {"config__dataset__name": changes["cell__dataset"]}
        return write_run(**({"preset": "quick"} | given | changes))

    return write


def fail(record: Path, failure: dict[str, Any] = FAILED) -> Path:
    """Makes a run of a finished one that failed; returns its folder."""
    content = json.loads(record.read_text())
    record.unlink()
    (record.parent / "config.yaml").write_text(yaml.safe_dump(content["config"], sort_keys=False))
    (record.parent / "environment.json").write_text(json.dumps(content["environment"]))
    (record.parent / "FAILED.json").write_text(json.dumps(failure))
    return record.parent


def make(runs: Path, out: Path) -> tuple[list[list[str]], str, list[dict[str, str]]]:
    """Runs the command; returns the rows of the Markdown tables, all of its text, and the rows of the CSV file."""
    assert overview.main([str(runs), "--out", str(out)]) == 0
    text = (out / "overview.md").read_text(encoding="utf-8")
    lines = (out / "overview.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"# made by: python -m analysis.overview {runs} --out {out}"
    assert text.endswith(f"\nMade by `{lines[0].removeprefix('# made by: ')}`.\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    body = [row for row in rows if row[0] != "Dataset" and not row[0].startswith("---")]
    return body, text, list(csv.DictReader(lines[1:]))


def test_two_seeds_have_mean_and_deviation_beside_the_published_accuracy(
    runs: Path, quick: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, (accuracy, steps) in enumerate(((0.95, 4000), (0.96, 5000))):
        quick(seed=seed, metrics__test_accuracy=accuracy, metrics__steps_run=steps, **DR)
    rows, text, table = make(runs, tmp_path / "out")
    numbers = ["0, 1", "95.5 ± 0.7", "95.8 ± 0.6", "4,500", "256", "54,000", "0.250 ± 0.000"]
    assert rows == [["MNIST", "1 x 128", "DR *", *numbers]]
    assert "- Marked *: fewer than the paper's 5 seeds" in text
    assert "- Seeds: 0, 1. ± is the standard deviation over a row's seeds, ddof = 1 for ours" in text
    assert "- Hardware of our runs: synthetic device." in text
    assert "no difference is judged" in text
    assert (table[0]["accuracy_mean"], table[0]["accuracy_std"], table[0]["seeds"]) == ("95.5", "0.707107", "0 1")
    assert (table[0]["accuracy_published_mean"], table[0]["n_failed"]) == ("95.8", "0")
    shown = capsys.readouterr().out
    assert "95.5 ± 0.7" in shown
    assert f"written: {tmp_path}/out/overview.md, {tmp_path}/out/overview.csv" in shown


def test_rows_have_the_papers_order_and_a_note_counts_the_cells_without_a_run(
    runs: Path, quick: Any, tmp_path: Path
) -> None:
    quick(cell__dataset="digits", cell__model="mlp_1x32")
    quick(**CNN)
    fail(quick(cell__method="cp", cell__engine="published"))
    quick(cell__method="ap", cell__engine="exact")
    quick(cell__method="ap", cell__engine="published")
    quick()
    rows, text, _ = make(runs, tmp_path / "out")
    assert [row[2].removesuffix(" *") for row in rows] == ["SGD", "AP", "AP (exact)", "CP", "SGD", "SGD"]
    assert [row[0] for row in rows if row[0]] == ["MNIST", "CIFAR-10", "Digits 8x8"]
    assert rows[-1][5] == "—"  # the paper has no digits
    command = "`make reproduce TABLE=all PRESET=quick` makes them."
    assert f"- Not listed: 83 of the paper's 87 cells without a run. {command}" in text


def test_a_failed_run_is_shown_in_its_row_and_told_below(runs: Path, quick: Any, tmp_path: Path) -> None:
    quick(**DR)
    folder = fail(quick(seed=2, **DR))
    rows, text, table = make(runs, tmp_path / "out")
    assert rows == [
        ["MNIST", "1 x 128", "DR *", "0, failed: 1 of 2", "95.0", "95.8 ± 0.6", "9,000", "256", "54,000", "0.250"]
    ]
    assert "- Failed: 1 of 2 runs. They enter no mean." in text
    told = "failed at step 1,200: `Diverged: the loss is not finite at step 1200`"
    assert f"- MNIST 1 x 128 DR, seed 2, {told} ({folder.name})." in text
    assert (table[0]["n_seeds"], table[0]["n_failed"], table[0]["failed_seeds"]) == ("1", "1", "2")


def test_a_cell_whose_runs_all_failed_has_a_row(runs: Path, quick: Any, tmp_path: Path) -> None:
    for seed in (10, 2):
        fail(quick(seed=seed, **DR), FAILED | {"message": "x" * 1000})
    rows, text, table = make(runs, tmp_path / "out")
    assert rows == [["MNIST", "1 x 128", "DR", "failed: 2 of 2", "—", "95.8 ± 0.6", "—", "256", "—", "—"]]
    assert "- Seeds: none finished." in text
    assert "Marked" not in text
    assert f"`Diverged: {'x' * 290} ..." in text
    assert table[0]["failed_seeds"] == "2 10"


@pytest.mark.parametrize(
    "change", [{"environment__device": "another device"}, {"config__method__window": 3}, {"cell__engine": "exact"}]
)
def test_a_failed_run_of_another_device_or_configuration_is_in_no_row_of_others(
    runs: Path, quick: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    quick(**DR)
    fail(quick(**(DR | {"seed": 1} | change)))
    rows, _, _ = make(runs, tmp_path / "out")
    assert sorted(row[3] for row in rows) == ["0", "failed: 1 of 1"]


def test_a_run_that_failed_and_was_repeated_is_finished(runs: Path, quick: Any, tmp_path: Path) -> None:
    record = quick()
    (record.parent / "FAILED.json").write_text(json.dumps(FAILED))
    rows, text, _ = make(runs, tmp_path / "out")
    assert rows[0][3] == "0"
    assert "Failed" not in text


def test_a_failed_run_is_in_the_row_of_its_own_data_or_in_none(runs: Path, quick: Any, tmp_path: Path) -> None:
    quick()
    quick(data__sha256="part")
    fail(quick(seed=1))
    fail(quick(seed=2))
    rows, _, _ = make(runs, tmp_path / "out")
    assert sorted(row[3] for row in rows) == ["0", "0", "failed: 2 of 2"]


@pytest.mark.parametrize("name", ["config.yaml", "environment.json"])
def test_a_failed_run_that_cannot_be_placed_is_named(
    runs: Path, quick: Any, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = fail(quick())
    (folder / name).unlink()
    assert overview.main([str(runs)]) == 1
    assert name in (error := capsys.readouterr().err)
    assert error.startswith(f"error: {folder}")


def test_subsets_altered_copies_and_step_limits_are_marked(runs: Path, quick: Any, tmp_path: Path) -> None:
    quick(data__subset=True, data__n_train=4500)
    quick(cell__method="adam", data__altered=True)
    for seed in range(5):
        ended = "max_steps" if seed < 2 else "patience"
        quick(seed=seed, metrics__stopped_by=ended, **DR)
    rows, text, table = make(runs, tmp_path / "out")
    assert [row[2] for row in rows] == ["SGD * †", "Adam * §", "DR ‡"]
    assert rows[0][8] == "4,500"
    assert "- Marked †: a subset of the data, 4,500 training samples.\n" in text
    assert "- Marked §: an altered copy of the data, not byte for byte the published one.\n" in text
    assert "- Marked ‡: 2 runs ended at the step limit, before early stopping would have ended them." in text
    assert [row["n_step_limit"] for row in table] == ["0", "0", "2"]


def test_devices_data_and_configurations_are_never_averaged_together(runs: Path, quick: Any, tmp_path: Path) -> None:
    quick()
    quick(seed=1, environment__device="another device")
    quick(seed=2, data__sha256="part")
    quick(seed=3, config__protocol__max_steps=1000)
    rows, text, _ = make(runs, tmp_path / "out")
    assert [row[3] for row in rows[:1]] == ["1"]
    assert sorted(row[3] for row in rows) == ["0", "1", "2", "3"]
    assert [row[2].split(" config ")[0] for row in rows] == ["SGD (A) *", "SGD (B)", "SGD (B)", "SGD (B)"]
    assert len({row[2] for row in rows}) == 4
    assert "- Hardware of our runs, never averaged together: (A) another device; (B) synthetic device." in text


def test_what_the_preset_changes_is_said_by_family_from_the_configurations(
    runs: Path, quick: Any, tmp_path: Path
) -> None:
    small = {"config__protocol__batch_size": 32, "config__protocol__evaluate_every": 100, "config__dataset__limit": 700}
    family = {"config__model": {"name": "cnn_1x32", "family": "cnn", "hidden": [32], "skip": False}}
    quick()
    quick(cell__method="adam")
    quick(config__protocol__max_steps=500, data__subset=True, data__n_train=630, **CNN, **small, **family)
    rows, text, _ = make(runs, tmp_path / "out")
    rest = "; the rest of the protocol is the paper's, which has no limit of steps."
    changed = "batches of 32 samples instead of 256, an evaluation every 100 steps instead of 1,000, at most 500 steps"
    limited = "the first 700 samples of the training and of the test set, where there are more"
    assert f"- Preset quick, MLP: at most 5,000 steps{rest}" in text
    assert f"- Preset quick, CNN: {changed}, {limited}{rest}" in text
    assert rows[-1][7:9] == ["32", "630"]


def test_cells_that_a_preset_changes_otherwise_than_their_family_are_named(
    runs: Path, quick: Any, tmp_path: Path
) -> None:
    quick()
    digits = {"cell__dataset": "digits", "cell__model": "mlp_1x32", "config__model__name": "mlp_1x32"}
    quick(config__protocol__patience=9, config__method__learning_rate=0.5, config__model__hidden=[32], **digits)
    quick(config__method__window=3, **DR)
    _, text, _ = make(runs, tmp_path / "out")
    assert "- Preset quick, MNIST 1 x 128 SGD: at most 5,000 steps;" in text
    assert "- Preset quick, MNIST 1 x 128 DR: at most 5,000 steps, method.window=3 instead of 1;" in text
    changed = "method.learning_rate=0.5 instead of 0.001, protocol.patience=9 instead of 5"
    assert f"- Preset quick, Digits 8x8 1 x 32 SGD: at most 5,000 steps, {changed};" in text


def test_each_preset_has_its_table_and_the_papers_has_none(runs: Path, quick: Any, tmp_path: Path) -> None:
    quick()
    quick(preset="brief", seed=1)
    quick(preset="paper", seed=2, metrics__test_accuracy=0.123)
    rows, text, table = make(runs, tmp_path / "out")
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        f"## Preset {name}: means of our runs; published accuracy for orientation" for name in ("brief", "quick")
    ]
    assert [row[3] for row in rows] == ["1", "0"]
    assert [row["preset"] for row in table] == ["brief", "quick"]
    assert "12.3" not in text


def test_runs_without_clocks_have_no_times(runs: Path, quick: Any, tmp_path: Path) -> None:
    quick(clocks=None)
    rows, _, _ = make(runs, tmp_path / "out")
    assert rows[0][9] == "—"


def test_files_are_byte_identical_on_a_second_run_and_lie_beside_the_runs(runs: Path, quick: Any) -> None:
    quick(seed=1)
    fail(quick())
    assert overview.main([str(runs)]) == 0
    first = {path.name: path.read_bytes() for path in runs.glob("overview.*")}
    assert set(first) == {"overview.md", "overview.csv"}
    assert overview.main([str(runs)]) == 0
    assert {path.name: path.read_bytes() for path in runs.glob("overview.*")} == first


def test_a_folder_without_such_runs_names_the_command(
    runs: Path, write_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert overview.main([str(tmp_path / "empty")]) == 1
    assert f"no runs of other presets or cells than the paper's under {tmp_path}/empty; " in capsys.readouterr().err
    write_run()
    assert overview.main([str(runs)]) == 1
    error = capsys.readouterr().err
    assert "(1 of preset paper, which `make tables` shows); `make reproduce TABLE=2 PRESET=quick` makes some" in error
    assert not list(runs.glob("overview.*"))


def test_a_seed_run_twice_or_a_place_that_holds_no_files_is_named(
    runs: Path, quick: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick()
    (tmp_path / "file").touch()
    assert overview.main([str(runs), "--out", str(tmp_path / "file")]) == 1
    assert f"error: the overview cannot be written to {tmp_path}/file" in capsys.readouterr().err
    path = quick()
    assert overview.main([str(runs)]) == 1
    assert f"one seed was run twice in one configuration: {runs}/run-000/record.json, {path}" in capsys.readouterr().err
