"""A real SLURM on loopback, and sweeps of short runs on it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from experiments.cells import Planned, plan
from experiments.cluster import manifest, submit
from experiments.cluster.manifest import Manifest
from experiments.config import ROOT
from experiments.runner import folder_of
from tests.processes import running, send

LOCAL_CLUSTER = ROOT / "slurm" / "local-cluster"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
PATIENCE = 900.0
"""Seconds for anything; a machine may be busy."""
CLOCKS = ("train_s", "wall_s")
DEMO = ("sweep=demo", "preset=demo", "method=dr", "seeds=10")
"""Ten runs of one cell, as composing takes its time."""


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a running cluster of this process's own, which `SLURM_CONF` names while the tests last."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if missing := [name for name in NEEDED if shutil.which(name, path=path) is None]:
        pytest.skip(f"no SLURM: {', '.join(missing)} not installed (Debian: apt-get install slurm-wlm munge)")
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([LOCAL_CLUSTER, "start", folder], check=True, stdout=subprocess.DEVNULL, timeout=120)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    yield folder
    subprocess.run([LOCAL_CLUSTER, "stop", folder], check=True, timeout=120)
    if before is None:
        del os.environ["SLURM_CONF"]
    else:
        os.environ["SLURM_CONF"] = before


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nodes' own folder: programs are compiled once for all tests."""
    return tmp_path_factory.mktemp("local")


@pytest.fixture
def arguments(tmp_path: Path, local: Path) -> list[str]:
    """Arguments of a sweep of short runs, with all that it writes under `tmp_path`."""
    return [
        *("sweep=demo", "preset=demo", "protocol.evaluate_every=50", "protocol.max_steps=100"),
        *(f"paths.results={tmp_path / 'runs'}", f"cluster.folder={tmp_path / 'submissions'}"),
        *(f"cluster.local={local}", "cluster.cpus=1", "cluster.memory_gb=2", "cluster.time_min=30"),
    ]


@dataclass
class Sweep:
    """Runs that were submitted from a checkout, and SLURM's words about them."""

    arguments: list[str]
    root: Path = ROOT

    @property
    def planned(self) -> list[Planned]:
        return plan(self.arguments)

    def call(self, module: str) -> subprocess.CompletedProcess[str]:
        """`python -m experiments.<module>` with the sweep's arguments."""
        command = [sys.executable, "-m", f"experiments.{module}", *self.arguments]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True, timeout=PATIENCE, check=False)

    def submit(self) -> int:
        """Submit what is missing; returns the job's number."""
        done = self.call("cluster.submit")
        assert done.returncode == 0, done.stderr
        return int(done.stdout.partition("submitted as job ")[2].split()[0])

    @property
    def log(self) -> str:
        """What all tasks of all submissions said."""
        (folder,) = (each.removeprefix("cluster.folder=") for each in self.arguments if "cluster.folder=" in each)
        return "\n".join(path.read_text() for path in sorted(Path(folder).glob("*/*.log")))

    def await_end(self) -> None:
        """Wait until nothing of this user's is in the queue."""
        wait(lambda: not squeue(), lambda: f"{squeue()}\n{self.log}")

    def pause(self, job: int) -> None:
        """Wait until each run has been saved after its first steps, and stop its processes there."""
        left = dict(enumerate(folder_of(run.config) for run in self.planned))
        while left:
            wait(lambda: any(map(saved, left.values())), lambda: self.log, look_s=0.02)
            (task, *_) = (task for task, folder in left.items() if saved(folder))
            send(signal.SIGSTOP, processes_of(job, "experiments.cluster.work", task))
            del left[task]


def saved(folder: Path) -> bool:
    """Whether a run was saved at another step than the first."""
    return any(path.name.isdecimal() and path.name != "0" for path in folder.glob("checkpoint/*"))


@pytest.fixture
def sweep(slurm: Path, arguments: list[str]) -> Callable[..., Sweep]:
    """A sweep of short runs for the cluster; further arguments come after."""

    def make(*more: str, root: Path = ROOT) -> Sweep:
        keys = [each.partition("=")[0] for each in more]
        return Sweep([each for each in arguments if each.partition("=")[0] not in keys] + list(more), root)

    return make


@pytest.fixture
def frozen(tmp_path: Path) -> Callable[..., Manifest]:
    """A submission of the demo's runs, two in a task, which nobody does."""

    def make(*more: str) -> Manifest:
        runs = plan([*DEMO, f"paths.results={tmp_path / 'runs'}", *more])
        folder = tmp_path / f"submission-{len(list(tmp_path.glob('submission-*')))}"
        folder.mkdir()
        return manifest.write(folder, submit.arranged(runs, 2), "0" * 40)

    return make


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the suite that a test may change."""
    copy = tmp_path / "checkout"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().splitlines():
        if name.split("/")[0] in ("pjax", "pjax_core", "baselines", "experiments", "conf", "slurm") or "lock" in name:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    (copy / ".venv").symlink_to((ROOT / ".venv").resolve())
    return copy


def wait(until: Callable[[], Any], told: Callable[[], str], look_s: float = 0.3) -> None:
    """Wait for something, and say what is known if it does not come."""
    deadline = time.monotonic() + PATIENCE
    while not until():
        assert time.monotonic() < deadline, told()
        time.sleep(look_s)


def squeue(form: str = "%i %t") -> list[str]:
    """What is in the queue."""
    command = ["squeue", "--noheader", "--array", f"--format={form}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()


def processes_of(job: int, module: str = "", task: int | None = None) -> list[int]:
    """The processes of a job of this cluster, SLURM's own for it included; or only those of a module or a task."""
    found = []
    for pid, command, variables in running():
        ours = f"SLURM_CONF={os.environ['SLURM_CONF']}".encode() in variables
        theirs = b"SLURM_ARRAY_JOB_ID=%d" % job in variables or command.startswith(b"slurmstepd: [")
        if task is not None and b"SLURM_ARRAY_TASK_ID=%d" % task not in variables:
            continue
        if ours and theirs and module.encode() in command:
            found.append(pid)
    return found


def outcome(run: Planned) -> dict[str, Any]:
    """What a finished run says, but for times and places."""
    folder = folder_of(run.config)
    record = json.loads((folder / "record.json").read_text())
    metrics = {key: value for key, value in record["metrics"].items() if key != "time_to_99_s"}
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in event.items() if key not in CLOCKS} for event in events]
    same = {key: record[key] for key in ("run_id", "cell", "seed", "config", "parameters", "data")}
    return {**same, "metrics": metrics, "events": kept}


def attempts(run: Planned) -> list[dict[str, Any]]:
    """The lines of a run's log of attempts."""
    return [json.loads(line) for line in (folder_of(run.config) / "attempts.jsonl").read_text().splitlines()]
