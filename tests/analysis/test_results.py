"""The committed tables are what the committed records give, and `docs/results.md` says what both say."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from analysis import tables
from experiments.stopping import Patience, first_reaching

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
TABLE = RESULTS / "tables" / "table2-mnist.md"
DISCUSSION = ROOT / "docs" / "results.md"
AP = [RESULTS / "runs" / f"mnist-mlp_1x128-ap-published-{run}" for run in ("s0-0bba6ad7", "s1-13da9f37")]


def rows(text: str) -> list[dict[str, str]]:
    """The rows of a Markdown table, by column."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


@pytest.mark.parametrize("path", sorted((RESULTS / "tables").glob("*.md")), ids=lambda path: path.name)
def test_a_committed_table_is_what_the_records_give(path: Path, tmp_path: Path) -> None:
    number, _, dataset = path.stem.removeprefix("table").partition("-")
    arguments = [str(RESULTS / "runs"), "--table", number, *(["--dataset", dataset] if dataset else [])]
    assert tables.main([*arguments, "--out", str(tmp_path)]) == 0
    for suffix in (".md", ".csv"):
        made, committed = ((folder / path.name).with_suffix(suffix).read_text() for folder in (tmp_path, path.parent))
        assert made.replace(str(tmp_path), "results/tables") == committed


def test_the_discussion_has_the_tables_numbers() -> None:
    text = " ".join(DISCUSSION.read_text().split())
    said, found = rows(DISCUSSION.read_text()), rows(TABLE.read_text())[:5]
    assert said == [{column: row[column] for column in said[0]} for row in found]
    for column in ("x SGD ours", "x SGD published"):
        adam, dr, ap, cp = (row[column] for row in found[1:])
        assert f"{adam}, {dr}, {ap} and {cp} times" in text


def test_the_discussion_has_the_numbers_of_the_ap_runs() -> None:
    text = " ".join(DISCUSSION.read_text().split())
    said = {
        name: re.findall(r"[\d.]+", re.findall(pattern, text)[0])
        for name, pattern in {
            "passed": r"Ours pass it after (.*?) steps",
            "best": r"best at (.*?) %,",
            "near": r"came at (.*?)\. ",
            "patience 4": r"would have stopped at (.*?) %:",
        }.items()
    }
    found: dict[str, list[list[str]]] = {name: [] for name in said}
    for folder in AP:
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        accuracies = [event["validation_accuracy"] for event in events]
        shorter = Patience(4)
        stop = next(i for i, a in enumerate(accuracies) if not shorter.observe(i, a) and shorter.exhausted)
        passed = next(i for i, accuracy in enumerate(accuracies) if accuracy >= 0.99 * 0.916)
        best = max(accuracies)
        # Evaluations are 1000 steps apart, so their number is the steps in thousands.
        found["passed"].append([f"{passed}"])
        found["best"].append([f"{accuracies.index(best)}", f"{100 * best:.2f}"])
        found["near"].append([f"{first_reaching(accuracies, 0.99)}"])
        found["patience 4"].append([f"{stop}", f"{100 * shorter.best:.2f}"])
    # Steps of both seeds come first, then accuracies of both.
    assert said == {name: list(itertools.chain(*zip(*seeds, strict=True))) for name, seeds in found.items()}
