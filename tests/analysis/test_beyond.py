"""Other methods beside the paper's: what their table and figure say, and accuracies by a setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis import beyond
from tests.analysis.test_overview import fail

DISPLACEMENT = {"cell__method": "displacement", "config__method__target_scale": 0.001}


def make(runs: Path, out: Path, *more: str) -> tuple[list[list[str]], str]:
    """Runs the command; returns the rows of its Markdown tables and all of its text."""
    assert beyond.main([str(runs), "--out", str(out), *more]) == 0
    text = (out / "beyond.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in rows if not row[0].startswith("---")], text


def test_a_method_stands_beside_ours_by_adam_and_the_published_numbers(
    runs: Path, write_run: Any, tmp_path: Path
) -> None:
    for seed, accuracy in enumerate((0.97, 0.98, 0.99)):
        write_run(seed=seed, metrics__test_accuracy=accuracy, **DISPLACEMENT)
        write_run(
            seed=seed, metrics__test_accuracy=accuracy - 0.01, clocks__device_ms_per_step=0.2, cell__method="adam"
        )
    write_run(cell__method="dr", cell__engine="published")
    rows, text = make(runs, tmp_path / "out")
    assert rows[0][6] == "Difference [95\u00a0%]"
    adam, dr, ours = rows[1:]
    assert adam == [
        "MNIST",
        "MLP 1 x 128",
        "Adam *",
        "0, 1, 2",
        "97.00 ± 1.00",
        "98.1 ± 0.1",
        "—",
        "9,000",
        "0.200",
        "1.00",
    ]
    # 50 steps an update.
    assert dr[2:] == ["DR *", "0", "95.00", "95.8 ± 0.6", "—", "180", "12.500", "62.50"]
    assert ours[2:6] == ["Displacement *", "0, 1, 2", "98.00 ± 1.00", "—"]
    assert ours[6].startswith("+1.00 [-1.27, +3.27]")
    assert ours[7:] == ["9,000", "0.250", "1.25"]
    assert f"Made by `python -m analysis.beyond {runs} --out {tmp_path}/out`." in text
    assert "one batch, which counts as 50 steps of DR, AP and CP" in text
    for suffix in ("png", "pdf", "svg", "md"):
        assert (tmp_path / "out" / f"curves.{suffix}").stat().st_size > 100


def test_settings_and_devices_are_told_apart_and_adam_of_another_device_is_none(
    runs: Path, write_run: Any, tmp_path: Path
) -> None:
    write_run(**DISPLACEMENT)
    write_run(**{**DISPLACEMENT, "config__method__target_scale": 0.1})
    write_run(cell__method="adam", environment__device="another device")
    fail(write_run(seed=1, **DISPLACEMENT))
    rows, text = make(runs, tmp_path / "out")
    assert [row[2] for row in rows[1:]] == [
        "Adam (A) *",
        "Displacement, target_scale 0.001 (B) *",
        "Displacement, target_scale 0.1 (B) *",
    ]
    assert [row[6] for row in rows[1:]] == ["—"] * 3
    assert "Hardware of our runs, never averaged together: (A) another device; (B) synthetic device." in text
    assert "Failed: run-003 at step 1,200: `Diverged: the loss is not finite at step 1200`." in text


def test_a_pivot_has_a_column_for_each_value_and_a_row_for_each_of_the_other_settings(
    runs: Path, write_run: Any, tmp_path: Path
) -> None:
    for scale in (0.1, 0.001):
        for gain in ("none", "element"):
            settings = {"config__method__target_scale": scale, "config__method__gain": gain}
            if (scale, gain) != (0.1, "none"):
                write_run(metrics__test_accuracy=0.9 + (gain == "none") / 20 + scale / 10, **DISPLACEMENT | settings)
    for seed in (5, 6):
        diverged = DISPLACEMENT | {"config__method__target_scale": 0.001, "config__method__gain": "node"}
        fail(write_run(seed=seed, **diverged))
    rows, text = make(runs, tmp_path / "out", "--pivot", "method.target_scale")
    assert rows == [
        ["Dataset", "Architecture", "Method", "Settings", "0.001", "0.1"],
        ["MNIST", "MLP 1 x 128", "Displacement", "gain element", "90.0", "91.0"],
        ["", "", "Displacement", "gain node", "failed", "—"],
        ["", "", "Displacement", "gain none", "95.0", "—"],
    ]
    write_run(environment__device="another device", **diverged)
    rows, _ = make(runs, tmp_path / "out", "--pivot", "method.target_scale")
    assert [row[3] for row in rows[1:]] == [
        "gain element, synthetic device",
        "gain node, another device",
        "gain node, synthetic device",
        "gain none, synthetic device",
    ]
    assert "## MNIST, MLP 1 x 128: test accuracy (%) by method.target_scale" in text
    assert not list((tmp_path / "out").glob("*.png"))


def test_where_adam_has_several_configurations_a_line_says_why_there_is_no_difference(
    runs: Path, write_run: Any, tmp_path: Path
) -> None:
    for seed in range(2):
        write_run(seed=seed, **DISPLACEMENT)
        for rate in (0.1, 0.01):
            write_run(seed=seed, cell__method="adam", config__method__learning_rate=rate)
    rows, text = make(runs, tmp_path / "out")
    assert [row[6] for row in rows[1:]] == ["—"] * 3
    assert "No difference where the reference ran in several configurations: MNIST MLP 1 x 128." in text
    _, text = make(runs, tmp_path / "out", "--pivot", "method.learning_rate")
    assert "several configurations" not in text


def test_the_straight_through_estimator_is_the_reference_where_there_is_one(
    runs: Path, write_run: Any, tmp_path: Path
) -> None:
    for seed in range(2):
        write_run(seed=seed, metrics__test_accuracy=0.9, **DISPLACEMENT)
        write_run(seed=seed, metrics__test_accuracy=0.8, cell__method="adam")
        write_run(seed=seed, metrics__test_accuracy=0.92, cell__method="straight_through")
    rows, _ = make(runs, tmp_path / "out", "--model", "mlp_*")
    assert [(row[2].split()[0], row[6][:6]) for row in rows[1:]] == [
        ("Adam", "-12.00"),
        ("Displacement", "-2.00 "),
        ("Straight-through", "—"),
    ]
    assert beyond.main([str(runs), "--model", "cnn_*"]) == 1


@pytest.mark.parametrize("more", [[], ["--pivot", "method.target_scale"]])
def test_one_data_set_is_printed_and_all_are_written(
    more: list[str], runs: Path, write_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(**DISPLACEMENT)
    write_run(cell__dataset="cifar10", cell__model="mlp_1x256", **DISPLACEMENT)
    rows, _ = make(runs, tmp_path / "out", "--dataset", "mnist", *more)
    assert {"MNIST", "CIFAR-10"} <= {row[0] for row in rows}
    printed = capsys.readouterr().out
    assert "MNIST" in printed
    assert "CIFAR-10" not in printed
    assert beyond.main([str(runs), "--dataset", "higgs", *more]) == 1
    assert "no run of data set higgs under" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--dataset", "mnist"]])
def test_a_folder_of_failed_runs_alone_is_shown(more: list[str], runs: Path, write_run: Any, tmp_path: Path) -> None:
    fail(write_run(**DISPLACEMENT))
    rows, text = make(runs, tmp_path / "out", "--pivot", "method.target_scale", *more)
    assert rows[1][-1] == "failed"
    assert "Failed: run-" in text
    make(runs, tmp_path / "out", *more)


def test_what_cannot_be_shown_is_named(
    runs: Path, write_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert beyond.main([str(runs)]) == 1
    assert "no finished runs under" in capsys.readouterr().err
    record = write_run(cell__method="adam")
    assert beyond.main([str(runs), "--pivot", "method.nothing"]) == 1
    assert "no run has the key method.nothing" in capsys.readouterr().err
    (record.parent / "events.jsonl").unlink()
    assert beyond.main([str(runs)]) == 1
    assert "events.jsonl" in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        beyond.main([str(tmp_path / "file")])
