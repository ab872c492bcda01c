"""The committed tables are what the committed records give, and `docs/results.md` says what both say."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from analysis import figures, overview, tables
from analysis.claims import Outcome, State, judge_ours, load_depth
from analysis.published import load_published

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
TABLE = RESULTS / "tables" / "table2.md"
README = ROOT / "README.md"
DISCUSSION = ROOT / "docs" / "results.md"
AP = sorted((RESULTS / "runs").glob("mnist-mlp_1x128-ap-published-*"))


def rows(text: str) -> list[dict[str, str]]:
    """The rows of a Markdown table, by column."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def parts(text: str) -> list[list[dict[str, str]]]:
    """The rows of each part of a file of tables: paper's layout, accuracy, steps, times."""
    return [rows(part) for part in text.split("## ")[1:]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make tables` makes of the committed records."""
    out = tmp_path_factory.mktemp("tables")
    assert tables.main([str(RESULTS / "runs"), "--out", str(out)]) == 0
    return out


def test_the_committed_tables_are_what_the_records_give(made: Path) -> None:
    committed = {path.name: path.read_text(encoding="utf-8") for path in (RESULTS / "tables").iterdir()}
    again = {path.name: path.read_text(encoding="utf-8") for path in made.iterdir()}
    assert committed == {name: text.replace(str(made), "results/tables") for name, text in again.items()}


def test_the_committed_overviews_are_what_the_records_give(tmp_path: Path) -> None:
    for runs in sorted(path.parent for path in RESULTS.glob("*/overview.md")):
        assert overview.main([str(runs), "--out", str(tmp_path)]) == 0
        for again in tmp_path.iterdir():
            text = again.read_text(encoding="utf-8").replace(str(tmp_path), f"results/{runs.name}")
            assert (runs / again.name).read_text(encoding="utf-8") == text


def test_readme_has_the_summary_of_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "README.md"
    copy.write_text(README.read_text(encoding="utf-8"), encoding="utf-8")
    assert tables.main([str(RESULTS / "runs"), "--readme", str(copy)]) == 0
    assert copy.read_text(encoding="utf-8") == README.read_text(encoding="utf-8"), f"run {tables.README_START[14:-4]}"


def test_a_readme_without_a_place_for_the_summary_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text("# Nothing\n")
    assert tables.main([str(RESULTS / "runs"), "--readme", str(tmp_path / "README.md")]) == 1
    assert f"error: {tmp_path}/README.md: no place for the summary" in capsys.readouterr().err


def test_the_committed_captions_are_what_the_records_give() -> None:
    drawn = figures.draw_figures(RESULTS / "runs", RESULTS / "benchmarks", RESULTS / "graphs")
    for one in drawn:
        text = (RESULTS / "figures" / f"figure{one.number}.md").read_text(encoding="utf-8")
        assert text == f"**Figure {one.number}: {one.title}.** {one.caption}\n\nMade by `python -m analysis.figures`.\n"


def test_the_committed_figures_are_what_the_records_give(tmp_path: Path) -> None:
    drawn = figures.draw_figures(RESULTS / "runs", RESULTS / "benchmarks", RESULTS / "graphs")
    figures.write_figures(drawn, "", tmp_path)
    for one in drawn:
        name = f"figure{one.number}.png"
        committed, again = (plt.imread(folder / name) for folder in (RESULTS / "figures", tmp_path))
        assert committed.shape == again.shape, name
        # Another build of the font renderer may shade the edge of a letter differently.
        different = np.abs(committed - again).max(axis=-1) > 0.25
        assert different.mean() < 1e-4, f"{name} is not what the records give: make figures"


def test_the_discussion_has_the_tables_numbers() -> None:
    text = " ".join(DISCUSSION.read_text().split())
    _, accuracy, _, times = parts(TABLE.read_text())
    said = rows(DISCUSSION.read_text())
    assert said == [{column: row[column] for column in said[0]} for row in accuracy if row["Seeds"] != "—"]
    for column in ("x SGD ours", "x SGD published", "x SGD device ours"):
        adam, dr, ap, cp = (row[column] for row in times[1:5])
        assert f"{adam}, {dr}, {ap} and {cp} times" in text


def test_the_discussion_has_the_outcomes_of_figure_6s_claims() -> None:
    below = {}
    for depth in load_depth(RESULTS / "benchmarks"):
        found = {f.claim.id: f for f in judge_ours(load_published(), [], [depth]) if f.device}
        assert found["ap-and-cp-steps-below-sgd"].outcome is Outcome.DOES_NOT_HOLD
        below[depth.device] = {trial.context: trial.state for trial in found["ap-and-cp-steps-below-sgd"].trials}
        states = {trial.context: trial.state for trial in found["ap-least-steep-with-depth"].trials}
        assert states == {"sgd": State.AGREES, "cp": State.AGREES}
        times = depth.times
        assert times["ap"][64][0] < times["sgd"][64][0] < times["cp"][64][0]
    assert below == {
        "cpu, 1 core": {"ap": State.UNDECIDED, "cp": State.CONTRADICTS},
        "cpu, 2 cores": {"ap": State.UNDECIDED, "cp": State.CONTRADICTS},
    }


def test_the_discussion_has_the_numbers_of_the_ap_runs() -> None:
    text = " ".join(DISCUSSION.read_text().split())
    passed, ends = [], []
    for folder in AP:
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        accuracies = [event["validation_accuracy"] for event in events]
        # Evaluations are 1000 steps apart, so their number is the steps in thousands.
        passed.append(next(i for i, accuracy in enumerate(accuracies) if accuracy >= 0.99 * 0.916))
        ends.append((len(events) - 1, 100 * max(accuracies)))
    assert f"Ours pass it after {min(passed)}k to {max(passed)}k steps" in text
    (first, a), (second, b), *others = sorted(ends)
    steps, best = zip(*others, strict=True)
    assert f"two seeds at {first}k and {second}k steps with a best of {a:.1f} and {b:.1f} %" in text
    assert f"the others at {min(steps)}k to {max(steps)}k with {min(best):.1f} to {max(best):.1f} %" in text
