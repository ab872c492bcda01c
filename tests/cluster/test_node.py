"""What a task does on its node: data, caches, memory, its processes and their signals. No SLURM needed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from experiments import reproduce
from experiments.cluster import task, work
from experiments.cluster.manifest import Manifest
from experiments.cluster.work import on_node, ordered
from experiments.config import RunConfig, TrackerConfig, UsageError, WandbConfig
from experiments.environment import slurm_ids
from experiments.interruption import Interruption, Lost
from experiments.memory import device_bytes, limit_bytes
from experiments.runner import RunFailed, folder_of
from experiments.storage import StorageError


def test_data_are_staged_whole_and_again_when_they_change(tmp_path: Path) -> None:
    source, target = tmp_path / "shared" / "mnist", tmp_path / "node" / "data" / "mnist"
    task.stage(source, target)
    assert not target.exists()
    source.mkdir(parents=True)
    (source / "meta.json").write_text("1")
    (source / "x.npy").write_text("one")
    task.stage(source, target)
    assert (target / "x.npy").read_text() == "one"
    (target / "x.npy").write_text("own")
    task.stage(source, target)
    assert (target / "x.npy").read_text() == "own"
    # Whoever tidies up a node.
    (target / "x.npy").unlink()
    task.stage(source, target)
    assert (target / "x.npy").read_text() == "one"
    (target / "x.npy").write_text("old")
    (source / "meta.json").write_text("2")
    task.stage(source, target)
    assert (target / "x.npy").read_text() == "one"
    assert sorted(path.name for path in target.parent.iterdir()) == [".mnist.lock", "mnist"]


def test_a_node_is_prepared_as_the_profile_says(
    frozen: Callable[..., Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    local = f"cluster.local={tmp_path / 'node'}"
    found = task.node_environment(frozen(local, "cluster.stage=true"), 0)
    own = tmp_path / "node" / f"pjax-{os.getuid()}"
    assert found["JAX_COMPILATION_CACHE_DIR"] == str(own / "compiled")
    assert found["PJAX_STAGED_DATA"] == str(own / "data")
    assert own.stat().st_mode & 0o077 == 0
    bare = task.node_environment(frozen(local, "cluster.cache=false"), 0)
    assert bare.keys().isdisjoint({"PJAX_STAGED_DATA", "JAX_COMPILATION_CACHE_DIR"})


def test_a_node_that_cannot_keep_anything_does_its_runs(
    frozen: Callable[..., Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    (tmp_path / "file").write_text("")
    found = task.node_environment(frozen(f"cluster.local={tmp_path / 'file'}", "cluster.stage=true"), 0)
    assert found.keys().isdisjoint({"PJAX_STAGED_DATA", "JAX_COMPILATION_CACHE_DIR"})
    assert "/file cannot be used on this node, so nothing is kept there: " in capsys.readouterr().out


def test_processes_of_a_task_share_its_gpus() -> None:
    part = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    assert task.shares(3, {}, 0) == [{}] * 3
    assert task.shares(1, {}, 1) == [{}]
    assert task.shares(3, {}, 1) == [{part: "0.300"}] * 3
    found = task.shares(4, {"CUDA_VISIBLE_DEVICES": "2,5"}, 2)
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == ["2", "5", "2", "5"]
    assert {each[part] for each in found} == {"0.450"}
    # What a user has said holds.
    assert task.shares(2, {part: "0.1"}, 1) == [{part: "0.1"}] * 2


def test_a_gpus_share_is_not_shared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.memory.device_bytes", lambda: 12_000)
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert limit_bytes(None, 4) == 3_000
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.225")
    assert limit_bytes(None, 4) == 12_000
    monkeypatch.setattr("jax.default_backend", lambda: "cpu")
    assert limit_bytes(None, 4) == 3_000
    assert device_bytes()


def test_a_run_is_done_as_its_node_wants_it(frozen: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    written = frozen("jobs=2", "tracker=wandb", "retry_failed=true", "cluster.memory_gb=10")
    first, second = written.planned(0)
    monkeypatch.setenv("PJAX_STAGED_DATA", "/node/data")
    done = on_node(first, written, 0, 0).config
    assert (done.paths.data, done.memory_gb, done.retry_failed) == ("/node/data", 5, True)
    # Nothing outlives a job.
    assert isinstance(done.tracker, WandbConfig)
    assert done.tracker.wait_s == done.tracker.finish_timeout_s > 0
    assert on_node(first, written, 0, 1).config.tracker == TrackerConfig("none")
    folder = folder_of(first.config)
    folder.mkdir(parents=True)
    (folder / "FAILED.json").write_text(json.dumps({"time": "2020-01-01T00:00:00+00:00"}))
    assert on_node(first, written, 0, 0).config.retry_failed
    (folder / "FAILED.json").write_text(json.dumps({"time": "2999-01-01T00:00:00+00:00"}))
    assert not on_node(first, written, 0, 0).config.retry_failed
    # Those of other GPUs share nothing with it.
    several = dataclasses.replace(written, cluster=dataclasses.replace(written.cluster, gpus=2))
    on_gpu = on_node(first, several, 0, 0).config
    assert (done.jobs, on_gpu.jobs, on_gpu.memory_gb) == (2, 1, None)
    three = dataclasses.replace(several, jobs=3, tasks=[[0, 1, 2]])
    assert on_node(first, three, 0, 0).config.jobs == 2
    alone = dataclasses.replace(written, tasks=[[0]])
    assert (on_node(first, alone, 0, 0).config.jobs, on_node(first, alone, 0, 0).config.memory_gb) == (1, 10)
    # What was begun more often comes last.
    (folder / "attempts.jsonl").write_text('{"attempt": 1, "what": "started"}\n')
    assert ordered([first, second], 0) == [second, first]
    # Seeds of one program stay together.
    third = dataclasses.replace(second, config=dataclasses.replace(second.config, seed=2))
    zero, one, two = (dataclasses.replace(run, together=True) for run in (first, second, third))
    assert ordered([zero, one, two], 0) == [one, two, zero]


def test_a_process_asks_how_a_run_is_to_be_done_when_its_turn_has_come(
    frozen: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = frozen("retry_failed=true")
    runs = written.planned(0)
    done: list[bool] = []

    def execute(group: Sequence[tuple[RunConfig, Sequence[str]]], _: object) -> list[None]:
        done.extend(config.retry_failed for config, _ in group)
        # Another process of the task does the next run in the meantime, and it fails.
        (folder := folder_of(runs[1].config)).mkdir(parents=True, exist_ok=True)
        (folder / "FAILED.json").write_text(json.dumps({"time": "2999-01-01T00:00:00+00:00"}))
        return [None] * len(group)

    monkeypatch.setattr(reproduce, "execute_together", execute)
    reproduce.run_missing(runs[:2], lambda run: on_node(run, written, 0, 0))
    assert done == [True, False]


@pytest.mark.parametrize(
    ("errors", "status"),
    [
        ([StorageError("full"), UsageError("no place")], Lost.status),
        ([UsageError("no place"), RunFailed("failed")], 2),
        ([RunFailed("failed")], 1),
        ([], 0),
    ],
)
def test_a_process_says_how_its_runs_ended(
    errors: list[Exception], status: int, frozen: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = frozen()
    monkeypatch.setattr(work, "run_missing", lambda *_: {f"run {i}": error for i, error in enumerate(errors)})
    monkeypatch.setattr(sys, "argv", ["work", str(written.folder), "0", "0"])
    assert work.main() == status


def supervised(code: list[str], restarts: int | None = 4, signal_s: float | None = None, patience_s: float = 60) -> int:
    """The status of supervised processes; SIGUSR1 comes after so many seconds."""
    interruption = Interruption()
    interruption.deferred = True
    if signal_s is not None:
        threading.Timer(signal_s, interruption.handle, (signal.SIGUSR1, None)).start()
    commands = [([sys.executable, "-c", each], dict(os.environ)) for each in code]
    return task.supervise(commands, restarts, interruption, patience_s)


def test_a_process_that_is_killed_is_started_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "mark"
    killed = (
        f"import os, pathlib\np = pathlib.Path({str(mark)!r})\nif not p.exists(): p.touch(); os.kill(os.getpid(), 9)"
    )
    assert supervised([killed, "pass"]) == 0
    assert "a process was killed (SIGKILL), out of memory perhaps: it goes on" in capfd.readouterr().out
    assert supervised(["import os; os.kill(os.getpid(), 9)", "raise SystemExit(2)"], restarts=1) == 2
    assert "error: a process was killed (SIGKILL) again and again" in capfd.readouterr().err
    # Of a run on several processes: all of them start again, in another job.
    assert supervised(["import os; os.kill(os.getpid(), 9)"], restarts=None) == Lost.status


def test_a_signal_is_handed_on_and_its_status_handed_back() -> None:
    waits = "import signal, sys, time\nsignal.signal(signal.SIGUSR1, lambda *_: sys.exit(138))\ntime.sleep(60)"
    before = time.monotonic()
    assert supervised([waits, "raise SystemExit(1)"], signal_s=1) == 138
    deaf = "import signal, time\nsignal.signal(signal.SIGUSR1, signal.SIG_IGN)\ntime.sleep(60)"
    assert supervised([deaf], signal_s=1, patience_s=1) == 138
    assert time.monotonic() - before < 55


def test_a_job_says_its_ids_and_not_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)
    assert slurm_ids() == {}
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "11")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    monkeypatch.setenv("SLURM_NODELIST", "node7")
    assert slurm_ids() == {"job": 12, "array_job": 11, "array_task": 0}
