"""Runs side by side: the same runs, their failures by name, and what a signal does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from experiments import parallel
from experiments.cells import Planned, plan
from experiments.config import ROOT, RunConfig, UsageError
from experiments.memory import limit_bytes
from experiments.progress import RunProgress
from experiments.records import run_id, saved_steps
from experiments.reproduce import run_missing
from experiments.runner import RunFailed, Status, status_of

SHORT = ("sweep=demo", "preset=demo", "seeds=1", "protocol.evaluate_every=50", "protocol.max_steps=100")


@pytest.mark.slow
def test_runs_side_by_side_finish_and_one_that_fails_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SHORT, "jobs=2", f"paths.results={tmp_path / 'runs'}"]
    diverging, good = (
        plan([*arguments, "method=sgd", "method.learning_rate=1e30"]),
        plan([*arguments, "method=adam,ap"]),
    )
    errors = run_missing([*diverging, *good])
    (error,) = errors.values()
    assert isinstance(error, RunFailed)
    assert "is not finite" in str(error)
    assert [status_of(run.config) for run in good] == [Status.DONE, Status.DONE]
    shown = capsys.readouterr().out
    assert shown.count(": started") == 3
    assert len(re.findall(r": test \d", shown)) == 2
    assert "not finished: digits-mlp_1x32-sgd" in shown
    # Times on a shared device are those of another device.
    environments = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/environment.json")]
    assert all(each["device"].endswith(", 2 runs at once") for each in environments)
    # How many go on at once is nothing that a repetition must know.
    assert all("jobs" not in path.read_text() for path in (tmp_path / "runs").glob("*/command.sh"))
    run_missing(good)
    assert "2 of 2 runs are finished: nothing to do." in capsys.readouterr().out


@pytest.mark.slow
def test_a_signal_ends_all_and_they_go_on_later(tmp_path: Path) -> None:
    arguments = ["sweep=demo", "seeds=1", "method=sgd,adam", "jobs=2", f"paths.results={tmp_path}"]
    arguments += ["protocol.evaluate_every=100", "protocol.patience=100000", "checkpoint_every_s=0"]
    command = [sys.executable, "-m", "experiments.reproduce", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while sum(bool(saved_steps(folder)) for folder in tmp_path.glob("*")) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "interrupted: 0 of 2 runs are finished and stay, and the next start goes on with" in output
    assert "Traceback" not in errors
    planned = plan(arguments)
    deadline = time.monotonic() + 30
    while [status_of(run.config) for run in planned] != [Status.CUT, Status.CUT]:
        assert time.monotonic() < deadline, "a process goes on"
        time.sleep(0.2)


@pytest.mark.slow
def test_a_run_whose_process_is_killed_again_and_again_costs_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep=demo", "preset=demo", "seeds=1", "jobs=2", "checkpoint_every_s=0", f"paths.results={tmp_path}"]
    # It outlasts three kills, but ends where they do not come.
    endless = ["protocol.max_steps=3000000", "protocol.patience=1000000"]
    (victim,), others = plan([*arguments, "method=sgd", *endless]), plan([*arguments, "method=adam,ap"])
    name, killed = run_id(victim.config), set[str]()

    def kill() -> None:
        while len(killed) < 3:
            with suppress(OSError):
                owner = re.search(r"pid=(\d+)", (tmp_path / name / "owner.lock").read_text())
                if owner and owner[1] not in killed and saved_steps(tmp_path / name):
                    os.kill(int(owner[1]), signal.SIGKILL)
                    killed.add(owner[1])
            time.sleep(0.2)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    errors = run_missing([victim, *others])
    thread.join(timeout=1)
    assert len(killed) == 3
    assert list(errors) == [name]
    assert "its process was killed; " in str(errors[name])
    assert "SIGKILL" in str(errors[name])
    assert [status_of(run.config) for run in others] == [Status.DONE, Status.DONE]
    assert status_of(victim.config) is Status.CUT
    assert "were cut and go on" in capsys.readouterr().out


def test_a_display_that_fails_costs_nothing_but_itself(short: Callable[..., Planned]) -> None:
    config = short("method=sgd").config
    name, lines = run_id(config), list[str]()

    class Gone(RunProgress):
        def start(self, config: RunConfig, count: int = 1) -> None:
            lines.append("started")
            raise SystemExit(1)  # as rich does where its pipe is broken

        def end(self, config: RunConfig, *messages: str, left: int = 0) -> None:
            lines.append("ended")

    with parallel._shown({name: config}, Gone(1)) as (news, seen):
        for what in (None, parallel.Ended("one"), parallel.Ended("two")):
            news.put((name, what))
        news.join()
    assert (seen.started, seen.ended) == ({name}, {name: parallel.Ended("one")})
    assert lines == ["started"]


def test_seeds_together_and_runs_side_by_side_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="together=yes and jobs=2"):
        plan([*SHORT, "jobs=2", "together=yes"])
    with pytest.raises(UsageError, match="jobs=0 is not positive"):
        plan([*SHORT, "jobs=0"])


def test_runs_side_by_side_share_the_memory() -> None:
    whole = limit_bytes(None)
    assert whole
    assert limit_bytes(None, 4) == whole / 4
    assert limit_bytes(2.0, 4) == 2e9


def test_progress_names_runs_that_go_on_at_once(
    short: Callable[..., Planned], capsys: pytest.CaptureFixture[str]
) -> None:
    from experiments.records import Event

    first, second = short("method=sgd").config, short("method=adam").config
    with RunProgress(2) as progress:
        progress.start(first)
        progress.start(second)
        progress.event(second, Event(50, 50, 1.0, 0.5, 1.0, 1.0, 1.0))
        progress.end(first, "one")
        progress.event(second, Event(100, 100, 1.0, 0.5, 1.0, 1.0, 1.0))
        progress.end(second, "two")
    shown = capsys.readouterr().out
    assert re.search(r"digits-mlp_1x32-adam-s0-\w+: step +50 ", shown)
    assert shown.splitlines()[-2:] == ["one", "two"]
