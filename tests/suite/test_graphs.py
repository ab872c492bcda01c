"""The graphs of Figures 5 and 7: the committed ones are what a trace gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import graphs

COMMITTED = Path(__file__).resolve().parents[2] / "results" / "graphs"


def test_the_committed_graphs_are_what_a_trace_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert graphs.main(["--out", str(tmp_path)]) == 0
    assert "written: " in capsys.readouterr().out
    names = {path.name for path in COMMITTED.iterdir()}
    assert names == {"mlp.json", "mlp.svg", "rnn.json", "rnn.svg"}
    for name in names:
        assert (tmp_path / name).read_bytes() == (COMMITTED / name).read_bytes(), name


def test_each_parameter_of_the_cell_is_read_once_by_every_cell() -> None:
    nodes = json.loads((COMMITTED / "rnn.json").read_text())["nodes"]
    parameters = [i for i, node in enumerate(nodes) if node["kind"] == "parameter"]
    assert len(parameters) == 4
    for parameter in parameters:
        readers = [node["cell"] for node in nodes if any(parameter in operand for operand in node["reads"])]
        assert readers == [1, 2, 3]
    loss = next(node for node in nodes if node["kind"] == "loss")
    assert sorted(nodes[i]["cell"] for i in loss["reads"][0]) == [1, 2, 3]


def test_listing_1_has_the_nodes_of_the_papers_figure() -> None:
    nodes = json.loads((COMMITTED / "mlp.json").read_text())["nodes"]
    names = [node["name"] for node in nodes]
    assert [name for name in names if "." in name] == ["hidden.weight", "out.weight", "relu.bias"]
    assert names.count("dot_general") == 2
    assert {"sum_relu", "cross_entropy"} <= set(names)


def test_a_place_that_holds_no_graphs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert graphs.main(["--out", str(tmp_path / "file")]) == 2
    assert "error: the graphs cannot be written: " in capsys.readouterr().err
