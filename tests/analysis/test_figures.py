"""Figures from no, one and all cells, with their commands, and the same bytes each time."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis import figures
from analysis.drawings import GraphError, figure_5, figure_7, load_graph
from analysis.figures import FORMATS, draw_figures
from analysis.style import METHODS

RESULTS = Path(__file__).resolve().parents[2] / "results"
SOURCES = (RESULTS / "benchmarks", RESULTS / "graphs")
NUMBERS = (3, 4, 5, 6, 7)


def drawn(runs: Path) -> dict[int | str, Figure]:
    return {one.number: one.figure for one in draw_figures(runs, *SOURCES)}


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))  # type: ignore[attr-defined]


def test_without_anything_each_figure_says_how_to_get_it(runs: Path, tmp_path: Path) -> None:
    one_by_one = draw_figures(runs, tmp_path / "none", tmp_path / "none")
    assert [one.number for one in one_by_one] == list(NUMBERS)
    said = {one.number: words(one.figure) for one in one_by_one}
    assert "make reproduce TABLE=2" in said[3]
    assert said[4].count("no runs yet") == 3
    assert "python -m benchmarks.depth --json" in said[6]
    assert "python -m experiments.graphs" in said[5]
    assert said[7] == said[5]


def test_one_run_fills_its_panel_and_leaves_the_others_empty(runs: Path, write_run: Any) -> None:
    write_run(cell__method="dr", cell__engine="published", seed=3)
    found = drawn(runs)
    for number in (3, 4):
        text = words(found[number])
        assert "MNIST, MLP 1 x 128\n1 seed" in text
        assert text.count("no runs yet") == 2
    first, *rest = found[3].axes
    assert first.get_ylabel() == "Validation accuracy (%)"
    assert first.get_xlabel() == "Steps (thousands)"
    assert np.asarray(first.lines[0].get_xdata())[[0, -1]].tolist() == [1.0, 9.0]
    assert not any(axis.lines for axis in rest)


def test_a_band_covers_the_steps_that_all_seeds_ran_and_the_rest_is_drawn_alone(runs: Path, write_run: Any) -> None:
    for seed, cut in ((0, 10), (1, 6)):
        path = write_run(seed=seed).parent / "events.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:cut]))
    (axis, *_) = drawn(runs)[3].axes
    mean, rest = axis.lines
    assert np.asarray(mean.get_xdata())[-1] == 5.0
    assert np.asarray(rest.get_xdata()).tolist() == [5.0, 6.0, 7.0, 8.0, 9.0]
    assert len(axis.collections) == 1
    assert "2 seeds" in axis.get_title()


def test_all_cells_have_their_curve_and_cp_is_left_out(runs: Path, write_all: Any) -> None:
    write_all(1)
    found = drawn(runs)
    assert len(found[3].axes) == 18
    assert all([line.get_label() for line in axis.lines] == ["SGD", "Adam", "DR", "AP"] for axis in found[3].axes)
    assert "no runs yet" not in words(found[3]) + words(found[4])


def test_subsets_are_marked_and_other_presets_left_out(runs: Path, write_run: Any) -> None:
    write_run(data__subset=True)
    write_run(preset="quick", cell__method="adam")
    (axis, *_) = drawn(runs)[3].axes
    assert axis.get_title() == "MNIST, MLP 1 x 128\n1 seed; SGD on a subset of the data"
    assert len(axis.lines) == 1


def test_a_method_looks_the_same_everywhere_and_differs_in_grey(runs: Path, write_run: Any) -> None:
    write_run()
    write_run(cell__method="ap", cell__engine="published")
    found = drawn(runs)
    looks = {
        line.get_label().split(":")[0]: (line.get_color(), line.get_marker())  # type: ignore[union-attr]
        for number in (3, 6)
        for line in found[number].axes[0].lines
    }
    assert {METHODS[name].label for name in ("sgd", "ap", "cp")} <= set(looks)
    for style in METHODS.values():
        assert looks.get(style.label, (style.color, style.marker)) == (style.color, style.marker)
    assert len({style.linestyle for style in METHODS.values()}) == len(METHODS)
    assert len({style.marker for style in METHODS.values()}) == len(METHODS)


def test_the_command_writes_every_figure_in_every_format(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    nowhere = ["--benchmarks", str(tmp_path), "--graphs", str(tmp_path)]
    assert figures.main([str(runs), *nowhere, "--out", str(out)]) == 0
    names = {f"figure{number}.{suffix}" for number in NUMBERS for suffix in (*FORMATS, "md")}
    assert {path.name for path in out.iterdir()} == names
    assert "Figure 7: " in capsys.readouterr().out
    command = f"python -m analysis.figures {runs} --benchmarks {tmp_path} --graphs {tmp_path} --out {out}"
    for path in out.glob("*.md"):
        assert path.read_text(encoding="utf-8").endswith(f"Made by `{command}`.\n")


def test_files_name_their_command_and_are_the_same_each_time(runs: Path, write_run: Any, tmp_path: Path) -> None:
    write_run()
    command = "python -m analysis.figures elsewhere"
    made, again = (
        {
            path.name: path.read_bytes()
            for path in figures.write_figures(
                [one for one in draw_figures(runs, *SOURCES) if one.number in (3, 7)], command, tmp_path / name
            )
        }
        for name in ("first", "second")
    )
    assert made == again
    for name, content in made.items():
        if not name.endswith(".pdf"):  # whose text is compressed
            assert command.encode() in content, name
        assert b"CreationDate" not in content
        assert b"Matplotlib" not in content, name
        if name.endswith(".png"):  # of a size that a page bears
            width, height = struct.unpack(">II", content[16:24])
            assert 600 <= width <= 1400
            assert height <= 1200


def test_figure_5_has_a_copy_of_the_parameters_for_every_cell() -> None:
    text = words(figure_5(load_graph(RESULTS / "graphs" / "rnn.json")))
    assert [f"$w_{t}$: local copy" in text for t in (1, 2, 3, 4)] == [True, True, True, False]
    assert "parameter nodes $w$: consensus" in text
    assert text.count("dot_general") == 6
    assert "$h_2$" in text


def test_figure_7_has_all_that_the_engine_drew() -> None:
    path = RESULTS / "graphs" / "mlp.svg"
    drawn = words(figure_7(path))
    said = [element.text for element in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]
    assert len(said) > 20
    assert all(str(text) in drawn for text in said)


@pytest.mark.parametrize("name", ["rnn.json", "mlp.svg"])
def test_a_broken_graph_is_named(runs: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_text("<svg>")
    assert figures.main([str(runs), "--graphs", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert f"error: {tmp_path / name}: not a " in capsys.readouterr().err


def test_what_the_engine_does_not_draw_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mlp.svg"
    for body in ("<ellipse/>", '<path d="Q 1 2"/>'):
        path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">{body}</svg>')
        with pytest.raises(GraphError, match="unknown"):
            figure_7(path)
