"""Runs as folders: whole, skipped, cut, failed, retried, owned."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import yaml
from filelock import FileLock

from analysis.load import load_records
from experiments import runner, training
from experiments.cells import Planned
from experiments.compose import choices
from experiments.config import ROOT, RunConfig, UsageError
from experiments.data import load
from experiments.records import Event, run_id, scientific_config
from experiments.reproduce import run_missing
from experiments.runner import RunBusy, RunFailed, Status, execute, execute_together, folder_of, status_of
from experiments.training import predicted_bytes

DIVERGING = ("method=sgd", "method.learning_rate=1e30")


def ignore(event: Event) -> None:
    """Nobody watches."""


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The lines of `events.jsonl`."""
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", params=choices("method"))
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, compose_in: Callable[..., Planned]
) -> Planned:
    """A finished run of each method."""
    # Which needs a network with something to pass.
    model = ["model=quantized_2"] if request.param == "straight_through" else []
    planned = compose_in(tmp_path_factory.mktemp("runs"), f"method={request.param}", *model)
    assert status_of(planned.config) is Status.MISSING
    record = execute(planned.config, planned.overrides, ignore)
    assert record is not None
    assert record.run_id == run_id(planned.config)
    return planned


def test_a_run_leaves_a_whole_folder(finished: Planned) -> None:
    folder = folder_of(finished.config)
    assert status_of(finished.config) is Status.DONE
    names = {"config.yaml", "events.jsonl", "record.json", "command.sh", "environment.json", "run.lock"}
    names.add("attempts.jsonl")
    assert {path.name for path in folder.iterdir()} == names
    record = json.loads((folder / "record.json").read_text())
    assert record["config"] == scientific_config(finished.config)
    assert record["config"] == yaml.safe_load((folder / "config.yaml").read_text())
    assert record["environment"] == json.loads((folder / "environment.json").read_text())
    everything = "".join(path.read_text() for path in folder.iterdir())
    assert str(ROOT) not in everything, "a machine's folder must not be published"


def test_a_record_agrees_with_its_events(finished: Planned) -> None:
    folder = folder_of(finished.config)
    record, events = json.loads((folder / "record.json").read_text()), read_events(folder)
    gradient = finished.config.method.name not in ("dr", "ap", "cp")
    assert [event["step"] for event in events] == [0, 50, 100, 150, 200]
    assert [event["update"] for event in events] == ([0, 50, 100, 150, 200] if gradient else [0, 1, 2, 3, 4])
    assert all(earlier["train_s"] < later["train_s"] for earlier, later in itertools.pairwise(events))
    metrics, clocks, data = record["metrics"], record["clocks"], record["data"]
    assert metrics["validation_accuracy"] == max(event["validation_accuracy"] for event in events)
    assert (metrics["steps_run"], metrics["stopped_by"]) == (200, "max_steps")
    assert clocks["train_s"] == events[-1]["train_s"]
    assert clocks["device_ms_per_step"] == pytest.approx(1e3 * clocks["train_s"] / 200)
    assert clocks["end_to_end_ms_per_step"] >= clocks["device_ms_per_step"]
    assert (data["n_train"], data["n_validation"], data["n_test"]) == (1293, 144, 360)
    # Published: only the gradient baselines have a bias in the last layer.
    (width,) = finished.config.model.hidden
    assert record["parameters"] == 64 * width + width + width * 10 + (10 if gradient else 0)


@pytest.mark.parametrize("finished", ["adam"], indirect=True)
def test_a_finished_run_is_skipped(finished: Planned) -> None:
    record = folder_of(finished.config) / "record.json"
    before = record.stat().st_mtime_ns
    assert execute(finished.config, finished.overrides, ignore) is None
    assert record.stat().st_mtime_ns == before


