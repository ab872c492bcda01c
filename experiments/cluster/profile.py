"""The site profile: what a cluster wants to be told, and how its nodes are used. A file of `conf/cluster/`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING


@dataclass
class ClusterConfig:
    """A site profile; no part of a run's identity. The file says why each value is what it is.

    Attributes:
        partition: and `account`, `qos`: what sbatch is told; None: the site's default.
        gpus: of a node's task.
        cpus: of a task.
        memory_gb: of a node's task, in 10^9 bytes.
        time_min: a task's time limit.
        signal_s: how long before that limit the runs are told to save and end.
        width: how many tasks may run at once.
        runs_per_task: how many runs a task does.
        processes: that do one run together, data parallel; over `nodes` nodes, as many on each.
        attempts: how often a task may start, requeues included.
        setup: lines of shell before Python starts.
        options: further options of sbatch, such as `--constraint=a100`.
        local: a folder that every node has for itself.
        stage: whether data are copied there.
        cache: whether compiled programs are kept there.
        folder: for submissions, relative to the repository's root or absolute.
    """

    name: str = MISSING
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    gpus: int = MISSING
    cpus: int = MISSING
    memory_gb: int = MISSING
    time_min: int = MISSING
    signal_s: int = MISSING
    width: int = MISSING
    runs_per_task: int = MISSING
    nodes: int = MISSING
    processes: int = MISSING
    attempts: int = MISSING
    setup: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    local: str = MISSING
    stage: bool = MISSING
    cache: bool = MISSING
    folder: str = MISSING


OURS = ("--job-name", "--array", "--output", "--signal", "--chdir", "--requeue", "--no-requeue")
"""What sbatch is told anyway."""
POSITIVE = ("cpus", "memory_gb", "time_min", "signal_s", "width", "runs_per_task", "nodes", "processes", "attempts")


def checks(cluster: ClusterConfig, jobs: int, batch_size: int) -> list[tuple[bool, str]]:
    """What a profile must fulfil: whether it does, and what to say if not.

    Args:
        cluster: the profile.
        jobs: how many runs a task does at once.
        batch_size: of the run.
    """
    positive = [
        (getattr(cluster, key) > 0, f"cluster.{key}={getattr(cluster, key)} is not positive") for key in POSITIVE
    ]
    parallel, nodes = cluster.processes, cluster.nodes
    return [
        *positive,
        (cluster.gpus >= 0, f"cluster.gpus={cluster.gpus} is negative"),
        (
            cluster.signal_s < 60 * cluster.time_min,
            f"cluster.signal_s={cluster.signal_s} is not within cluster.time_min={cluster.time_min}",
        ),
        (
            nodes < 1 or parallel % nodes == 0,
            f"cluster.processes={parallel} is no multiple of cluster.nodes={nodes}",
        ),
        (parallel == 1 or jobs == 1, f"cluster.processes={parallel} and jobs={jobs}: one of them"),
        (
            parallel < 1 or batch_size % parallel == 0,
            f"protocol.batch_size={batch_size} cannot be split among cluster.processes={parallel}",
        ),
        (Path(cluster.local).is_absolute(), f"cluster.local={cluster.local} is not an absolute path"),
        (
            all(option.startswith("--") for option in cluster.options),
            f"cluster.options={cluster.options}: options of sbatch begin with --",
        ),
        (
            not any(option.partition("=")[0] in OURS for option in cluster.options),
            f"cluster.options={cluster.options}: {', '.join(OURS)} are what a submission says itself",
        ),
    ]
