"""One process at a time works on a run."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import pytest
from filelock import SoftFileLease

from experiments import ownership, reproduce
from experiments.cells import Planned
from experiments.config import ROOT
from experiments.ownership import RunBusy, is_owned, owned
from experiments.records import Event
from experiments.reproduce import run_missing
from experiments.runner import Status, execute, folder_of, status_of

pytestmark = pytest.mark.usefixtures("compiled_once")


def lease_of_another_machine(folder: Path) -> Path:
    """What a process of another machine leaves in a folder whose kernel locks do not reach here."""
    marker = folder / "owner.lock"
    with SoftFileLease(marker, lease_duration=ownership.LEASE_SECONDS):
        content = marker.read_text()
    assert socket.gethostname() in content
    marker.write_text(content.replace(socket.gethostname(), "elsewhere"))
    return marker


def test_a_run_is_held_once_and_freed(tmp_path: Path) -> None:
    with owned(tmp_path) as owner:
        owner.check()
        assert is_owned(tmp_path)
        with pytest.raises(RunBusy, match=r"is being worked on by another process$"), owned(tmp_path):
            pass
    assert not is_owned(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]


def test_a_lease_that_is_not_refreshed_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "LEASE_SECONDS", 0.5)
    lease_of_another_machine(tmp_path)
    before = time.monotonic()
    with owned(tmp_path):
        assert time.monotonic() - before >= 0.5


def test_a_lease_that_is_refreshed_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "LEASE_SECONDS", 0.5)
    marker = lease_of_another_machine(tmp_path)
    code = f"import os, time\nwhile True: os.utime({str(marker)!r}); time.sleep(0.1)"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            with pytest.raises(RunBusy), owned(tmp_path):
                pass
            assert is_owned(tmp_path)
        finally:
            process.kill()


def test_a_lock_that_outlives_its_machine_is_for_a_person_to_free(
    short: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = short("method=sgd")
    folder = folder_of(planned.config)
    folder.mkdir(parents=True)
    marker = lease_of_another_machine(folder)
    os.utime(marker, (time.time() - 1200, time.time() - 1200))
    # The file server's lock, in place of one that is gone.
    with filelock.FileLock(folder / "run.lock"):
        assert status_of(planned.config) is Status.MISSING
        errors = run_missing([planned])
    (message,) = map(str, errors.values())
    assert "no sign of life for 20 minutes; if its machine is gone, free the run: rm " in message
    locks = message.rpartition("rm ")[2].split()
    assert [Path(lock).name for lock in locks] == ["run.lock", "owner.lock"]
    for lock in locks:
        (ROOT / lock).unlink()
    assert run_missing([planned]) == {}


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_without_kernel_locks_the_lease_decides(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(ownership, "LEASE_SECONDS", 0.5)
    with owned(tmp_path):
        assert is_owned(tmp_path)
        with pytest.raises(RunBusy), owned(tmp_path):
            pass
    assert not is_owned(tmp_path)


def test_locks_of_another_person_are_read_by_their_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(ownership, "_lock", refuse)
    (tmp_path / "run.lock").touch()
    assert not is_owned(tmp_path)
    (tmp_path / "owner.lock").touch()
    assert is_owned(tmp_path)
    os.utime(tmp_path / "owner.lock", (0, 0))
    assert not is_owned(tmp_path)


@pytest.mark.parametrize("then_fails", [False, True])
def test_a_process_that_lost_its_run_writes_no_more(
    short: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch, then_fails: bool
) -> None:
    """As one does that was suspended for longer than a lease; nor does it say that the run failed."""
    monkeypatch.setattr(ownership, "LEASE_SECONDS", 0.3)
    planned = short("method=sgd")
    folder = folder_of(planned.config)

    def lose(event: Event) -> None:
        if event.step == 100:
            (folder / "owner.lock").unlink()
            (folder / "owner.lock").write_text("another's")
            (folder / "attempts.jsonl").write_text("another's")
            time.sleep(1)
            if then_fails:
                raise ValueError

    with pytest.raises(RunBusy, match="was lost to another process"):
        execute(planned.config, planned.overrides, lose)
    assert len((folder / "events.jsonl").read_text().splitlines()) == 3
    assert (folder / "attempts.jsonl").read_text() == "another's"
    assert not (folder / "record.json").exists()
    assert not (folder / "FAILED.json").exists()


def test_reproduce_comes_back_to_a_run_that_another_process_gave_up(
    short: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    busy, free = short("method=sgd"), short("method=adam")
    folder = folder_of(busy.config)
    folder.mkdir(parents=True)
    lock = filelock.FileLock(folder / "run.lock")
    lock.acquire()
    # Not of the module time itself: whoever waits for a lock sleeps too.
    monkeypatch.setattr(reproduce, "time", SimpleNamespace(sleep=lambda seconds: lock.release()))
    assert run_missing([busy, free]) == {}
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("  ")]
    assert lines[2].startswith(f"not finished: {folder.name} is being worked on by another process")
    assert lines[5] == "1 runs are left to the processes that work on them: waiting (Ctrl-C: no longer)"
    assert [status_of(each.config) for each in (busy, free)] == [Status.DONE] * 2


@pytest.mark.slow
def test_two_launches_of_the_same_sweep_finish_it_once(tmp_path: Path) -> None:
    limits = ["protocol.evaluate_every=50", "protocol.max_steps=2000", "protocol.patience=1000"]
    arguments = ["sweep=demo", "preset=demo", "method=sgd,ap", "seeds=1", *limits, f"paths.results={tmp_path}"]
    command = [sys.executable, "-m", "experiments.reproduce", *arguments]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    folders = sorted(tmp_path.glob("digits-*"))
    assert len(folders) == 2
    for folder in folders:
        log = [json.loads(line)["what"] for line in (folder / "attempts.jsonl").read_text().splitlines()]
        assert log == ["started", "finished"], "the run was done once"
        assert sum(f"{folder.name}: test" in output for output in outputs) == 1
    assert all("Digits 8x8" in output for output in outputs), "both print the table in the end"
