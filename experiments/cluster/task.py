"""One task of a submission: `python -m experiments.cluster.task <submission> <number>`, started by slurm/run.sbatch.

It prepares the node and starts the processes that do the runs (`experiments.cluster.work`), one, or `jobs` of them side
by side, each of which takes what is free. One that is killed, by a kernel that is out of memory for example, is started
again, and comes to the run that killed it last.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import FileLock

from experiments.cluster.manifest import Manifest, read
from experiments.config import ROOT, UsageError
from experiments.interruption import Interruption, Lost, interruptible

Command = tuple[list[str], dict[str, str]]

POLL_SECONDS = 0.2
GPU_SHARE = 0.9
"""Of a GPU's memory, what all its processes take together when they start."""
GOES_ON = (Lost.status, 130, 138, 143)
"""Exit statuses of a process that goes on when it is started again: that of a signal which asked it to end, ..."""


def main() -> int:
    """Command line; returns 0 if all are finished, 1 if one failed, 2 for what cannot be done, or one of `GOES_ON`."""
    try:
        manifest, number = read(Path(sys.argv[1])), int(sys.argv[2])
        manifest.check_code()
        runs = len(manifest.planned(number))
        environment = node_environment(manifest, number)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    jobs = manifest.jobs_of(number)
    work = [sys.executable, "-m", "experiments.cluster.work", str(manifest.folder), str(number)]
    commands = [
        ([*work, str(k)], {**environment, **own})
        for k, own in enumerate(shares(jobs, environment, manifest.cluster.gpus))
    ]
    # Of the processes of one run, none can be started again without the others.
    restarts = None if manifest.cluster.processes > 1 else 2 * runs
    with interruptible() as interruption:
        interruption.deferred = True
        # Before SLURM ends the job, there is time to requeue it. What runs saved before then has to do.
        return supervise(commands, restarts, interruption, manifest.cluster.signal_s / 2)


def supervise(
    commands: Sequence[Command],
    restarts: int | None,
    interruption: Interruption,
    patience_s: float,
) -> int:
    """Run processes until all have ended; returns the worst exit status.

    Args:
        commands: for each process, with its environment.
        restarts: how often one that is killed is started again; None: all of the task have to be.
        interruption: signals, which are handed on.
        patience_s: after a signal, how long the processes may take to end before they are killed.
    """

    def start(command: Command) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command[0], cwd=ROOT, env=command[1])

    going = [(command, start(command)) for command in commands]
    statuses: list[int] = []
    told: float | None = None
    while going:
        time.sleep(POLL_SECONDS)
        if interruption.pending and told is None:
            told = time.monotonic()
            for _, process in going:
                process.send_signal(interruption.signum)
        if told is not None and time.monotonic() - told > patience_s:
            for _, process in going:
                process.kill()
        for command, process in [*going]:
            status = process.poll()
            if status is None:
                continue
            going.remove((command, process))
            killed = f"a process was killed ({signal.Signals(-status).name})" if status < 0 else ""
            if told is not None or not killed:
                # Killed although it was to end by itself, it goes on from its last checkpoint all the same.
                statuses.append(128 + interruption.signum if killed else status)
            elif restarts is None:
                print(f"{killed}, out of memory perhaps", flush=True)
                statuses.append(Lost.status)
            elif restarts:
                restarts -= 1
                print(f"{killed}, out of memory perhaps: it goes on", flush=True)
                going.append((command, start(command)))
            else:
                print(f"error: {killed} again and again", file=sys.stderr, flush=True)
                statuses.append(1)
    going_on = [status for status in statuses if status in GOES_ON]
    return going_on[0] if going_on else max(statuses)


def node_environment(manifest: Manifest, number: int) -> dict[str, str]:
    """The environment of the processes that do a task's runs on this node; data are staged if they are to be.

    A node whose own folder cannot be used does its runs without it, and says so: it would otherwise end one task after
    the other.
    """
    cluster, environment = manifest.cluster, dict(os.environ)
    # Of this user alone: what others may write, nobody should execute.
    local = Path(cluster.local) / f"pjax-{os.getuid()}"
    try:
        if cluster.cache or cluster.stage:
            local.mkdir(mode=0o700, parents=True, exist_ok=True)
            if local.stat().st_uid != os.getuid():
                raise PermissionError(f"{local} is another user's")
        if cluster.cache:
            environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(local / "compiled"))
        if cluster.stage:
            configs = [run.config for run in manifest.planned(number)]
            for name, source in {(config.dataset.name, config.data_dir) for config in configs}:
                stage(source / name, local / "data" / name)
            environment["PJAX_STAGED_DATA"] = str(local / "data")
    except OSError as error:
        print(
            f"cluster.local={cluster.local} cannot be used on this node, so nothing is kept there: {error}", flush=True
        )
    return environment


def shares(jobs: int, environment: Mapping[str, str], gpus: int) -> list[dict[str, str]]:
    """What each of the processes of a task gets to itself: a GPU, or its part of the memory of one.

    Args:
        jobs: how many processes.
        environment: of the task; SLURM says there which GPUs are its.
        gpus: how many it was to get.
    """
    if jobs == 1 or not gpus:
        return [{}] * jobs
    # JAX would give three quarters of a GPU to the first process and nothing to the others.
    fraction = f"{GPU_SHARE / math.ceil(jobs / gpus):.3f}"
    devices = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    own = [{"CUDA_VISIBLE_DEVICES": devices[k % gpus]} if len(devices) == gpus > 1 else {} for k in range(jobs)]
    return [{"XLA_PYTHON_CLIENT_MEM_FRACTION": fraction, **environment, **mine} for mine in own]


def stage(source: Path, target: Path) -> None:
    """Copy a prepared data set to this node, unless it is there; tasks of the same node wait for the one that copies.

    Raises:
        OSError: it cannot be copied; nothing is left of it.
    """
    meta = source / "meta.json"
    if not meta.exists():
        # A data set without files, as the digits are, or one that is not prepared, which the run itself says.
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f".{target.name}.lock"):
        if _sizes(target) == _sizes(source) and (target / "meta.json").read_bytes() == meta.read_bytes():
            return
        scratch = target.with_name(f".{target.name}.new")
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            shutil.copytree(source, scratch)
        except OSError:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)


def _sizes(folder: Path) -> dict[str, int]:
    """The files of a folder; whoever tidies up a node does not take all of them at once."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


if __name__ == "__main__":
    sys.exit(main())
