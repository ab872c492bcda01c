"""Submit the runs of a sweep that are missing to SLURM, as one job array, and return with its number.

Behind `make reproduce LAUNCHER=slurm`. The runs are frozen (experiments/cluster/manifest.py); jobs download nothing, so
data have to be prepared. Runs that are finished, or in the queue already, are left out: the command can be repeated.
"""

from __future__ import annotations

import importlib
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from experiments.cells import Planned, read
from experiments.cluster import manifest
from experiments.cluster.manifest import Manifest
from experiments.cluster.queue import NoAnswer, QueueError, call, open_submissions, sbatch_options
from experiments.config import ROOT, RunConfig, UsageError
from experiments.environment import commit
from experiments.folder import earlier_failure
from experiments.planned import planned
from experiments.records import run_id
from experiments.reproduce import groups
from experiments.runner import Status, folder_of, status_of
from experiments.storage import StorageError, relative

SCRIPT = ROOT / "slurm" / "run.sbatch"


def main() -> int:
    """Command line; returns 0, 1 if a run that failed before is left out, or 2 for what cannot be done."""
    try:
        arguments = read("python -m experiments.cluster.submit", __doc__ or "")
        failed = submit(planned(arguments))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for message in failed:
        print(f"error: {message}", file=sys.stderr)
    return 1 if failed else 0


def submit(runs: Sequence[Planned]) -> list[str]:
    """Submit what is to do of these runs, and say so; returns what is left out because it failed before.

    Raises:
        UsageError: there is no SLURM here, it refuses, data are not prepared, or a run cannot be done as asked.
    """
    cluster = runs[0].config.cluster
    folder = ROOT / cluster.folder
    call(["sbatch", "--version"])
    queued = {name for each in open_submissions(folder) for name in each.names}
    statuses = {run_id(run.config): status_of(run.config) for run in runs}
    left = [run for run in runs if statuses[run_id(run.config)] is not Status.DONE]
    waiting = [run for run in left if (str(run.config.results_dir), run_id(run.config)) in queued]
    failed = [
        run
        for run in left
        if run not in waiting and statuses[run_id(run.config)] is Status.FAILED and not run.config.retry_failed
    ]
    todo = [run for run in left if run not in waiting and run not in failed]
    known = f"{len(runs) - len(left)} of {len(runs)} runs are finished"
    known += f", {len(waiting)} are in the queue" if waiting else ""
    if not todo:
        print(f"{known}: nothing to submit.")
    else:
        check(todo)
        tasks = arranged(todo, cluster.runs_per_task)
        job, written = _submitted(folder, tasks)
        print(
            f"{known}, {len(todo)} submitted as job {job} ({len(tasks)} tasks, at most {cluster.width} at once).\n"
            f"Follow it with make status; its logs are {relative(written)}/*.log; to end it: scancel {job}"
        )
    return [earlier_failure(folder_of(run.config)) for run in failed]


def check(runs: Sequence[Planned]) -> None:
    """Refuse now what jobs would refuse one after the other. What needs the data themselves, they will say.

    Raises:
        UsageError: names the first run that cannot be done.
    """
    from experiments.training import check_cell

    if runs[0].config.cluster.processes > 1 and any(run.together for run in runs):
        raise UsageError("together=yes and cluster.processes: seeds share a program or a run is split, not both")
    seen: set[str] = set()
    for run in runs:
        config = run.config
        cell = str([config.dataset, config.model, config.method, config.engine, config.paths.data])
        if cell not in seen:
            seen.add(cell)
            check_cell(config)
            check_prepared(config)


def check_prepared(config: RunConfig) -> None:
    """Refuse a run whose data are not there, by a look at their files.

    Raises:
        UsageError: with the command that prepares them.
    """
    from experiments.data import load

    module = importlib.import_module(f"experiments.data.{config.dataset.name}")
    folder = config.data_dir / config.dataset.name
    if not hasattr(module, "prepare"):
        return
    try:
        meta = json.loads((folder / "meta.json").read_text())
        shapes = {name: list(np.load(folder / f"{name}.npy", mmap_mode="r").shape) for name in meta["shapes"]}
        sound = shapes == meta["shapes"] and meta.get("altered", False) == config.dataset.altered
    except (OSError, EOFError, ValueError, KeyError):
        sound = False
    if not sound:
        # Something is wrong, and this says what.
        load(config.dataset, config.data_dir)


def arranged(runs: Sequence[Planned], size: int) -> list[list[Planned]]:
    """The runs of each task, about so many; seeds that become one program stay in one."""
    tasks: list[list[Planned]] = []
    for group in groups(runs):
        if tasks and len(tasks[-1]) + len(group) <= size:
            tasks[-1] += group
        else:
            tasks.append([*group])
    return tasks


def setup_script(written: Manifest) -> str:
    """What slurm/run.sbatch reads before it starts anything."""
    cluster = written.cluster
    # srun does not take over what sbatch was told about processors.
    launch = f"srun --ntasks={cluster.processes} --cpus-per-task={cluster.cpus}" if cluster.processes > 1 else ""
    settings = {"PJAX_ATTEMPTS": cluster.attempts, "PJAX_LAUNCH": launch}
    lines = [f"{name}={shlex.quote(str(value))}" for name, value in settings.items()]
    # Not set -e, which ends without a word. run.sbatch takes the trap away.
    failing = "trap 'echo \"error: a set-up command of the profile failed (cluster.setup)\" >&2; exit 2' ERR"
    return "\n".join([*lines, failing, *cluster.setup, "true"]) + "\n"


def _submitted(folder: Path, tasks: list[list[Planned]]) -> tuple[int, Path]:
    """Freeze and submit; returns the job's number and the submission's folder, which is gone if SLURM refused."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        name = Path(tempfile.mkdtemp(prefix=f"{datetime.now():%Y%m%d-%H%M%S}-", dir=folder))
    except OSError as error:
        raise UsageError(f"cluster.folder={folder} cannot hold a submission: {error}") from error
    try:
        written = manifest.write(name, tasks, commit())
        (name / "setup.sh").write_text(setup_script(written))
        options = [*sbatch_options(written), f"--chdir={ROOT}"]
        answer = call(["sbatch", "--parsable", *options, str(SCRIPT), str(name)])
        # Of several clusters: "<number>;<cluster>".
        job = int(answer.strip().partition(";")[0])
    except (OSError, StorageError) as error:
        shutil.rmtree(name, ignore_errors=True)
        cause = error.__cause__ if isinstance(error, StorageError) and error.__cause__ else error
        raise UsageError(f"cluster.folder={folder} cannot hold a submission: {cause}") from error
    except NoAnswer as error:
        raise UsageError(f"{error}. It may have the submission all the same: `make status` says so then") from error
    except QueueError as error:
        shutil.rmtree(name)
        advice = "the profile is conf/cluster/ (cluster.partition, cluster.account, ...; docs/cluster.md)"
        if len(tasks) > 1000:
            advice += f"; an array of {len(tasks)} tasks may be too long: say cluster.runs_per_task"
        raise UsageError(f"{error}; {advice}") from error
    return job, name


if __name__ == "__main__":
    sys.exit(main())