@pytest.mark.parametrize("finished", ["adam"], indirect=True)
def test_the_command_of_a_run_is_that_run(finished: Planned) -> None:
    folder = folder_of(finished.config)
    command = (folder / "command.sh").read_text().splitlines()[-1].split()
    assert command[:3] == ["python", "-m", "experiments.run"]
    # Where results lie is the machine's business, so it is added here.
    arguments = [*command[1:], f"paths.results={folder.parent}"]
    again = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"{folder.name} is finished: nothing to do" in again.stdout


def test_infinite_parameters_stop_a_run_and_cost_no_other(
    short: Callable[..., Planned], capsys: pytest.CaptureFixture[str]
) -> None:
    planned = [short(*DIVERGING), short("method=sgd")]
    errors = run_missing(planned)
    (failed, done) = (folder_of(each.config) for each in planned)
    assert "0 of 2 runs are finished, 2 to run." in capsys.readouterr().out
    assert [status_of(each.config) for each in planned] == [Status.FAILED, Status.DONE]
    assert list(errors) == [failed.name]
    message = str(errors[failed.name])
    assert f"{failed.name} failed at step 50: Diverged: parameters are not finite at step 50; the" in message
    failure = json.loads((failed / "FAILED.json").read_text())
    assert (failure["type"], failure["step"]) == ("Diverged", 50)
    assert "experiments/loop.py" in failure["traceback"]
    assert str(ROOT) not in failure["traceback"]

    # A failure stays until somebody asks to try again.
    errors = run_missing(planned)
    assert "1 of 2 runs are finished, 1 to run." in capsys.readouterr().out
    assert f"{failed.name} failed earlier at step 50" in str(errors[failed.name])
    assert "add retry_failed=true" in str(errors[failed.name])
    with pytest.raises(RunFailed, match="failed at step 50"):
        execute(short(*DIVERGING, "retry_failed=true").config, (), ignore)

    assert run_missing(planned[1:]) == {}
    assert "1 of 1 runs are finished: nothing to do." in capsys.readouterr().out
    assert (done / "record.json").exists()


