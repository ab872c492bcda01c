"""Tables from no, one and several synthetic records: what is printed, marked, left out and kept apart."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from analysis import demo, figures, latex, report, tables
from analysis.compare import CompareError, compare
from analysis.load import load_records
from analysis.published import load_published
from analysis.terminal import shown_path


def make(runs: Path, out: Path, *arguments: str) -> tuple[str, list[dict[str, str]]]:
    """Runs the command for Table 2; returns the Markdown and the rows of the CSV file."""
    assert tables.main([str(runs), "--table", "2", "--out", str(out), *arguments]) == 0
    lines = (out / "table2.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"# made by: python -m analysis.tables {runs} --table 2 --out {out}"
    return (out / "table2.md").read_text(encoding="utf-8"), list(csv.DictReader(lines[1:]))


def cells(text: str, method: str, part: str = "test accuracy") -> list[str]:
    """The first Markdown row of a method in the part of a file whose heading has these words, cell by cell."""
    section = next(section for section in text.split("## ")[1:] if part in section.splitlines()[0])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return next(row for row in rows if row[2].removesuffix(" *") == method)


def test_without_records_every_cell_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert tables.main([str(tmp_path / "empty"), "--out", str(tmp_path / "out")]) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"table{number}.{suffix}" for number in (2, 3, 4) for suffix in ("csv", "md", "tex")]
    text = (tmp_path / "out" / "table2.md").read_text(encoding="utf-8")
    assert f"No records under {tmp_path}/empty: every cell is missing (—). `make reproduce TABLE=2` makes them." in text
    assert "- Accuracy of 0 of 45 cells judged: 0 reproduced, 0 inconclusive, 0 differs." in text
    assert cells(text, "DR") == ["", "", "DR", "—", "—", "95.8 ± 0.6", "—", "—", "missing", "—"]
    assert sum(line.startswith("|") for line in text.splitlines()) == 4 * (2 + 45)
    shown = capsys.readouterr().out
    assert "Table 4: RNN performance, ours beside published" in shown
    assert "205.2 ± 78.3" in shown  # the widest number of a column is not shortened in a pipe


def test_tables_without_a_record_are_left_out_unless_asked_for(
    runs: Path, write_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    write_run(cell__dataset="digits")  # a record of no table is as good as none
    assert tables.main([str(runs), "--dataset", "mnist", "--out", str(out)]) == 0
    assert {path.stem for path in out.iterdir()} == {"table2", "table3"}
    write_run()
    capsys.readouterr()
    assert tables.main([str(runs), "--out", str(out / "all")]) == 0
    assert {path.stem for path in (out / "all").iterdir()} == {"table2"}
    assert "Table 3: CNN" not in capsys.readouterr().out
    assert tables.main([str(runs), "--table", "3", "--out", str(out / "asked")]) == 0
    assert {path.stem for path in (out / "asked").iterdir()} == {"table3"}


def test_a_data_set_narrows_what_is_printed_and_not_the_files(
    runs: Path, write_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run()
    whole, _ = make(runs, tmp_path / "out")
    assert "HIGGS" in capsys.readouterr().out
    narrowed, _ = make(runs, tmp_path / "out", "--dataset", "mnist")
    shown = capsys.readouterr().out
    assert "HIGGS" not in shown
    assert "Table 2 (MNIST shown):" in shown
    assert narrowed == whole


def test_one_record_stands_beside_the_published_one(runs: Path, write_run: Any, tmp_path: Path) -> None:
    write_run()
    text, rows = make(runs, tmp_path / "out")
    place = ["MNIST", "1 x 128", "SGD *"]
    assert cells(text, "SGD", "paper's layout") == [*place, "95.0", "3.0", "1.5", "0.50"]
    assert cells(text, "SGD") == [*place, "1", "95.0", "96.8 ± 0.1", "-1.8", "± 0.25", "inconclusive", "97.0"]
    assert cells(text, "SGD", "steps") == [*place, "1", "3.0", "58.6 ± 7.2", "-55.6", "± 16.10", "inconclusive"]
    times = ["0.50", "3.06 ± 0.03", "1.00", "1.00", "0.250", "1.00", "1.5", "178.7 ± 21.6", "1.0"]
    assert cells(text, "SGD", "times") == [*place, *times]
    assert "- Missing (—): 44 of 45 cells. `make reproduce TABLE=2` makes them." in text
    assert "- Marked *: fewer than the paper's 5 seeds" in text
    assert "- Hardware of our runs: synthetic device." in text
    assert "Made by `python -m analysis.tables" in text
    assert (rows[0]["accuracy_mean"], rows[0]["accuracy_std"], rows[0]["n_seeds"]) == ("95", "", "1")
    assert (rows[0]["accuracy_verdict"], rows[0]["accuracy_reason"]) == ("inconclusive", "fewer than 3 seeds")
    assert (rows[1]["method"], rows[1]["accuracy_mean"], rows[1]["n_seeds"]) == ("adam", "", "0")
    assert rows[1]["accuracy_verdict"] == ""


def test_several_seeds_have_mean_deviation_and_ratio(runs: Path, write_run: Any, tmp_path: Path) -> None:
    for seed in (4, 0, 3, 1, 2):
        write_run(seed=seed)
    for seed, accuracy in enumerate((0.95, 0.96)):
        changes = {"metrics__test_accuracy": accuracy, "clocks__published_ms_per_step": 0.25}
        write_run(seed=seed, cell__method="dr", cell__engine="published", clocks__device_ms_per_step=0.75, **changes)
    text, rows = make(runs, tmp_path / "out")
    assert cells(text, "SGD")[2:5] == ["SGD", "5", "95.0 ± 0.0"]
    dr = cells(text, "DR")
    assert dr[2:6] == ["DR *", "2", "95.5 ± 0.7", "95.8 ± 0.6"]
    assert dr[6].startswith("-0.3 [")
    assert cells(text, "DR", "times")[5:9] == ["0.50", "0.18", "0.750 ± 0.000", "3.00"]
    assert rows[0]["seeds"] == "0 1 2 3 4"
    assert rows[2]["accuracy_std"] == f"{100 * statistics.stdev([0.95, 0.96]):.6g}"


def test_cells_are_judged_and_counted(runs: Path, write_run: Any, tmp_path: Path) -> None:
    for seed in range(5):
        write_run(seed=seed, metrics__test_accuracy=0.967 + 0.0005 * seed, metrics__steps_to_99=58000 + 1000 * seed)
        write_run(seed=seed, cell__method="adam", metrics__test_accuracy=0.95 + 0.001 * seed)
    text, rows = make(runs, tmp_path / "out")
    assert "- Accuracy of 2 of 45 cells judged: 1 reproduced, 0 inconclusive, 1 differs." in text
    assert [cells(text, name)[8] for name in ("SGD", "Adam", "DR")] == ["reproduced", "differs", "missing"]
    assert cells(text, "SGD", "steps")[8] == "reproduced"
    low, high = float(rows[0]["accuracy_low"]), float(rows[0]["accuracy_high"])
    assert low < 0 < high
    assert cells(text, "SGD")[6] == f"+0.0 [{low:+.1f}, {high:+.1f}]"
    assert float(rows[1]["accuracy_p_holm"]) < 0.05
    assert rows[0]["accuracy_seeds_needed"]


def test_files_are_byte_identical_on_a_second_run(runs: Path, write_run: Any, tmp_path: Path) -> None:
    for seed in (1, 0):
        write_run(seed=seed, metrics__test_accuracy=0.9 + seed / 30)
    out = tmp_path / "out"
    make(runs, out)
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    make(runs, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


def test_all_cells_are_judged(runs: Path, write_all: Any, tmp_path: Path) -> None:
    write_all(3)
    assert tables.main([str(runs), "--out", str(tmp_path)]) == 0
    for number, total in ((2, 45), (3, 30), (4, 12)):
        text = (tmp_path / f"table{number}.md").read_text(encoding="utf-8")
        assert f"- Accuracy of {total} of {total} cells judged: " in text
        assert "Missing" not in text
        assert "Marked *" in text


def test_exact_records_are_an_extra_row(runs: Path, write_run: Any, tmp_path: Path) -> None:
    write_run(cell__method="ap", cell__engine="exact", metrics__test_accuracy=0.926)
    text, _ = make(runs, tmp_path / "out")
    assert cells(text, "AP")[3] == "—"
    assert cells(text, "AP (exact)")[3:9] == ["1", "92.6", "91.6 ± 0.7", "+1.0", "—", "not judged"]
    assert "- Missing (—): 45 of 45 cells." in text
    assert "0 of 45 cells judged" in text


def test_other_presets_protocols_cells_and_engines_are_left_out(runs: Path, write_run: Any, tmp_path: Path) -> None:
    write_run(preset="quick")
    write_run(preset="quick", seed=1)
    write_run(cell__dataset="digits")
    write_run(cell__engine="exact")
    write_run(config__protocol__patience=2)
    text, _ = make(runs, tmp_path / "out")
    reasons = [
        "digits/mlp_1x128/sgd is not a cell of the paper: 1",
        "preset paper with protocol.patience=2 instead of 5: 1",
        "preset quick: 2",
        "sgd with engine exact: 1",
    ]
    assert f"- Left out: 5 of 5 records ({'; '.join(reasons)})." in text
    assert cells(text, "SGD")[3] == "—"


@pytest.mark.parametrize(
    ("method", "change", "reason"),
    [
        ("sgd", {"method__learning_rate": 0.5}, "method.learning_rate=0.5 instead of 0.001"),
        ("adam", {"method__output_bias": False}, "method.output_bias=false instead of true"),
        ("dr", {"model__hidden": [16]}, "model.hidden=[16] instead of [128]"),
        ("dr", {"method__window": 5}, "method.window=5 instead of 1"),
        ("dr", {"method__relaxation": 0.7}, "method.relaxation=0.7 instead of 0.5"),
        ("ap", {"method__steps_per_update": 10}, "method.steps_per_update=10 instead of 50"),
        ("ap", {"method__representation": "edges"}, 'method.representation="edges" instead of "auto"'),
        ("cp", {"engine__prox_lambda": 1.0}, "engine.prox_lambda=1.0 instead of 5.0"),
        ("cp", {"model__skip": True}, "model.skip=true instead of false"),
        ("sgd", {"dataset__num_classes": 20}, "dataset.num_classes=20 instead of 10"),
        ("sgd", {"method__momentum": 0.9}, "method.momentum=0.9 (not in published.yaml)"),
        ("sgd", {"model__name": "mlp_1x64"}, 'model.name="mlp_1x64" instead of "mlp_1x128"'),
        ("sgd", {"model": {"name": "mlp_1x128", "skip": False}}, "no model.hidden"),
        (
            "dr",
            {"method__window": 3, "engine__prox_lambda": 4},
            "engine.prox_lambda=4 instead of 5.0, method.window=3 instead of 1",
        ),
    ],
)
def test_a_record_of_another_configuration_is_left_out_with_what_differs(
    runs: Path, write_run: Any, tmp_path: Path, method: str, change: dict[str, Any], reason: str
) -> None:
    cell = {"cell__method": method, "cell__engine": None if method in ("sgd", "adam") else "published"}
    write_run(**cell)
    write_run(seed=1, **cell, **{f"config__{key}": value for key, value in change.items()})
    text, rows = make(runs, tmp_path / "out")
    assert f"- Left out: 1 of 2 records (preset paper with {reason}: 1)." in text
    assert [row["seeds"] for row in rows if row["method"] == method and row["n_seeds"] != "0"] == ["0"]


def test_devices_are_never_averaged_together(runs: Path, write_run: Any, tmp_path: Path) -> None:
    write_run(environment__device="first device")
    write_run(environment__device="second device", clocks__published_ms_per_step=0.1)
    write_run(cell__method="adam", environment__device="second device")
    text, _ = make(runs, tmp_path / "out")
    assert [cells(text, name, "times")[3] for name in ("SGD (A)", "SGD (B)")] == ["0.50", "0.10"]
    assert cells(text, "Adam (B)", "times")[5] == "5.00"
    # A cell is one test: the first of equally many seeds is judged.
    assert [cells(text, name)[8] for name in ("SGD (A)", "SGD (B)")] == ["inconclusive", "not judged"]
    assert "- Hardware of our runs, never averaged together: (A) first device; (B) second device." in text


def test_subsets_step_limits_and_configurations_are_marked(runs: Path, write_run: Any, tmp_path: Path) -> None:
    write_run(
        data__subset=True,
        data__altered=True,
        data__n_train=5400,
        metrics__stopped_by="max_steps",
        config__dataset__subset=True,
        config__dataset__altered=True,
    )
    write_run(cell__method="adam")
    write_run(cell__method="adam", config__protocol__max_steps=1000000)
    text, _ = make(runs, tmp_path / "out")
    assert cells(text, "SGD * † § ‡")[8] == "not judged"
    assert "- Marked †: a subset of the data, 5,400 training samples; not judged." in text
    assert "- Marked §: an altered copy of the data, not byte for byte the published one; not judged." in text
    assert "- Marked ‡: 1 run ended at the step limit" in text
    assert text.count("| Adam config ") == 2 * 4


def test_a_ratio_needs_sgd_on_the_same_data(runs: Path, write_run: Any, tmp_path: Path) -> None:
    write_run(data__sha256="part", data__subset=True)
    write_run(cell__method="adam")
    text, _ = make(runs, tmp_path / "out")
    assert cells(text, "Adam", "times")[5] == "—"


def test_files_name_folders_of_the_repository_from_its_root(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    root = Path(tables.__file__).parents[1]
    assert shown_path(root / "results" / "runs") == "results/runs"
    assert shown_path(Path("elsewhere")) == "elsewhere"


def test_a_seed_run_twice_is_refused(runs: Path, write_run: Any) -> None:
    paths = [write_run(), write_run()]
    with pytest.raises(CompareError, match="one seed was run twice") as error:
        compare(load_records(runs), load_published(), 2)
    assert all(str(path) in str(error.value) for path in paths)


def test_a_broken_record_ends_the_command_with_its_name(
    runs: Path, write_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run()
    path.write_text("{")
    assert tables.main([str(runs), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {path}: not valid JSON")


def test_a_folder_that_holds_no_tables_is_named(
    runs: Path, write_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run()
    (tmp_path / "file").touch()
    assert tables.main([str(runs), "--out", str(tmp_path / "file")]) == 1
    assert f"error: the tables cannot be written to {tmp_path / 'file'}" in capsys.readouterr().err


def test_several_tables_are_separated_by_commas(runs: Path, tmp_path: Path) -> None:
    assert tables.main([str(runs), "--table", "2,4", "--out", str(tmp_path / "out")]) == 0
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"table2", "table4"}


@pytest.mark.parametrize(
    ("given", "named"), [("5", "'5'"), ("2,x", "'x'"), ("2,", "''"), ("7,2,8", "'7' and no table '8'")]
)
def test_an_unknown_table_is_named_beside_the_known(given: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tables.main(["--table", given])
    error = capsys.readouterr().err
    assert f"there is no table {named}: the paper's are 2, 3, 4; several are named like 2,3" in error


def test_a_table_without_the_data_set_lists_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tables.main(["--table", "4", "--dataset", "mnist"])
    assert "table 4 has no mnist; it is in table 2, 3" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [tables.main, figures.main, report.main, latex.main, demo.main])
def test_a_folder_that_is_not_there_is_no_folder_without_records(
    verb: Callable[[Sequence[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for name, what in (("absent", "no folder"), ("file", "a file")):
        with pytest.raises(SystemExit) as ended:
            verb([str(tmp_path / name)])
        assert ended.value.code == 2
        assert f"{tmp_path}/{name} is {what}" in capsys.readouterr().err
