"""Sweeps on a real SLURM: they finish whatever becomes of their jobs, with the numbers of local runs."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments.cells import Planned, plan
from experiments.cluster.submit import submit
from experiments.config import ROOT
from experiments.reproduce import run_missing
from experiments.runner import Status, folder_of, status_of
from tests.cluster.conftest import (
    LOCAL_CLUSTER,
    PATIENCE,
    Sweep,
    attempts,
    outcome,
    processes_of,
    squeue,
    wait,
)
from tests.processes import send

pytestmark = pytest.mark.slow
LONG = ("method=adam", "protocol.patience=100000", "protocol.max_steps=1500", "checkpoint_every_s=0")
"""Runs of 30 evaluations, each with a checkpoint: so many that they are not over before they are stopped."""


@pytest.fixture
def locally(tmp_path: Path, local: Path) -> Callable[[Sweep], list[Planned]]:
    """The same runs, done by this process."""

    def do(sweep: Sweep) -> list[Planned]:
        replaced = ("paths.results=", "checkpoint_every_s=")
        kept = [each for each in sweep.arguments if not each.startswith(replaced)]
        runs = plan([*kept, f"paths.results={tmp_path / 'local'}", "checkpoint_every_s=1000"])
        jax.config.update("jax_compilation_cache_dir", str(local / f"pjax-{os.getuid()}" / "compiled"))
        compilation_cache.reset_cache()
        try:
            assert run_missing(runs) == {}
        finally:
            jax.config.update("jax_compilation_cache_dir", None)
            compilation_cache.reset_cache()
        return runs

    return do


def test_a_sweep_finishes_and_a_failing_run_costs_no_other(
    sweep: Callable[..., Sweep], locally: Callable[[Sweep], list[Planned]], capfd: pytest.CaptureFixture[str]
) -> None:
    good = sweep("method=adam,ap,cp,dr", "seeds=3", "cluster.runs_per_task=5")
    bad = sweep("method=sgd", "seeds=1", "cluster.runs_per_task=5", "method.learning_rate=1e30")
    before = time.monotonic()
    # The one that fails is first in its task.
    assert submit([*bad.planned, *good.planned]) == []
    assert time.monotonic() - before < 10
    assert "0 of 13 runs are finished, 13 submitted as job " in capfd.readouterr().out
    shown = good.call("status").stdout
    assert "13 runs in 3 tasks" in shown
    assert "queued" in shown
    # Nothing is submitted twice.
    assert submit(good.planned) == []
    assert "0 of 12 runs are finished, 12 are in the queue: nothing to submit." in capfd.readouterr().out
    good.await_end()
    assert [status_of(run.config) for run in good.planned] == [Status.DONE] * 12, good.log
    (failed,) = bad.planned
    assert status_of(failed.config) is Status.FAILED
    assert re.search(r"error: digits-mlp_1x32-sgd-s0-\w+ failed at step 50: Diverged", good.log)
    assert "1 of 5 runs did not finish; the others did." in good.log
    assert list(map(outcome, good.planned)) == list(map(outcome, locally(good)))
    capfd.readouterr()
    # A failure is told, and tried again only on request.
    (message,) = submit([*bad.planned, *good.planned])
    assert "failed earlier at step 50" in message
    assert "12 of 13 runs are finished: nothing to submit." in capfd.readouterr().out
    environment = json.loads((folder_of(good.planned[0].config) / "environment.json").read_text())
    assert environment["slurm"].keys() >= {"job", "array_job", "array_task"}
    assert os.uname().nodename not in json.dumps(environment)


def cancelled(job: int, sweep: Sweep) -> list[int]:
    subprocess.run(["scancel", f"{job}_1"], check=True)
    send(signal.SIGCONT, processes_of(job))
    sweep.await_end()
    assert [status_of(run.config) for run in sweep.planned] == [Status.DONE, Status.CUT], sweep.log
    assert "1 cut at" in sweep.call("status").stdout
    assert sweep.submit() != job
    return [1]


def out_of_time(job: int, sweep: Sweep) -> list[int]:
    # Time limits are minutes, but a running job's can be cut to the second.
    end = datetime.now() + timedelta(seconds=45)
    subprocess.run(["scontrol", "update", f"JobId={job}_1", f"EndTime={end:%Y-%m-%dT%H:%M:%S}"], check=True)
    wait(lambda: "the time limit is near" in sweep.log, lambda: sweep.log)
    send(signal.SIGCONT, processes_of(job))
    wait(lambda: "not finished (status 138): requeued" in sweep.log, lambda: sweep.log)
    return [1]


def preempted(job: int, sweep: Sweep) -> list[int]:
    command = ["sbatch", "--partition=high", "--exclusive", "--wrap=sleep 1", "--output=/dev/null"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wait(lambda: sweep.log.count("DUE TO PREEMPTION") == 2, lambda: sweep.log)
    return [0, 1]


def without_daemon(job: int, sweep: Sweep) -> list[int]:
    folder = Path(os.environ["SLURM_CONF"]).parent
    send(signal.SIGKILL, [int((folder / "slurmd.pid").read_text())])
    send(signal.SIGCONT, processes_of(job))
    subprocess.run([LOCAL_CLUSTER, "restart-node", folder], check=True, timeout=120)
    # A node works on without its daemon, which hears of it when it is back.
    return []


def without_node(job: int, sweep: Sweep) -> list[int]:
    folder = Path(os.environ["SLURM_CONF"]).parent
    send(signal.SIGKILL, [int((folder / "slurmd.pid").read_text())])
    send(signal.SIGKILL, processes_of(job))
    # SLURM takes the node for dead when it has not answered for a while.
    wait(lambda: {f"{job}_0 PD", f"{job}_1 PD"} <= {*squeue()}, lambda: str(squeue()))
    subprocess.run([LOCAL_CLUSTER, "restart-node", folder], check=True, timeout=120)
    return [0, 1]


@pytest.mark.parametrize("disturbance", [cancelled, out_of_time, preempted, without_daemon, without_node])
def test_runs_end_with_their_numbers_whatever_becomes_of_a_job(
    disturbance: Callable[[int, Sweep], list[int]],
    sweep: Callable[..., Sweep],
    locally: Callable[[Sweep], list[Planned]],
) -> None:
    # A task each, and of the second the job's number is that of the array.
    disturbed = sweep(*LONG, "seeds=2", "cluster.signal_s=20")
    job = disturbed.submit()
    disturbed.pause(job)
    resumed = disturbance(job, disturbed)
    expected = list(map(outcome, locally(disturbed)))
    disturbed.await_end()
    assert [status_of(run.config) for run in disturbed.planned] == [Status.DONE] * 2, disturbed.log
    assert list(map(outcome, disturbed.planned)) == expected
    for task, run in enumerate(disturbed.planned):
        begun = [line for line in attempts(run) if line["what"] in ("started", "resumed")]
        # What becomes of one task is nothing to another.
        assert [line["what"] for line in begun] == ["started", *["resumed"] * (task in resumed)], disturbed.log
        assert all(line["step"] > 0 for line in begun[1:])


def test_attempts_have_a_limit(sweep: Callable[..., Sweep]) -> None:
    limited = sweep(*LONG, "seeds=1", "cluster.signal_s=20", "cluster.attempts=1")
    job = limited.submit()
    limited.pause(job)
    send(signal.SIGKILL, processes_of(job, "experiments.cluster.task"))
    send(signal.SIGKILL, processes_of(job, "experiments.cluster.work"))
    limited.await_end()
    assert "error: not finished after 1 attempts (cluster.attempts)" in limited.log
    (run,) = limited.planned
    # A lock is not taken from a process that died this very moment.
    wait(lambda: status_of(run.config) is Status.CUT, lambda: limited.log)


def test_an_edit_after_submission_changes_nothing_submitted(sweep: Callable[..., Sweep], checkout: Path) -> None:
    frozen = sweep("method=sgd", "seeds=1", 'cluster.options=["--hold"]', root=checkout)
    job = frozen.submit()
    path = checkout / "conf" / "method" / "sgd.yaml"
    edited = re.sub(r"learning_rate: [\d.]+", "learning_rate: 0.5", path.read_text())
    assert edited != path.read_text()
    path.write_text(edited)
    (checkout / "conf" / "protocol" / "paper.yaml").unlink()
    subprocess.run(["scontrol", "release", f"{job}"], check=True)
    frozen.await_end()
    (run,) = frozen.planned
    assert status_of(run.config) is Status.DONE, frozen.log


def test_code_that_changed_after_submission_is_refused_by_name(sweep: Callable[..., Sweep], checkout: Path) -> None:
    frozen = sweep("method=sgd", "seeds=1", 'cluster.options=["--hold"]', root=checkout)
    job = frozen.submit()
    with (checkout / "baselines" / "mlp.py").open("a") as file:
        file.write("# Another line.\n")
    subprocess.run(["scontrol", "release", f"{job}"], check=True)
    frozen.await_end()
    assert re.search(r"error: the code has changed since .*: baselines/mlp\.py\. Bring it back, or submit", frozen.log)
    assert "requeued" not in frozen.log
    (run,) = frozen.planned
    assert status_of(run.config) is Status.MISSING


def test_runs_side_by_side_in_a_task_share_it(sweep: Callable[..., Sweep]) -> None:
    shared = sweep("method=sgd,adam", "seeds=2", "jobs=2", "cluster.runs_per_task=4")
    shared.submit()
    shared.await_end()
    assert [status_of(run.config) for run in shared.planned] == [Status.DONE] * 4, shared.log
    environment = json.loads((folder_of(shared.planned[0].config) / "environment.json").read_text())
    assert environment["device"].endswith(", 2 runs at once")


def test_several_processes_do_a_run_and_one_writes(
    sweep: Callable[..., Sweep], locally: Callable[[Sweep], list[Planned]]
) -> None:
    # Half of signal_s is what a process gets to end: on a busy machine it compiles for as long as 20 s.
    split = sweep(*LONG, "seeds=1", "cluster.processes=2", "cluster.signal_s=60")
    job = split.submit()
    # One of them is killed, and both start again.
    split.pause(job)
    leader, follower = sorted(processes_of(job, "experiments.cluster.work"), key=_rank)
    send(signal.SIGKILL, [follower])
    send(signal.SIGCONT, [leader])
    (run,) = split.planned
    wait(lambda: attempts(run)[-1]["what"] == "resumed", lambda: split.log)
    # SLURM's own word, which srun must not make worse: the run is saved.
    subprocess.run(["scancel", f"{job}_0"], check=True)
    split.await_end()
    assert [line["what"] for line in attempts(run)] == ["started", "interrupted", "resumed", "interrupted"], split.log
    split.submit()
    split.await_end()
    assert status_of(run.config) is Status.DONE, split.log
    (ours,), (alone,) = map(outcome, split.planned), map(outcome, locally(sweep(*LONG, "seeds=1")))
    for event, expected in zip(ours["events"], alone["events"], strict=True):
        known = {key: value for key, value in expected.items() if value is not None}
        # Two processes add in another order, and rounding grows as Adam goes on.
        assert {key: event[key] for key in known} == pytest.approx(known, rel=1e-3 + 1e-5 * expected["step"])
        assert event.keys() == expected.keys()
    environment = json.loads((folder_of(run.config) / "environment.json").read_text())
    assert environment["device"].endswith(", 2 processes")


def _rank(pid: int) -> int:
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    (rank,) = (each.partition(b"=")[2] for each in variables if each.startswith(b"SLURM_PROCID="))
    return int(rank)


def test_435_queued_runs_are_listed_in_two_seconds(sweep: Callable[..., Sweep], tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("mnist", "cifar10", "higgs", "shakespeare"):
        (data / name).mkdir(parents=True)
        np.save(data / name / "x.npy", np.zeros(1))
        (data / name / "meta.json").write_text(json.dumps({"sha256": "", "shapes": {"x": [1]}}))
    places = [f"paths.results={tmp_path / 'runs'}", f"paths.data={data}", f"cluster.folder={tmp_path / 'submissions'}"]
    listed = Sweep(["sweep=table2,table3,table4", *places, 'cluster.options=["--hold"]'])
    job = listed.submit()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = listed.call("status").stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["scancel", str(job)], check=True)
    assert shown.count("5 queued") == 87
    assert f"job {job}, 435 runs in 435 tasks: 0 running, 435 waiting (JobHeldUser), 0 ended; logs: " in shown
    # Of the processor, as the machine may be busy with other tests.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_hydras_launcher_does_a_sweep(slurm: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.run", "-m", "dataset=digits", "method=sgd,adam"]
    command += ["hydra/launcher=slurm", "cluster.cpus=1", "cluster.memory_gb=2", "cluster.time_min=10"]
    command += ["protocol.evaluate_every=50", "protocol.max_steps=100", f"paths.results={tmp_path / 'runs'}"]
    command += [f"hydra.sweep.dir={tmp_path / 'hydra'}", f"cluster.setup=['touch {tmp_path / 'set-up'}','true']"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "runs").glob("*/record.json"))) == 2
    assert (tmp_path / "set-up").exists()
