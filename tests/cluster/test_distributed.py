"""One run on two processes: the parameters of one process, and half of the work for each."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.cluster import distributed
from experiments.config import ROOT
from experiments.data import prepare
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


def test_one_process_is_left_alone() -> None:
    assert distributed.everywhere() is None
    assert not distributed.is_follower()
    batch = np.ones(3)
    assert distributed.split(batch) is batch
    with distributed.led():
        pass
