"""The command lines as a person meets them: wrong use, Ctrl-C, failures in a sweep, status."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from experiments.config import ROOT


def call(module: str, arguments: Sequence[str], timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run `python -m experiments.<module>`."""
    command = [sys.executable, "-m", f"experiments.{module}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("run", ["dataset=nonsense"], "mnist"),
        ("run", ["-m", "method=sgd,nonsense"], "adam"),
        ("run", ["-m", "nonsense=1"], "protocol.patience"),
        ("reproduce", ["model=nonsense"], "mlp_4x128_skip"),
    ],
)
def test_wrong_use_fails_in_seconds_and_lists_the_choices(module: str, arguments: list[str], message: str) -> None:
    result = call(module, arguments, timeout=60)
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("module", ["run", "reproduce"])
def test_a_run_without_data_names_the_command_and_leaves_no_trace(module: str, tmp_path: Path) -> None:
    paths = [f"paths.data={tmp_path / 'data'}", f"paths.results={tmp_path / 'runs'}"]
    result = call(module, ["dataset=mnist", "model=mlp_1x128", *paths], timeout=60)
    assert result.returncode != 0
    assert "make data DATASET=mnist RAW=" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("module", ["run", "reproduce", "status"])
def test_help_needs_no_jax(module: str) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{module}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('experiments.{module}', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "assert 'jax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=60)


def test_status_shows_every_cell(tmp_path: Path) -> None:
    result = call("status", ["sweep=table2", "dataset=mnist", "seeds=2", f"paths.results={tmp_path}"])
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("2 missing") == 15


@pytest.mark.slow
def test_ctrl_c_keeps_finished_runs_and_the_next_start_continues(tmp_path: Path) -> None:
    long = ["protocol.evaluate_every=100", "protocol.max_steps=5000", "protocol.patience=1000"]
    arguments = ["sweep=demo", "preset=demo", "method=sgd", "seeds=2", *long, f"paths.results={tmp_path}"]
    # A shell starts background jobs with SIGINT ignored, and their children inherit that: ask for it.
    code = (
        "import runpy, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "runpy.run_module('experiments.reproduce', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "-s1-" in line and line.endswith(": started\n"):
                # Its first evaluation: the second run is training, with a second or more to go.
                assert "step      0" in process.stdout.readline()
                break
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted: 1 of 2 runs are finished and stay. To continue, repeat the command." in output
    assert "Traceback" not in errors
    assert len(list(tmp_path.glob("*/record.json"))) == 1
    assert not list(tmp_path.glob("*/FAILED.json"))

    again = call("reproduce", arguments)
    assert again.returncode == 0, again.stderr
    assert "1 of 2 runs are finished, 1 to run." in again.stdout
    assert len(list(tmp_path.glob("*/record.json"))) == 2


@pytest.mark.slow
def test_hydra_sweep_goes_on_after_a_failure_and_names_it(tmp_path: Path) -> None:
    sweep = ["-m", "dataset=digits", "method=sgd", "method.learning_rate=1e30,0.1", f"paths.results={tmp_path}"]
    short = ["protocol.evaluate_every=50", "protocol.max_steps=100", f"hydra.sweep.dir={tmp_path / 'hydra'}"]
    result = call("run", [*sweep, *short])
    assert result.returncode == 1
    assert len(list(tmp_path.glob("*/record.json"))) == 1
    (failed,) = tmp_path.glob("*/FAILED.json")
    assert failed.parent.name in result.stderr.splitlines()[-1]
    # Hydra left nothing of its own where it was started.
    assert not list(ROOT.glob("*.log"))
    assert not (ROOT / "outputs").exists()
    assert not (ROOT / "multirun").exists()
