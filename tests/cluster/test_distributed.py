"""One run on two processes: the parameters of one process, and half of the work for each."""

from __future__ import annotations

import dataclasses
import multiprocessing
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments import checkpoint, training
from experiments.cluster import distributed
from experiments.compose import compose_run
from experiments.config import ROOT, RunConfig, UsageError
from experiments.data import prepare
from experiments.interruption import Lost
from experiments.records import run_id
from experiments.storage import StorageError
from tests.suite.test_data_sources import MNIST


@pytest.mark.slow
def test_two_processes_train_mnist_to_the_parameters_of_one(shared: Path, tmp_path: Path) -> None:
    prepare(MNIST, tmp_path / "data", shared / "data")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"

    def start(count: int, number: int, out: str) -> subprocess.Popen[str]:
        module = [sys.executable, "-m", "tests.cluster.two_processes"]
        command = [*module, address, str(count), str(number), str(tmp_path / out), str(tmp_path / "data")]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    processes = [start(2, 0, "first.npz"), start(2, 1, "second.npz")]
    for process in processes:
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, output
    alone = start(1, 0, "alone.npz")
    output, _ = alone.communicate(timeout=900)
    assert alone.returncode == 0, output
    one, first, second = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("alone", "first", "second"))
    assert len(one) == 8
    for name, values in one.items():
        np.testing.assert_array_equal(first[name], second[name])
        if name.endswith("flops"):
            assert first[name] < 0.7 * values
        else:
            kind, tolerance = (np.float32, 5e-6) if name.startswith("ap") else (np.float64, 1e-9)
            assert values.dtype == kind
            np.testing.assert_allclose(first[name], values, rtol=0, atol=tolerance)


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[BaseException | None, Lost | None]]:
    """Two processes of a run as threads: what the leader's block ends with, and the other process."""
    here, there = multiprocessing.Pipe()
    main = threading.current_thread()
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr(distributed, "_lines", lambda: [there if threading.current_thread() is main else here])
    monkeypatch.setattr(distributed, "LOST_SECONDS", 1.0)

    def run(
        config: RunConfig, theirs: RunConfig, leads: Callable[[], None], resumed: Sequence[Any] = ()
    ) -> tuple[BaseException | None, Lost | None]:
        followed: list[Lost] = []
        ended: list[BaseException | None] = []

        def lead() -> None:
            try:
                with distributed.leading([config], [Path("run")], resumed, distributed._Follower()):
                    leads()
                ended.append(None)
            except BaseException as error:
                ended.append(error)
            finally:
                with suppress(OSError):
                    here.send(distributed.END)

        signums = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        before = {signum: signal.getsignal(signum) for signum in signums}
        leader = threading.Thread(target=lead, daemon=True)
        leader.start()
        try:
            distributed.follow({run_id(theirs): theirs})
        except Lost as error:
            followed.append(error)
            # As the end of its process would.
            there.close()
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            leader.join(timeout=60)
        return ended[0], (followed or [None])[0]

    return run


Pair = Callable[..., tuple[BaseException | None, Lost | None]]


def test_data_that_another_node_cannot_read_are_refused_before_anything_waits_for_it(
    pair: Pair, tmp_path: Path
) -> None:
    config = compose_run(["task=mnist-mlp_1x128", f"paths.data={ROOT / 'data'}"])
    theirs = dataclasses.replace(config, paths=dataclasses.replace(config.paths, data=str(tmp_path)))
    ended, followed = pair(config, theirs, lambda: pytest.fail("trained"))
    assert isinstance(ended, UsageError)
    assert str(tmp_path) in str(ended)
    assert followed is None


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("theirs", "ours", "lost"),
    [
        (ValueError("no memory on device 1"), ValueError("no memory on device 0"), False),
        (UsageError("too large"), UsageError("too large"), False),
        (ValueError("no memory"), RuntimeError("a connection broke"), True),
        (UsageError("too large"), RuntimeError("a connection broke"), True),
        # It waits for a word of the leader's.
        (None, StorageError("full"), False),
    ],
)
def test_an_error_of_all_processes_is_the_runs_and_that_of_one_is_not(
    theirs: Exception | None, ours: Exception, lost: bool, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def follows(*arguments: Any) -> None:
        arguments[-1].after(list)
        if theirs:
            fail(theirs)
        arguments[-1].after(list)

    def leads() -> None:
        distributed._say(distributed.GO)
        fail(ours)

    monkeypatch.setattr(training, "train_seeds", follows)
    # The leader's own keeper counts, and here there is none.
    monkeypatch.setattr(distributed._Failure, "of", lambda error, _: distributed._Failure(type(error).__name__, 1))
    config = compose_run(["dataset=digits"])
    ended, followed = pair(config, config, leads)
    assert isinstance(ended, Lost) if lost else ended is ours
    assert followed is None


def test_a_process_that_fails_alone_ends_and_the_leader_hears_of_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone(*_: Any) -> None:
        fail(ValueError("no memory"))

    def leads() -> None:
        # In a collective operation until the other process has ended.
        distributed._say(distributed.GO)
        while distributed._lines()[0].poll(60):
            distributed._lines()[0].recv()

    monkeypatch.setattr(training, "train_seeds", alone)
    config = compose_run(["dataset=digits"])
    ended, followed = pair(config, config, leads)
    assert isinstance(ended, Lost)
    assert isinstance(followed, Lost)


def test_a_checkpoint_that_another_node_cannot_read_stays(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose_run(["dataset=digits"])
    monkeypatch.setattr(checkpoint, "load", lambda *_: fail(checkpoint.Damaged("not there")))
    ended, followed = pair(config, config, lambda: pytest.fail("trained"), [SimpleNamespace(step=7)])
    assert isinstance(ended, Lost)
    assert isinstance(followed, Lost)


def test_one_process_is_left_alone() -> None:
    assert distributed.everywhere() is None
    assert not distributed.is_follower()
    batch = np.ones(3)
    assert distributed.split(batch) is batch
    with distributed.led():
        pass
