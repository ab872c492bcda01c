"""Predicted times: from which runs, and what is said where nobody knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import plan as planning
from experiments.cells import Planned, plan
from experiments.config import RunConfig
from experiments.environment import describe
from experiments.plan import Estimate, estimates, summary
from experiments.predict import Pace, Paces, duration, pace_so_far
from experiments.records import scientific_config
from experiments.runner import execute, folder_of
from experiments.status import look, time_left

DEVICE = "a processor"


def record(folder: Path, config: RunConfig, ms: float, steps: int, device: str = DEVICE, **changes: Any) -> None:
    """As much of a finished run's record as predictions read."""
    content = {
        "config": scientific_config(config),
        "clocks": {"compile_s": 3.0, "end_to_end_ms_per_step": ms, "evaluation_s": 0.0},
        "metrics": {"steps_run": steps},
        "environment": {"device": device},
    }
    path = folder / f"run{len([*folder.glob('*')])}" / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content | changes))


def test_a_pace_is_the_median_of_runs_of_the_cell_on_the_device(tmp_path: Path, short: Callable[..., Planned]) -> None:
    config = short("method=ap").config
    for ms, steps in ((1.0, 100), (2.0, 150), (9.0, 200)):
        record(tmp_path, config, ms, steps)
    record(tmp_path, config, 50.0, 100, device="another")
    record(tmp_path, short("method=cp").config, 70.0, 100)
    record(tmp_path, short("method=ap", "protocol.batch_size=64").config, 80.0, 100)
    record(tmp_path, config, 90.0, 100, clocks=None)
    assert Paces([tmp_path], DEVICE).of(config) == Pace(2.0, 3.0, 150)
    assert Paces([tmp_path], "a third").of(config) is None
    assert Paces([tmp_path], None).of(short("method=dr").config) is None


def test_another_limit_of_steps_has_the_pace_and_no_expected_end(tmp_path: Path, short: Callable[..., Planned]) -> None:
    record(tmp_path, short("method=ap").config, 2.0, 200)
    pace = Paces([tmp_path], DEVICE).of(short("method=ap", "protocol.max_steps=1000").config)
    assert pace
    assert pace == Pace(2.0, 3.0, None)
    assert pace.seconds(1000) == 5.0
    assert pace.seconds(1000, done=500) == 4.0
    assert Pace(2.0, 3.0, 400).seconds(1000, done=500) == 3.0


def test_evaluations_are_part_of_a_pace(tmp_path: Path, short: Callable[..., Planned]) -> None:
    config = short("method=ap").config
    clocks = {"compile_s": 0.0, "end_to_end_ms_per_step": 2.0, "evaluation_s": 0.1}
    record(tmp_path, config, 0.0, 100, clocks=clocks)
    pace = Paces([tmp_path], DEVICE).of(config)
    assert pace
    assert pace.ms_per_step == pytest.approx(3.0)


def test_the_pace_of_a_running_run_is_of_its_last_whole_event(tmp_path: Path) -> None:
    assert pace_so_far(tmp_path) == (0, None)
    path = tmp_path / "events.jsonl"
    path.write_text('{"step": 0, "wall_s": 1.0}\n')
    assert pace_so_far(tmp_path) == (0, None)
    path.write_text('{"step": 0, "wall_s": 1.0}\n{"step": 200, "wall_s": 4.0}\n{"step": 30')
    assert pace_so_far(tmp_path) == (200, Pace(20.0, 0.0))


def test_a_broken_record_tells_no_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (("cut", '{"clocks": {'), ("other", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text(text)
    Paces([tmp_path], None)
    assert capsys.readouterr().err.count("record.json is damaged and tells no times") == 2


def test_durations_in_words() -> None:
    assert [duration(s) for s in (0.4, 59, 90, 5400, 130000)] == ["0 s", "59 s", "1.5 min", "1.5 h", "1.5 d"]


def test_a_plan_says_the_time_of_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "known_paces", lambda _, device: Paces([tmp_path / "known"], device))
    arguments = ["sweep=demo", "preset=demo", "method=sgd,adam", f"paths.results={tmp_path / 'runs'}", "seeds=2"]
    planned = plan(arguments)
    record(tmp_path / "known", planned[0].config, 1.0, 10_000, device=describe()["device"])
    sgd, adam = estimates(planned)
    assert sgd.seconds == pytest.approx(2 * (3.0 + 10.0))
    assert adam.pace is None
    assert summary([sgd, adam], 1) == (
        "about 26 s in all on this device; 1 of 2 cells are not measured on this device: add MEASURE=yes"
    )
    assert summary([adam], 1) == "1 of 1 cells are not measured on this device: add MEASURE=yes"
    assert summary([Estimate(sgd.names, [])], 1) == "Nothing to do."
    refused = Estimate(adam.names, adam.left, refusal="does not fit")
    assert summary([refused], 1) == "1 cells cannot be done as asked, as the table says."
    assert summary([refused, sgd], 1).startswith("1 cells cannot be done as asked, as the table says. about 26 s")
    (measured,) = estimates(planned[2:], measure=True)
    assert measured.pace
    assert measured.pace.steps is None
    assert measured.pace.ms_per_step > 0


def test_status_says_what_is_left(tmp_path: Path, short: Callable[..., Planned]) -> None:
    new = short("method=sgd", "protocol.batch_size=50")
    assert time_left(look([new])) == "1 runs to do; no run of their cells has been timed."
    done = short("method=sgd", "protocol.batch_size=50", "protocol.max_steps=100", "protocol.evaluate_every=50")
    assert execute(done.config, done.overrides, lambda _: None)
    assert folder_of(done.config).exists()
    assert time_left(look([done])) == ""
    assert time_left(look([done, new])).startswith("1 runs to do: at most ")
