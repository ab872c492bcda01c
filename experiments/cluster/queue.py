"""What SLURM is told and asked: sbatch and squeue."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.cluster.manifest import Manifest, read
from experiments.config import UsageError

ANSWER_SECONDS = 20.0
"""How long SLURM may take to answer."""
STARTED = ("R", "CG", "S", "ST")
"""squeue's states of a job that has a node: running, ending, suspended, stopped."""
NAME = "pjax-"
"""What the name of a submission's job begins with; its folder's follows."""


class QueueError(UsageError):
    """SLURM is not there, or refused."""


class NoAnswer(QueueError):
    """SLURM did not answer in time, and may have done what it was told."""


@dataclass
class Open:
    """A submission with tasks in the queue.

    Attributes:
        job: SLURM's number of the array.
        manifest: what was submitted.
        running: tasks that have a node.
        waiting: tasks that wait for one.
        reason: SLURM's for the first that waits.
    """

    job: int
    manifest: Manifest
    running: set[int] = field(default_factory=set)
    waiting: set[int] = field(default_factory=set)
    reason: str = ""

    @property
    def names(self) -> set[tuple[str, str]]:
        """Folders and names of the runs of all its tasks in the queue."""
        numbers = [number for task in self.running | self.waiting for number in self.manifest.tasks[task]]
        return {(self.manifest.runs[number]["results"], self.manifest.runs[number]["name"]) for number in numbers}


def call(command: Iterable[str]) -> str:
    """What a command of SLURM's prints.

    Raises:
        QueueError: it is not there, fails, or does not answer.
    """
    name, *arguments = command
    if shutil.which(name) is None:
        raise QueueError(f"no {name} on this machine; go to a SLURM login node, or try out slurm/local-cluster")
    try:
        done = subprocess.run([name, *arguments], capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True)
    except subprocess.TimeoutExpired as error:
        raise NoAnswer(f"{name} has not answered for {ANSWER_SECONDS:.0f} s; try again later") from error
    except subprocess.CalledProcessError as error:
        raise QueueError(f"{name} refused: {error.stderr.strip() or error.stdout.strip()}") from error
    return done.stdout


def open_submissions(folder: Path) -> list[Open]:
    """The submissions that have tasks in the queue, oldest first.

    Raises:
        QueueError: SLURM does not say.
        UsageError: a manifest is damaged.
    """
    known = {NAME + path.parent.name: path.parent for path in folder.glob("*/manifest.json")}
    if not known:
        return []
    form = "--format=%F|%K|%t|%j|%r"
    lines = call(["squeue", "--noheader", "--array", f"--user={os.getuid()}", form]).splitlines()
    found: dict[int, Open] = {}
    for job, task, state, name, reason in (line.split("|", 4) for line in lines):
        # By name, as a cluster that was set up anew counts its jobs from 1 again.
        if not job.isdecimal() or name not in known or not task.isdecimal():
            continue
        each = found.get(int(job)) or found.setdefault(int(job), Open(int(job), read(known[name])))
        if state in STARTED:
            each.running.add(int(task))
        else:
            each.waiting.add(int(task))
            each.reason = each.reason or reason
    return [found[job] for job in sorted(found)]


def sbatch_options(manifest: Manifest) -> list[str]:
    """What sbatch is told of a submission."""
    cluster = manifest.cluster
    said: dict[str, Any] = {
        "job-name": NAME + manifest.folder.name,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "gres": f"gpu:{cluster.gpus}" if cluster.gpus else None,
        "nodes": cluster.nodes,
        "ntasks-per-node": cluster.processes // cluster.nodes,
        "cpus-per-task": cluster.cpus,
        "mem": f"{round(cluster.memory_gb * 1e9 / 2**20)}M",
        "time": cluster.time_min,
        "signal": f"B:USR1@{cluster.signal_s}",
        "array": f"0-{len(manifest.tasks) - 1}%{cluster.width}",
        "output": manifest.folder / "%A_%a.log",
    }
    return [f"--{key}={value}" for key, value in said.items() if value is not None] + cluster.options
