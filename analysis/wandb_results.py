"""The tables and figures of a folder of runs as artifacts of a W&B run of their own, behind `make wandb-sync`.

The run's name has a digest of all files, so that other results are another run, and the same ones are sent once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import filelock

from analysis.wandb_client import NotSent, begin, finish

KINDS = {"tables": (".md", ".csv", ".tex"), "figures": (".png", ".svg", ".pdf", ".md")}
"""Folders of results, each an artifact of this name and type, and the endings of their files."""


def results_of(runs: Path) -> dict[str, list[Path]]:
    """The files of tables and figures that were made of a folder of runs, by kind; beside `runs`, inside others."""
    place = runs.parent if runs.name == "runs" else runs
    found = {
        kind: sorted(path for path in (place / kind).glob("*") if path.suffix in endings)
        for kind, endings in KINDS.items()
    }
    return {kind: files for kind, files in found.items() if files}


def name_of(results: Mapping[str, list[Path]]) -> str:
    """The run's name, by the content of its files."""
    digest = hashlib.sha256()
    for files in results.values():
        for path in files:
            digest.update(f"{path.parent.name}/{path.name}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return f"results-{digest.hexdigest()[:8]}"


def send_results(
    runs: Path,
    notes: Path,
    *,
    project: str,
    entity: str | None,
    offline: bool,
    start_timeout: float,
    finish_timeout: float,
) -> str | None:
    """Send what was made of a folder of runs; returns the run's name, or None where there is nothing new.

    Raises:
        NotSent: W&B does not answer or refuses.
    """
    results = results_of(runs)
    name = name_of(results)
    note, lock = notes / f"{name}.json", filelock.FileLock(notes.parent / f"{name}.lock", timeout=0)
    if not results or note.exists():
        return None
    with ExitStack() as stack:
        try:
            stack.enter_context(lock)
        except filelock.Timeout:
            return None  # another process sends it
        _send(results, name, runs, notes.parent, project, entity, offline, start_timeout, finish_timeout)
    notes.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps({"files": sum(map(len, results.values()))}) + "\n", encoding="utf-8")
    return name


def _send(
    results: Mapping[str, list[Path]],
    name: str,
    runs: Path,
    folder: Path,
    project: str,
    entity: str | None,
    offline: bool,
    start_timeout: float,
    finish_timeout: float,
) -> None:
    import wandb

    run = begin(
        name,
        folder,
        start_timeout,
        offline=offline,
        project=project,
        entity=entity,
        group="results",
        job_type="aggregate",
    )
    try:
        for kind, files in results.items():
            # Those of other folders of runs are no newer version of the paper's.
            artifact = wandb.Artifact(kind if runs.name == "runs" else f"{runs.name}-{kind}", type=kind)
            for path in files:
                artifact.add_file(str(path))
            run.log_artifact(artifact)
    except (wandb.Error, OSError, ValueError) as error:
        finish(run, name, finish_timeout, exit_code=1)
        raise NotSent(f"{name}: {error}") from error
    finish(run, name, finish_timeout)
