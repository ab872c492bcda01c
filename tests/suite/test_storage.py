"""A disk that is full, or fails: what is told, and that nothing saved is lost."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments import checkpoint
from experiments.cells import Planned
from experiments.records import Event, saved_steps
from experiments.reproduce import run_missing
from experiments.runner import Status, execute, folder_of, status_of
from experiments.storage import StorageError, append, write_whole
from tests.kill import outcome
from tests.suite.test_resume import SAVED, attempts, ignore

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this process may not mount a file system: {error}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True, capture_output=True)


def fill(disk: Path) -> Path:
    """Leave no room on a disk; returns the file that takes it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left on device"):
        file.writelines(bytes(4096) for _ in range(1000))
    return filler


def test_a_full_disk_stops_a_run_that_goes_on_when_there_is_room(
    small_disk: Path, short: Callable[..., Planned], tmp_path: Path
) -> None:
    planned, undisturbed = short("method=adam", SAVED, f"paths.results={small_disk}"), short("method=adam", SAVED)
    folder = folder_of(planned.config)

    def on_event(event: Event) -> None:
        if event.step == 150:
            fill(small_disk)

    with pytest.raises(StorageError) as stopped:
        execute(planned.config, planned.overrides, on_event)
    message = str(stopped.value)
    assert message.startswith(f"{folder.name} stopped: cannot write {folder}/")
    assert "(0.0 MB free there)" in message
    assert "the run goes on from its last checkpoint" in message
    assert saved_steps(folder) == [100, 50]
    assert status_of(planned.config) is Status.CUT
    # Without room it does not even begin, and loses nothing.
    with pytest.raises(StorageError):
        execute(planned.config, planned.overrides, ignore)
    assert saved_steps(folder) == [100, 50]
    (small_disk / "filler").unlink()
    execute(planned.config, planned.overrides, ignore)
    assert (1, "started", 0) in attempts(planned)
    assert attempts(planned)[-2:] == [(2, "resumed", 100), (2, "finished", 200)]
    execute(undisturbed.config, undisturbed.overrides, ignore)
    assert outcome(planned) == outcome(undisturbed)


def test_a_disk_without_room_for_a_folder_is_full_and_no_wrong_place(
    short: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = short("method=adam")
    mkdir = Path.mkdir

    def full(self: Path, *arguments: Any, **more: Any) -> None:
        if self == folder_of(planned.config):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        mkdir(self, *arguments, **more)

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(StorageError, match="No space left on device"):
        execute(planned.config, planned.overrides, ignore)


@pytest.mark.parametrize("name", ["events.jsonl", ".record.json.part", "checkpoint"])
def test_a_write_that_fails_stops_one_run_and_no_other(
    name: str, short: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    victim, other = short("method=adam", SAVED), short("method=sgd", SAVED)
    folder = folder_of(victim.config)
    opened, saver = Path.open, checkpoint.ocp.Checkpointer.save
    full = [True]

    def refuse(path: Path) -> None:
        if full[0] and path.is_relative_to(folder) and max(saved_steps(folder), default=0) >= 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def open_file(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == name:
            refuse(self)
        return opened(self, *arguments, **options)

    def save(self: Any, path: Path, **options: Any) -> None:
        if name == "checkpoint":
            refuse(path)
        saver(self, path, **options)

    monkeypatch.setattr(Path, "open", open_file)
    monkeypatch.setattr(checkpoint.ocp.Checkpointer, "save", save)
    errors = run_missing([victim, other])
    assert list(errors) == [folder.name]
    written = {".record.json.part": "record.json"}.get(name, name)
    assert f"cannot write {folder / written}: No space left on device (" in str(errors[folder.name])
    assert "MB free there)" in str(errors[folder.name])
    assert [status_of(each.config) for each in (victim, other)] == [Status.CUT, Status.DONE]
    assert attempts(victim)[-1][1] == "not written"
    full[0] = False
    assert run_missing([victim, other]) == {}
    assert "goes on from step" in capsys.readouterr().out
    assert status_of(victim.config) is Status.DONE


def test_a_line_that_cannot_be_written_whole_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write /dev/full: No space left on device"):
        append(Path("/dev/full"), "line")
    target = tmp_path / "file"
    write_whole(target, "before")
    (tmp_path / ".file.part").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left on device"):
        write_whole(target, "after")
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_half_a_line_of_attempts_is_dropped(short: Callable[..., Planned]) -> None:
    planned = short("method=sgd")
    folder = folder_of(planned.config)
    folder.mkdir(parents=True)
    whole = json.dumps({"attempt": 1, "what": "started", "step": 0, "time": "then"})
    (folder / "attempts.jsonl").write_text(whole + "\n" + whole[:20])
    execute(planned.config, planned.overrides, ignore)
    assert attempts(planned) == [(1, "started", 0), (2, "started", 0), (2, "finished", 200)]


def test_a_checkpoint_goes_on_without_the_log_of_the_attempts_before(cut_run: Callable[[str], Planned]) -> None:
    planned = cut_run("adam")
    (folder_of(planned.config) / "attempts.jsonl").unlink()
    assert execute(planned.config, planned.overrides, ignore) is not None
    assert attempts(planned) == [(1, "resumed", 100), (1, "finished", 200)]


def test_a_disk_that_cannot_be_read_costs_no_checkpoint(
    cut_run: Callable[[str], Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = cut_run("adam")

    def broken(_: Path) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_sums", broken)
        with pytest.raises(StorageError, match=r"cannot read .*/checkpoint: Input/output error"):
            execute(planned.config, planned.overrides, ignore)
    assert saved_steps(folder_of(planned.config)) == [100, 50]
