"""The text's claims: what the paper's own tables say of them, and what records of our own would."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.claims import (
    BenchmarkError,
    DepthTimes,
    Finding,
    Outcome,
    State,
    judge_ours,
    judge_published,
    kind,
    load_depth,
)
from analysis.compare import compare
from analysis.load import load_records
from analysis.published import load_published

PUBLISHED = load_published()
HELD = {  # by the paper's own tables, 5 runs a cell
    "dr-above-ap-rnn",
    "cp-slower-than-ap",
    "dr-near-sgd-when-shallow",
    "projections-faster-per-step",
    "gap-wider-on-cnn",
    "projections-slower-per-step-cnn",
    "projections-slower-per-step-rnn",
    "depth-hurts-dr",
    "skip-helps-dr",
}


def ours(runs: Path, depths: list[DepthTimes] | None = None) -> dict[str, Finding]:
    records = load_records(runs)
    comparisons = [compare(records, PUBLISHED, number) for number in PUBLISHED.tables]
    return {finding.claim.id: finding for finding in judge_ours(PUBLISHED, comparisons, depths or [])}


def depth(sgd: float, cp: float, ap: float) -> DepthTimes:
    """Times that grow by so many microseconds per layer, from 10, with a little noise that is the same for all."""
    noise = {1: 0.02, 2: -0.03, 4: 0.01, 8: 0.03, 16: -0.02, 32: 0.0}
    times = {
        method: {n: (10 + slope * n + e, 9 + slope * n + e, 11 + slope * n + e) for n, e in noise.items()}
        for method, slope in {"sgd": sgd, "cp": cp, "ap": ap}.items()
    }
    return DepthTimes("device", 16, times)


def test_every_claim_speaks_of_cells_that_the_paper_has() -> None:
    findings = judge_published(PUBLISHED)
    keys = {cell.key for cell in PUBLISHED.cells}
    assert len({finding.claim.id for finding in findings}) == len(PUBLISHED.claims)
    for finding in findings:
        assert finding.trials, finding.claim.id
        assert all(set(trial.cells) <= keys for trial in finding.trials)
        assert finding.claim.every in ("all", "most")


def test_a_statement_means_the_same_wherever_its_row_stands() -> None:
    said = [claim.means for claim in PUBLISHED.claims]
    assert len(set(said)) == len(said)
    for means in said:
        # The report sorts claims: none may lean on the one above.
        assert not re.search(r"the same of|\btoo\b", means, re.IGNORECASE), means


def test_the_papers_own_tables_bear_out_some_of_its_claims_and_contradict_none() -> None:
    outcomes = {finding.claim.id: finding.outcome for finding in judge_published(PUBLISHED)}
    assert {name for name, outcome in outcomes.items() if outcome is Outcome.HOLDS} == HELD
    assert Outcome.DOES_NOT_HOLD not in outcomes.values()


def test_a_claim_is_tested_once_in_every_context() -> None:
    contexts = {f.claim.id: [trial.context for trial in f.trials] for f in judge_published(PUBLISHED)}
    assert len(contexts["dr-above-ap-mlp"]) == 9
    assert len(contexts["adam-most-accurate"]) == 3 * (3 + 2) * 4 + 3 * 3  # RNNs have no CP
    assert contexts["dr-near-sgd-when-shallow"] == ["mlp mnist", "mlp cifar10", "mlp higgs"]
    assert [kind(model) for model in ("mlp_1x128", "cnn_4x16", "rnn_4x128_skip")] == [
        ("mlp", "shallow"),
        ("cnn", "deep"),
        ("rnn", "skip"),
    ]


def test_without_records_nothing_is_decided(runs: Path) -> None:
    findings = ours(runs)
    assert set(findings) == {claim.id for claim in PUBLISHED.claims}
    assert {finding.outcome for finding in findings.values()} == {Outcome.NOT_ENOUGH_DATA}
    assert {trial.state for finding in findings.values() for trial in finding.trials} == {State.MISSING}


def test_records_like_the_papers_bear_out_the_same_claims(runs: Path, write_all: Any) -> None:
    write_all(5)
    findings = ours(runs)
    assert {name for name, f in findings.items() if f.outcome is Outcome.HOLDS} >= HELD - {"dr-above-ap-rnn"}
    assert Outcome.DOES_NOT_HOLD not in {finding.outcome for finding in findings.values()}


@pytest.mark.parametrize(
    ("accuracies", "outcome"),
    [((0.95, 0.85), Outcome.HOLDS), ((0.85, 0.95), Outcome.DOES_NOT_HOLD), ((0.90, 0.90), Outcome.NOT_ENOUGH_DATA)],
)
def test_one_difference_decides_a_claim_about_one(
    runs: Path, write_run: Any, accuracies: tuple[float, float], outcome: Outcome
) -> None:
    for model, accuracy in zip(("mlp_1x128", "mlp_4x128"), accuracies, strict=True):
        for seed in range(3):
            config = PUBLISHED.choices["model"][model]
            changes = {f"config__model__{key}": value for key, value in {"name": model, **config}.items()}
            changes |= {"cell__model": model, "metrics__test_accuracy": accuracy + 0.002 * seed}
            write_run(seed=seed, cell__method="dr", cell__engine="published", **changes)
    finding = ours(runs)["depth-hurts-dr"]
    assert finding.outcome is outcome
    # Two seeds of one side are not enough.
    (next(path for path in runs.iterdir()) / "record.json").unlink()
    assert ours(runs)["depth-hurts-dr"].outcome is Outcome.NOT_ENOUGH_DATA


def test_runs_that_the_limit_of_steps_ended_decide_no_claim_but_one_of_times(runs: Path, write_all: Any) -> None:
    write_all(5)
    for path in runs.glob("*/record.json"):
        record = json.loads(path.read_text())
        record["metrics"]["stopped_by"] = "max_steps"
        path.write_text(json.dumps(record))
    decided = {
        finding.claim.metric for finding in ours(runs).values() if finding.outcome is not Outcome.NOT_ENOUGH_DATA
    }
    assert decided <= {"ms_per_step", "device_ms"}


def test_times_of_two_devices_are_not_compared(runs: Path, write_run: Any) -> None:
    for seed in range(3):
        write_run(seed=seed, clocks__published_ms_per_step=1.0 + 0.01 * seed)
        for method, device in (("ap", "synthetic device"), ("cp", "another")):
            cell = {"cell__method": method, "cell__engine": "published", "environment__device": device}
            write_run(seed=seed, clocks__published_ms_per_step=0.1 + 0.001 * seed, **cell)
    findings = ours(runs)
    states = {trial.context: trial.state for trial in findings["projections-faster-per-step"].trials}
    assert states["mlp mnist shallow ap"] is State.AGREES
    assert states["mlp mnist shallow cp"] is State.MISSING
    accuracy = {trial.context: trial.state for trial in findings["cp-accuracy-as-ap"].trials}
    assert accuracy["mlp mnist shallow"] is State.AGREES


def test_figure_6s_claims_are_judged_on_each_device(runs: Path) -> None:
    records, found = load_records(runs), {}
    comparisons = [compare(records, PUBLISHED, number) for number in PUBLISHED.tables]
    devices = [replace(depth(2, 2, 0.5), device="parallel"), replace(depth(0.5, 2, 1), device="sequential")]
    for finding in judge_ours(PUBLISHED, comparisons, devices):
        found[finding.claim.id, finding.device] = finding.outcome
    assert found["ap-least-steep-with-depth", "parallel"] is Outcome.HOLDS
    assert found["ap-least-steep-with-depth", "sequential"] is Outcome.DOES_NOT_HOLD
    assert found["ap-and-cp-steps-below-sgd", "sequential"] is Outcome.DOES_NOT_HOLD
    assert Counter(name for name, _ in found)["skip-helps-dr"] == 1


def test_the_slope_is_microseconds_per_layer() -> None:
    slope = depth(0.55, 2, 1).slope("sgd")
    assert slope.mean == pytest.approx(0.55, abs=0.01)
    assert (slope.n, round(depth(0.55, 2, 1).intercept("sgd"))) == (5, 10)


def test_a_file_of_the_benchmark_is_read(tmp_path: Path) -> None:
    committed = Path(__file__).parents[2] / "results" / "benchmarks"
    several = load_depth(committed)
    assert [read.device for read in several] == ["cpu, 1 core", "cpu, 2 cores"]
    for read in several:
        assert list(read.times) == ["sgd", "cp", "ap"]
        assert list(read.times["ap"]) == [1, 2, 4, 8, 16, 32, 64]
        low, high = read.times["ap"][1][1:]
        assert low <= read.times["ap"][1][0] <= high
    assert load_depth(tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not a file of"), ("{}", "not a file of"), ("few", "three depths or more")]
)
def test_a_broken_file_of_the_benchmark_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "depth-cpu.json"
    row = {"step_ms": 1.0, "spread_ms": [1.0, 1.0]}
    few = {"environment": {"device": "cpu", "cores": 2, "platform": "cpu"}, "width": 16, "results": {"AP": {"1": row}}}
    path.write_text(json.dumps(few) if text == "few" else text)
    with pytest.raises(BenchmarkError, match=f"{re.escape(str(path))}: .*{message}"):
        load_depth(tmp_path)
