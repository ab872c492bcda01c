"""Where a run ran: versions, hardware and SLURM's ids, without names of machines or their folders."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from experiments.config import ROOT

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "hydra-core", "scikit-learn")

SLURM_IDS = {
    "job": "SLURM_JOB_ID",
    "array_job": "SLURM_ARRAY_JOB_ID",
    "array_task": "SLURM_ARRAY_TASK_ID",
    "restarts": "SLURM_RESTART_COUNT",
}
"""Where a job's ids are; the names of its nodes are nobody's business."""


def describe(jobs: int = 1) -> dict[str, Any]:
    """Commit, versions and devices; a device that so many runs share is another one, as times go."""
    import jax

    # Results are written into the repository, so they must not make it dirty.
    changes = _git("status", "--porcelain", "--", ".", ":!results")
    return {
        "commit": commit(),
        "dirty": None if changes is None else bool(changes),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "system": platform.system(),
        "cpu": _cpu(),
        "backend": jax.default_backend(),
        "device": device(jobs),
        **({"slurm": slurm} if (slurm := slurm_ids()) else {}),
    }


def device(jobs: int = 1) -> str:
    """What clocks are of, in words, as the tables print it; JAX itself only says "cpu" of a processor."""
    import jax

    devices, processes = jax.devices(), jax.process_count()
    found = _cpu() if devices[0].platform == "cpu" else f"{len(devices)} x {devices[0].device_kind}"
    found += f", {jobs} runs at once" if jobs > 1 else ""
    return f"{found}, {processes} processes" if processes > 1 else found


def commit() -> str | None:
    """The commit that is checked out."""
    return _git("rev-parse", "HEAD")


def slurm_ids() -> dict[str, int]:
    """The ids of the SLURM job that this process is part of; empty outside of one."""
    found = {name: os.environ.get(variable, "") for name, variable in SLURM_IDS.items()}
    return {name: int(value) for name, value in found.items() if value.isdecimal()}


def _git(*arguments: str) -> str | None:
    """Output of a git command, None outside a repository, before its first commit, or without git."""
    try:
        result = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def _cpu() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_cpu_model() or platform.machine()}, {cores} cores"


def _cpu_model() -> str | None:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