@pytest.mark.parametrize("bad", ["loss", "validation"])
def test_a_loss_that_is_not_finite_stops_a_run_with_finite_parameters(
    bad: str, short: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        """Counts the updates and leaves the rest to the case: an infinite loss in one, or logits that overflow."""

        steps_per_update = 1

        def init(self, params: Any) -> jax.Array:
            return jnp.int32(0)

        def update(self, loss_fn: Any, params: Any, state: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
            if bad == "loss":
                return params, state + 1, jnp.where(state == 60, jnp.inf, 1.0)
            return jax.tree.map(lambda leaf: leaf * 10, params), state + 1, jnp.float32(1.0)

    monkeypatch.setattr(training, "build_method", lambda method, engine: Broken())
    # The largest weights overflow after some 38 updates, the logits of two layers after half as many.
    every = () if bad == "loss" else ("protocol.evaluate_every=25",)
    planned = short("method=sgd", *every)
    with pytest.raises(RunFailed):
        execute(planned.config, planned.overrides, ignore)
    folder = folder_of(planned.config)
    failure = json.loads((folder / "FAILED.json").read_text())
    expected = {
        "loss": (100, "the training loss is not finite from step 60 on"),
        "validation": (25, "the validation loss is not finite at step 25"),
    }[bad]
    assert (failure["type"], failure["step"], failure["message"]) == ("Diverged", *expected)
    assert [event["step"] for event in read_events(folder)] == ([0, 50] if bad == "loss" else [0])


def test_an_event_that_is_no_json_is_not_written(
    short: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_seeds(configs: list[RunConfig], data: Any, on_event: Callable[[RunConfig, Event], None], *_: Any) -> None:
        on_event(configs[0], Event(0, 0, None, 0.5, float("nan"), 0.0, 0.0))

    monkeypatch.setattr(training, "train_seeds", train_seeds)
    planned = short("method=sgd")
    with pytest.raises(RunFailed, match="not JSON compliant"):
        execute(planned.config, planned.overrides, ignore)
    assert read_events(folder_of(planned.config)) == []


REFUSED = [
    "method.relaxation=2",
    "method.window=0",
    "engine.prox_lambda=-1",
    "method.representation=consensus",
    "protocol.batch_size=100000",
    "protocol.validation_fraction=0.0001",
    "dataset.num_classes=5",
    "dataset.test_fraction=null",
]
"""Options that compose, but that the engine or the data do not allow."""


@pytest.mark.parametrize("override", REFUSED)
def test_what_cannot_be_done_is_no_failed_run(override: str, short: Callable[..., Planned]) -> None:
    planned = short("method=dr", override)
    with pytest.raises(UsageError, match=override.partition("=")[0]):
        execute(planned.config, planned.overrides, ignore)
    assert not planned.config.results_dir.exists()


def test_a_retry_that_cannot_be_done_keeps_the_failure(short: Callable[..., Planned]) -> None:
    planned = short("method=sgd", "protocol.batch_size=100000", "retry_failed=true")
    folder = folder_of(planned.config)
    folder.mkdir(parents=True)
    (folder / "FAILED.json").write_text("{}")
    with pytest.raises(UsageError, match="batch_size"):
        execute(planned.config, planned.overrides, ignore)
    assert [path.name for path in folder.iterdir()] == ["FAILED.json"]


def test_seeds_of_a_cell_can_share_a_program(short: Callable[..., Planned], capsys: pytest.CaptureFixture[str]) -> None:
    """All but the first, whose clocks count."""
    runs = [dataclasses.replace(short("method=adam", f"seed={seed}"), together=True) for seed in range(3)]
    other = dataclasses.replace(short("method=sgd", "seed=1"), together=True)
    assert run_missing([*runs, other]) == {}
    assert f"{run_id(runs[1].config)} and 1 more: started" in capsys.readouterr().out
    assert [status_of(each.config) for each in (*runs, other)] == [Status.DONE] * 4
    records = [json.loads((folder_of(each.config) / "record.json").read_text()) for each in (*runs, other)]
    assert [bool(record["clocks"]) for record in records] == [True, False, False, True]
    assert [record["metrics"]["time_to_99_s"] is None for record in records] == [False, True, True, False]
    frame = load_records(runs[0].config.results_dir)
    assert int(frame["device_ms_per_step"].isna().to_numpy().sum()) == 2


def test_a_batch_that_does_not_fit_is_refused_with_the_largest_that_does(short: Callable[..., Planned]) -> None:
    config = short("method=adam", "protocol.batch_size=300").config
    data = load(config.dataset, Path())
    needed = {
        size: predicted_bytes(short("method=adam", f"protocol.batch_size={size}").config, data) or 0
        for size in (300, 256, 128, 64)
    }
    assert needed[300] > needed[256] > needed[128] > needed[64] > 0
    limit = (needed[128] + needed[64]) / 2e9
    planned = short("method=adam", "protocol.batch_size=300", f"memory_gb={limit}")
    with pytest.raises(
        UsageError, match=r"batch_size=300 takes .* GB .*memory_gb; the largest power of two that fits is 64$"
    ):
        execute(planned.config, planned.overrides, ignore)
    assert status_of(planned.config) is Status.MISSING
    assert [path.name for path in folder_of(planned.config).iterdir()] == ["run.lock"]
    # An earlier failure stays what it was, and seeds that do not fit together are told apart from a batch.
    again = short("method=adam", "protocol.batch_size=300", f"memory_gb={limit}", "retry_failed=true")
    left = {name: f"{name} of the attempt that failed\n" for name in ("events.jsonl", "environment.json", "command.sh")}
    left |= {"FAILED.json": "{}", "attempts.jsonl": '{"attempt": 1, "what": "failed", "step": 0}\n'}
    for name, text in left.items():
        (folder_of(again.config) / name).write_text(text)
    with pytest.raises(UsageError, match="batch_size=300"):
        execute(again.config, again.overrides, ignore)
    found = {path.name: path.read_text() for path in folder_of(again.config).iterdir() if path.name != "run.lock"}
    assert found == left
    pair = [short("method=ap", "protocol.batch_size=64", "memory_gb=1e-6", f"seed={seed}") for seed in (1, 2)]
    together = execute_together([(each.config, each.overrides) for each in pair], lambda _, event: None)
    assert all("2 seeds in one program take" in str(outcome) for outcome in together)
    fits = short("method=adam", "protocol.batch_size=64", f"memory_gb={limit}")
    assert execute(fits.config, fits.overrides, ignore) is not None
    assert "memory_gb" not in (folder_of(fits.config) / "command.sh").read_text()


def test_a_run_that_failed_earlier_is_not_held_while_others_of_its_group_run(short: Callable[..., Planned]) -> None:
    runs = [short("method=adam", f"seed={seed}") for seed in (1, 2)]
    failed = folder_of(runs[0].config)
    failed.mkdir(parents=True)
    (failed / "FAILED.json").write_text(json.dumps({"step": 50, "type": "Diverged", "message": "lost"}))
    seen: list[Status] = []

    def look(_: RunConfig, event: Event) -> None:
        seen.append(status_of(runs[0].config))

    outcomes = execute_together([(each.config, each.overrides) for each in runs], look)
    assert isinstance(outcomes[0], RunFailed)
    assert set(seen) == {Status.FAILED}
    assert status_of(runs[1].config) is Status.DONE


def test_a_place_that_holds_no_results_is_named(short: Callable[..., Planned], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    planned = short("method=sgd", f"paths.results={tmp_path / 'file'}")
    with pytest.raises(UsageError, match=r"paths\.results=.*file"):
        execute(planned.config, planned.overrides, ignore)


def test_a_run_that_cannot_be_done_stops_no_other(
    short: Callable[..., Planned], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = [short("dataset=mnist", f"paths.data={tmp_path}", "method=sgd", f"seed={seed}") for seed in range(5)]
    large, done = short("method=sgd", "protocol.batch_size=100000"), short("method=sgd")
    errors = run_missing([*absent, large, done])
    assert "0 of 7 runs are finished, 1 to run, 6 cannot be done as asked" in capsys.readouterr().out
    assert list(errors) == [run_id(each.config) for each in (*absent, large)]
    assert all(isinstance(error, UsageError) for error in errors.values())
    assert [path.name for path in done.config.results_dir.iterdir()] == [run_id(done.config)]
    assert status_of(done.config) is Status.DONE


def test_a_run_that_can_no_longer_be_done_stops_no_other(
    short: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data vanish after the first look."""
    monkeypatch.setattr(runner, "refusals", lambda configs: {})
    gone, done = short("method=sgd", "dataset.num_classes=5"), short("method=sgd")
    assert list(run_missing([gone, done])) == [run_id(gone.config)]
    assert status_of(done.config) is Status.DONE


def test_a_look_at_the_status_does_not_stop_a_run_from_starting(short: Callable[..., Planned]) -> None:
    planned = short("method=sgd")
    folder = folder_of(planned.config)
    folder.mkdir(parents=True)
    look = FileLock(folder / "run.lock", thread_local=False)
    look.acquire()
    threading.Timer(0.2, look.release).start()
    assert execute(planned.config, planned.overrides, ignore) is not None


def test_a_run_has_one_owner(short: Callable[..., Planned]) -> None:
    planned = short("method=sgd")
    folder = folder_of(planned.config)
    folder.mkdir(parents=True)
    with FileLock(folder / "run.lock"):
        assert status_of(planned.config) is Status.RUNNING
        with pytest.raises(RunBusy, match="another process"):
            execute(planned.config, planned.overrides, ignore)
    assert status_of(planned.config) is Status.MISSING
