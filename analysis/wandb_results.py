"""The tables and figures of a folder of runs as artifacts of a W&B run of their own, behind `make wandb-sync`.

The run's name has a digest of all files, so that other results are another run, and the same ones are sent once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import filelock

from analysis.wandb_client import Client, NotSent

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


def send_results(client: Client, runs: Path) -> str | None:
    """Send what was made of a folder of runs; returns the W&B run's name, or None where there is nothing new.

    Raises:
        NotSent: W&B does not answer or refuses.
    """
    results = results_of(runs)
    name = name_of(results)
    note = client.notes / f"{name}.json"
    if not results or note.exists():
        return None
    # Those of other folders of runs are no newer version of the paper's.
    prefix = "" if runs.name == "runs" else f"{runs.name}-"
    try:
        with filelock.FileLock(client.folder / f"{name}.lock", timeout=0):
            _send(client, name, {f"{prefix}{kind}": (kind, files) for kind, files in results.items()})
    except filelock.Timeout:
        return None  # another process sends it
    client.notes.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps({"files": sum(map(len, results.values()))}) + "\n", encoding="utf-8")
    return name


def _send(client: Client, name: str, artifacts: Mapping[str, tuple[str, list[Path]]]) -> None:
    """Artifacts by name, each of a type and with files."""
    import wandb

    run = client.begin(name, group="results", job_type="aggregate")
    try:
        for title, (kind, files) in artifacts.items():
            artifact = wandb.Artifact(title, type=kind)
            for path in files:
                artifact.add_file(str(path))
            run.log_artifact(artifact)
    except (wandb.Error, OSError, ValueError) as error:
        client.finish(run, name, exit_code=1)
        raise NotSent(f"{name}: {error}") from error
    client.finish(run, name)
