"""A submission: runs as they were asked for, resolved and frozen, so that no later edit changes what jobs do.

`manifest.json` holds every run's configuration with all its values, the runs of each task, the profile, and the
checksum of every file of code. A job reads nothing of `conf/`. Code is not copied: a job whose code has changed refuses
to start.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from experiments import config as schemas
from experiments.cells import Planned
from experiments.cluster.profile import ClusterConfig
from experiments.config import ROOT, RunConfig, UsageError, to_run_config
from experiments.records import run_id, write_json
from experiments.storage import relative

FORMAT = 1
CODE = ("pjax/**/*.py", "pjax_core/**/*.py", "baselines/**/*.py", "experiments/**/*.py", "requirements.lock.txt")
"""What determines the numbers of a run beside its configuration."""
REFINED = ("method", "tracker")
"""Groups whose schema depends on the choice."""
NAMED = 3
"""How many of the files that changed are named."""


@dataclass(frozen=True)
class Manifest:
    """What was submitted.

    Attributes:
        folder: of the submission.
        created: ISO 8601, UTC.
        commit: that was checked out, for people.
        cluster: the profile.
        jobs: how many runs a task does at once, if it has so many.
        tasks: for each task of the array the numbers of its runs.
        runs: see `_run_entry`.
        code: SHA-256 of every file of code, by its name.
    """

    folder: Path
    created: str
    commit: str | None
    cluster: ClusterConfig
    jobs: int
    tasks: list[list[int]]
    runs: list[dict[str, Any]]
    code: dict[str, str]

    def planned(self, task: int) -> list[Planned]:
        """The runs of a task, as they were when they were submitted.

        Raises:
            UsageError: there is no such task, or a run cannot be read by this code.
        """
        if not 0 <= task < len(self.tasks):
            raise UsageError(f"{relative(self.folder)} has no task {task}: they go from 0 to {len(self.tasks) - 1}")
        return [_thawed(self.runs[number], self.folder) for number in self.tasks[task]]

    def jobs_of(self, task: int) -> int:
        """How many runs a task does at once."""
        return min(self.jobs, len(self.tasks[task]))

    def changed(self) -> list[str]:
        """The files of code that are not what they were."""
        now = fingerprint()
        return sorted(name for name in now.keys() | self.code.keys() if now.get(name) != self.code.get(name))

    def check_code(self) -> None:
        """Refuse to do some runs of a sweep with other code than the others.

        Raises:
            UsageError: names the files.
        """
        if not (changed := self.changed()):
            return
        more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        commit = f" (commit {self.commit[:12]})" if self.commit else ""
        raise UsageError(
            f"the code has changed since {relative(self.folder)} was submitted{commit}: {', '.join(changed[:NAMED])}"
            f"{more}. Bring it back, or submit what is left with the new code: repeat the command that submitted it"
        )


def fingerprint() -> dict[str, str]:
    """SHA-256 of every file of code, by its name in the repository."""
    files = [path for pattern in CODE for path in ROOT.glob(pattern) if "__pycache__" not in path.parts]
    return {path.relative_to(ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def write(folder: Path, tasks: Sequence[Sequence[Planned]], commit: str | None) -> Manifest:
    """Freeze runs into `folder`, which exists."""
    runs = [run for task in tasks for run in task]
    numbers = iter(range(len(runs)))
    first = runs[0].config
    manifest = Manifest(
        folder=folder,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit,
        cluster=first.cluster,
        jobs=first.jobs,
        tasks=[[next(numbers) for _ in task] for task in tasks],
        runs=[_run_entry(run) for run in runs],
        code=fingerprint(),
    )
    content = {key: value for key, value in dataclasses.asdict(manifest).items() if key != "folder"}
    write_json(folder / "manifest.json", {"format": FORMAT, **content})
    return manifest


def read(folder: Path) -> Manifest:
    """Read a submission.

    Raises:
        UsageError: there is none, or it is damaged or of another version.
    """
    path = folder / "manifest.json"
    try:
        content = json.loads(path.read_text())
        if content.pop("format") != FORMAT:
            raise UsageError(f"{relative(path)} was written by another version of this code; submit its runs anew")
        cluster = ClusterConfig(**content.pop("cluster"))
        return Manifest(folder=folder, cluster=cluster, **content)
    except FileNotFoundError as error:
        raise UsageError(f"{relative(folder)} is no submission: it has no manifest.json") from error
    except OSError as error:
        raise UsageError(f"{relative(path)} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{relative(path)} is damaged ({error}); submit its runs anew") from error


def _run_entry(run: Planned) -> dict[str, Any]:
    """A run as JSON: its name, its folder, the sweep and arguments it came from, its configuration and its schemas."""
    # Absolute, so that a job finds them wherever its own copy of the code might lie.
    paths = dataclasses.replace(run.config.paths, results=str(run.config.results_dir), data=str(run.config.data_dir))
    config = dataclasses.replace(run.config, paths=paths)
    return {
        "name": run_id(config),
        "results": paths.results,
        "sweep": run.sweep,
        "together": run.together,
        "overrides": list(run.overrides),
        "schemas": {group: type(getattr(config, group)).__name__ for group in REFINED},
        "config": dataclasses.asdict(config),
    }


def _thawed(entry: dict[str, Any], folder: Path) -> Planned:
    schema = OmegaConf.structured(RunConfig)
    for group, name in entry["schemas"].items():
        setattr(schema, group, OmegaConf.structured(getattr(schemas, name)))
    config = to_run_config(OmegaConf.merge(schema, _literal(entry["config"])))  # type: ignore[arg-type]
    if run_id(config) != entry["name"]:
        raise UsageError(f"{relative(folder)}: {entry['name']} is {run_id(config)} to this code; submit it anew")
    return Planned(entry["sweep"], config, tuple(entry["overrides"]), entry["together"])


def _literal(content: Any) -> Any:
    """Values as OmegaConf is told that nothing in them is to be looked up."""
    if isinstance(content, dict):
        return {key: _literal(value) for key, value in content.items()}
    if isinstance(content, list):
        return list(map(_literal, content))
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", content) if isinstance(content, str) else content
