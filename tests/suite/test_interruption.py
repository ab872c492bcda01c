"""When a run is saved, and what signals do to it."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import SoftFileLease

from experiments import checkpoint
from experiments.cells import Planned
from experiments.checkpoint import Saver, Snapshot
from experiments.config import ROOT, UsageError
from experiments.folder import RunFolder
from experiments.interruption import Interrupted, Interruption
from experiments.records import Event, saved_steps
from experiments.runner import Status, execute, execute_together, folder_of, resumable_step, status_of
from tests.kill import outcome
from tests.suite.test_resume import SAVED, attempts, ignore

pytestmark = pytest.mark.usefixtures("compiled_once")


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(checkpoint.time, "monotonic", lambda: self.now)


def test_checkpoints_take_at_most_a_twentieth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, saved = Clock(monkeypatch), list[float]()

    def save(_: Snapshot) -> None:
        saved.append(clock.now)
        clock.now += 2

    saver = Saver([save], 10, Interruption())
    snapshot: Any = object()
    saver.begin()
    while clock.now < 200:
        clock.now += 1
        saver.after(lambda: [snapshot])
    assert saved[0] == 10
    assert all(later - earlier >= 2 * checkpoint.SHARE for earlier, later in itertools.pairwise(saved))
    assert len(saved) == 5


def test_zero_saves_at_every_evaluation_and_copies_nothing_between(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, saved = Clock(monkeypatch), list[Any]()
    always, seldom = Saver([saved.append], 0, Interruption()), Saver([saved.append], 10, Interruption())
    snapshot: Any = object()
    always.begin()
    seldom.begin()
    for _ in range(3):
        clock.now += 1
        always.after(lambda: [snapshot])
        seldom.after(lambda: pytest.fail("copied for nothing"))
    assert len(saved) == 3


def test_a_signal_is_heard_at_the_next_evaluation_and_the_state_is_saved(
    short: Callable[..., Planned], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    planned, undisturbed = short("method=adam"), short("method=adam", f"paths.results={tmp_path / 'undisturbed'}")

    def send(event: Event) -> None:
        if event.step == 100:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as interrupted:
        execute(planned.config, planned.overrides, send)
    assert interrupted.value.status == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert "SIGTERM: the run ends at its next evaluation, saved" in capfd.readouterr().err
    assert resumable_step(planned.config) == 100
    execute(planned.config, planned.overrides, ignore)
    execute(undisturbed.config, undisturbed.overrides, ignore)
    assert outcome(planned) == outcome(undisturbed)


def test_a_signal_that_is_sent_twice_cuts_no_last_word(
    short: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned, noted, release = short("method=adam"), RunFolder.ended, SoftFileLease.release
    heard: list[bool] = []

    def begin(saver: Saver) -> None:
        # Before the first evaluation, which a signal would wait for: it ends the run at once.
        signal.raise_signal(signal.SIGTERM)

    def ended(folder: RunFolder, how: str) -> None:
        signal.raise_signal(signal.SIGTERM)
        noted(folder, how)

    def released(lease: SoftFileLease, force: bool = False) -> None:
        heard.append(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
        release(lease, force)

    monkeypatch.setattr(Saver, "begin", begin)
    monkeypatch.setattr(RunFolder, "ended", ended)
    monkeypatch.setattr(SoftFileLease, "release", released)
    with pytest.raises(Interrupted):
        execute(planned.config, planned.overrides, ignore)
    assert attempts(planned) == [(1, "started", 0), (1, "interrupted", 0)]
    assert heard[0]
    assert not (folder_of(planned.config) / "owner.lock").exists()


def test_a_signal_while_a_refused_run_is_withdrawn_is_noted(
    short: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned, withdraw = short("method=adam"), RunFolder.withdraw

    def refuse(*_: object) -> None:
        raise UsageError("it does not fit")

    def interrupted(folder: RunFolder) -> None:
        signal.raise_signal(signal.SIGTERM)
        withdraw(folder)

    monkeypatch.setattr("experiments.training.train_seeds", refuse)
    with pytest.raises(UsageError):
        execute(planned.config, planned.overrides, ignore)
    assert not (folder_of(planned.config) / "attempts.jsonl").exists()
    monkeypatch.setattr(RunFolder, "withdraw", interrupted)
    with pytest.raises(Interrupted):
        execute(planned.config, planned.overrides, ignore)
    assert attempts(planned) == [(1, "started", 0), (1, "interrupted", 0)]


def test_a_signal_while_runs_begin_is_noted_where_they_have(
    short: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = [short("method=adam", f"seed={seed}") for seed in range(3)]
    second, third = (folder_of(run.config) / "attempts.jsonl" for run in seeds[1:])

    def look(folder: Path) -> list[int]:
        # The second tidies up after it has noted its start.
        if folder == second.parent and second.exists():
            signal.raise_signal(signal.SIGTERM)
        return saved_steps(folder)

    monkeypatch.setattr("experiments.folder.saved_steps", look)
    with pytest.raises(Interrupted):
        execute_together([(run.config, run.overrides) for run in seeds], lambda *_: None)
    assert [attempts(run) for run in seeds[:2]] == [[(1, "started", 0), (1, "interrupted", 0)]] * 2
    assert not third.exists()


def test_a_second_ctrl_c_ends_at_once(short: Callable[..., Planned]) -> None:
    planned = short("method=adam", SAVED)

    def send(event: Event) -> None:
        if event.step == 100:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        execute(planned.config, planned.overrides, send)
    assert saved_steps(folder_of(planned.config)) == [50, 0]


def test_a_signal_after_the_last_evaluation_costs_no_record(short: Callable[..., Planned]) -> None:
    planned = short("method=adam", "checkpoint_every_s=1000")

    def send(event: Event) -> None:
        if event.step == 200:
            # Heard once the loop is over.
            checkpoint.Saver.after = lambda self, snapshots: None
            signal.raise_signal(signal.SIGINT)

    after = checkpoint.Saver.after
    try:
        with pytest.raises(Interrupted):
            execute(planned.config, planned.overrides, send)
    finally:
        checkpoint.Saver.after = after
    assert status_of(planned.config) is Status.DONE


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGUSR1", 138)])
def test_a_process_that_is_told_to_end_saves_its_run_and_says_how_to_go_on(
    name: str, status: int, tmp_path: Path
) -> None:
    long = ["protocol.evaluate_every=50", "protocol.max_steps=100000", "protocol.patience=100000"]
    arguments = ["sweep=demo", "preset=demo", "method=sgd", "seeds=1", *long, f"paths.results={tmp_path}"]
    command = [sys.executable, "-m", "experiments.reproduce", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "step      0" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(getattr(signal, name))
        output, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    (folder,) = tmp_path.iterdir()
    (step,) = saved_steps(folder)
    assert (
        f"0 of 1 runs are finished and stay, and the next start goes on with {folder.name} from step {step:,}" in output
    )
    assert errors.splitlines() == ["", f"{name}: the run ends at its next evaluation, saved; Ctrl-C ends it at once"]
    assert not (folder / "owner.lock").exists()
