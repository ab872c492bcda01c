"""The demonstration's table and figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import demo
from analysis.style import METHODS, method_style

FIVE = {"cp": "published", "adam": None, "dr": "published", "sgd": None, "ap": "published"}


def write_five(write_run: Any) -> None:
    for method, engine in FIVE.items():
        cell = {"cell__dataset": "digits", "cell__model": "mlp_1x32", "cell__method": method, "cell__engine": engine}
        write_run(preset="demo", **cell)


def test_table_and_figure_of_five_methods(runs: Path, write_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write_five(write_run)
    assert demo.main([str(runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Digits 8x8, MLP 1 x 32: 5 methods" in lines[0]
    shown = [line.split() for line in lines if line.split()[:1] and line.split()[0].lower() in METHODS]
    assert shown == [[name, "95.0", "9,000", "3,000", "0.250"] for name in ("SGD", "Adam", "DR", "AP", "CP")]
    figure = runs / "demo.png"
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert figure.stat().st_size > 10_000
    first = figure.read_bytes()
    assert demo.main([str(runs)]) == 0
    assert figure.read_bytes() == first


def test_figure_has_every_curve_on_labelled_axes(runs: Path, write_run: Any) -> None:
    write_five(write_run)
    steps, seconds = demo.figure(demo.load_demo(runs)).axes
    assert [line.get_label() for line in steps.lines] == ["SGD", "Adam", "DR", "AP", "CP"]
    assert np.asarray(steps.lines[0].get_xdata())[-1] == 9000
    assert np.asarray(seconds.lines[0].get_xdata())[-1] == 4.5
    assert np.asarray(seconds.lines[0].get_ydata())[-1] == pytest.approx(96.0)
    assert steps.get_ylabel() == "Validation accuracy (%)"
    assert "(s)" in seconds.get_xlabel()


def test_methods_differ_without_colour() -> None:
    assert len({style.marker for style in METHODS.values()}) == len(METHODS)
    assert len({style.linestyle for style in METHODS.values()}) == len(METHODS)


def test_an_unknown_method_says_where_to_add_it() -> None:
    with pytest.raises(KeyError, match=r"no style for method 'new' .*analysis/style\.py"):
        method_style("new")


def test_seeds_are_averaged_in_the_table_and_drawn_one_by_one(runs: Path, write_run: Any) -> None:
    for seed, accuracy in enumerate((0.9, 0.92)):
        write_run(seed=seed, metrics__test_accuracy=accuracy)
    entries = demo.load_demo(runs)
    assert list(demo.table(entries).columns[1].cells) == ["91.0 ± 1.4"]
    assert len(demo.figure(entries).axes[0].lines) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell__dataset": "digits"}, "holds more than one dataset: digits, mnist"),
        ({"environment__device": "another"}, "holds more than one device: another, synthetic device"),
        ({"cell__method": "new"}, "holds methods without a style: new"),
        ({"config__extra": 1}, "holds SGD in more than one configuration: run-000, run-001"),
        ({"seed": -1}, "'seed' should be a count"),
    ],
)
def test_what_one_figure_cannot_show_is_refused(
    runs: Path, write_run: Any, capsys: pytest.CaptureFixture[str], changes: Any, message: str
) -> None:
    write_run()
    write_run(**changes)
    assert demo.main([str(runs)]) == 1
    assert message in capsys.readouterr().err


def test_a_place_that_holds_no_figure_is_named(
    runs: Path, write_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run()
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "demo.png"
    assert demo.main([str(runs), "--out", str(out)]) == 1
    assert f"error: the figure cannot be written to {out}" in capsys.readouterr().err


def test_no_records_name_the_command(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main([str(runs)]) == 1
    assert "`make demo` makes them" in capsys.readouterr().err
