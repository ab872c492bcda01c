"""A process that does the runs of a task: `python -m experiments.cluster.work <submission> <task> <number>`.

Several of a task each begin elsewhere in its list and take what is free; the locks of run folders see to it that no run
is done twice.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import sys
from pathlib import Path

from experiments.cells import Planned
from experiments.cluster.manifest import Manifest, read
from experiments.config import RunConfig, TrackerConfig, UsageError, WandbConfig
from experiments.folder import STARTS
from experiments.interruption import Lost
from experiments.records import run_id
from experiments.reproduce import groups, print_errors, run_missing
from experiments.runner import folder_of
from experiments.storage import StorageError


def main() -> int:
    """Command line; returns 0 if every run is finished, 1 if one failed, 2 for what cannot be done, 128 + signal.

    Where other processes of the run have ended, or a disk is full, and all have to start again, it is that of `Lost`.
    """
    folder, task, number = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    # Imported late, as it brings JAX, whose environment the task has set.
    from experiments.cluster.distributed import follow, is_follower, join, led

    try:
        manifest = read(folder)
        # Again, as a process that was killed starts again hours later.
        manifest.check_code()
        join(manifest.cluster.processes)
        at_turn = functools.partial(on_node, manifest=manifest, task=task, number=number)
        runs = [at_turn(run) for run in manifest.planned(task)]
        if is_follower():
            follow({run_id(run.config): run.config for run in runs})
            return 0
        with led():
            errors = run_missing(ordered(runs, number), at_turn)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Lost as error:
        print(f"error: {error}; all of them have to start again", file=sys.stderr, flush=True)
        # JAX would wait for the one that has ended.
        os._exit(error.status)
    except KeyboardInterrupt as error:
        return getattr(error, "status", 130)
    print_errors(errors, len(runs))
    if any(isinstance(error, StorageError) for error in errors.values()):
        # There may be room another time, and the runs go on.
        return Lost.status
    if any(isinstance(error, UsageError) for error in errors.values()):
        return 2
    return 1 if errors else 0


def ordered(runs: list[Planned], number: int) -> list[Planned]:
    """Runs that were begun least often first, so that one that kills its process keeps no other from its turn."""
    # Each process begins at another one. Seeds that become one program stay beside each other.
    programs = groups(runs)
    turned = programs[number % len(programs) :] + programs[: number % len(programs)]
    return [run for program in sorted(turned, key=lambda each: _begun(each[0].config)) for run in program]


def _begun(config: RunConfig) -> int:
    path = folder_of(config) / "attempts.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(any(f'"what": "{start}"' in line for start in STARTS) for line in lines)


def on_node(run: Planned, manifest: Manifest, task: int, number: int) -> Planned:
    """A run as it is done here and now: data, memory, tracker; and no failure of this submission is tried again."""
    config, cluster = run.config, manifest.cluster
    if staged := os.environ.get("PJAX_STAGED_DATA"):
        config = dataclasses.replace(config, paths=dataclasses.replace(config.paths, data=staged))
    jobs = manifest.jobs_of(task)
    if config.memory_gb is None and not cluster.gpus:
        beside = jobs * cluster.processes // cluster.nodes
        config = dataclasses.replace(config, memory_gb=cluster.memory_gb / beside)
    # Those that share its device.
    config = dataclasses.replace(config, jobs=math.ceil(jobs / max(1, cluster.gpus)))
    if number:
        # One process follows the runs of all.
        config = dataclasses.replace(config, tracker=TrackerConfig("none"))
    elif isinstance(config.tracker, WandbConfig):
        # Nothing outlives a job.
        wait_s = max(config.tracker.wait_s, config.tracker.finish_timeout_s)
        config = dataclasses.replace(config, tracker=dataclasses.replace(config.tracker, wait_s=wait_s))
    if config.retry_failed and _failed_since(config, manifest.created):
        config = dataclasses.replace(config, retry_failed=False)
    return dataclasses.replace(run, config=config)


def _failed_since(config: RunConfig, created: str) -> bool:
    path = folder_of(config) / "FAILED.json"
    try:
        # Both are ISO 8601 in UTC.
        return json.loads(path.read_text())["time"] >= created
    except (OSError, ValueError, KeyError, TypeError):
        return False


if __name__ == "__main__":
    sys.exit(main())
