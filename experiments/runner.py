"""A run as a folder: who owns it, whether it is finished, what is left when it fails."""

from __future__ import annotations

import dataclasses
import functools
import json
import shlex
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from experiments.config import ROOT, RunConfig, UsageError
from experiments.records import (
    SCHEMA_VERSION,
    DataInfo,
    Event,
    Record,
    cell_of,
    run_id,
    scientific_config,
    write_json,
    write_record,
)


class Status(Enum):
    """What the folder of a run says."""

    DONE = "done"
    RUNNING = "running"
    FAILED = "failed"
    MISSING = "missing"


OWNER_SECONDS = 1.0
"""How long a run waits for its lock."""


class RunFailed(Exception):
    """A run ended by an error, which its `FAILED.json` describes."""


class RunBusy(Exception):
    """Another process works on the run."""


def folder_of(config: RunConfig) -> Path:
    """The run's folder, there or not."""
    return config.results_dir / run_id(config)


def status_of(config: RunConfig) -> Status:
    """Whether a run is finished, being worked on, failed, or yet to do (never started, or cut)."""
    folder = folder_of(config)
    if (folder / "record.json").exists():
        return Status.DONE
    if folder.exists() and _is_locked(folder):
        return Status.RUNNING
    return Status.FAILED if (folder / "FAILED.json").exists() else Status.MISSING


def relative(path: Path) -> str:
    """A path as people and files should see it: from the repository's root where it lies in there."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def refusals(configs: Sequence[RunConfig]) -> dict[str, UsageError]:
    """The runs that `execute` would refuse, by name, and why. Starts none of them, and reads each data set once."""
    from experiments.data import load

    by_data: dict[tuple[str, Path], list[RunConfig]] = {}
    for config in configs:
        by_data.setdefault((str(config.dataset), config.data_dir), []).append(config)
    refused: dict[str, UsageError] = {}
    for same in by_data.values():
        try:
            data = load(same[0].dataset, same[0].data_dir)
        except UsageError as error:
            refused |= dict.fromkeys(map(run_id, same), error)
            continue
        from experiments.training import check

        for config in same:
            try:
                check(config, data)
            except UsageError as error:
                refused[run_id(config)] = error
    return refused


def execute(config: RunConfig, overrides: Sequence[str], on_event: Callable[[Event], None]) -> Record | None:
    """Do one run, unless it is finished already.

    Args:
        config: the run.
        overrides: the command-line arguments it was composed from, for its `command.sh`.
        on_event: called after each evaluation.

    Returns:
        The record, or None if the run was finished before.

    Raises:
        UsageError: the configuration is impossible, the data are missing, there is no place for results, or the batch
            does not fit in memory; the run leaves no trace.
        RunFailed: the run failed now, or did before and `retry_failed` is not set.
        RunBusy: another process has the run.
    """
    (outcome,) = execute_together([(config, overrides)], lambda _, event: on_event(event))
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def execute_together(
    runs: Sequence[tuple[RunConfig, Sequence[str]]], on_event: Callable[[RunConfig, Event], None]
) -> list[Record | Exception | None]:
    """Do runs that differ by their seeds alone as one program; see `execute` for what becomes of each.

    One that `execute` would refuse, or that diverges, stops no other; what else goes wrong in training is all's.
    """
    outcomes: list[Record | Exception | None] = [None] * len(runs)
    with ExitStack() as stack:
        folders: dict[int, _Folder] = {}
        from experiments.data import load

        load_data = functools.cache(lambda: load(runs[0][0].dataset, runs[0][0].data_dir))
        for i, (config, overrides) in enumerate(runs):
            try:
                folder = _owned(config, overrides, load_data, stack)
            except (UsageError, RunFailed, RunBusy) as error:
                outcomes[i] = error
            else:
                if folder:
                    folders[i] = folder
        if not folders:
            return outcomes
        # JAX is imported late, so that skipping finished runs is quick.
        from experiments.training import Diverged, train_seeds

        by_name = {folder.path.name: folder for folder in folders.values()}

        def note(config: RunConfig, event: Event) -> None:
            by_name[run_id(config)].note(event)
            on_event(config, event)

        try:
            data = next(iter(folders.values())).data
            trained = train_seeds([folder.config for folder in folders.values()], data, note)
        except UsageError as error:
            for i, folder in folders.items():
                folder.withdraw()
                outcomes[i] = error
            return outcomes
        except Exception as error:
            return [folders[i].failed(error) if i in folders else outcome for i, outcome in enumerate(outcomes)]
        for (i, folder), outcome in zip(folders.items(), trained, strict=True):
            try:
                outcomes[i] = folder.failed(outcome) if isinstance(outcome, Diverged) else folder.finished(outcome)
            except Exception as error:
                outcomes[i] = folder.failed(error)
    return outcomes


def _owned(
    config: RunConfig, overrides: Sequence[str], load_data: Callable[[], Any], stack: ExitStack
) -> _Folder | None:
    """The run's folder, locked until the stack closes; None if the run is finished."""
    path = folder_of(config)
    if status_of(config) is Status.DONE:
        return None
    # What cannot be done as asked is found before anything compiles, and is no failure of the run. Imported late,
    # because the methods bring JAX.
    data = load_data()
    from experiments.training import check

    check(config, data)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"paths.results={config.paths.results} cannot hold a run: {error}") from error
    try:
        with ExitStack() as own:
            # A process that asks for the status holds the lock for a moment, and is no owner to give way to.
            own.enter_context(FileLock(path / "run.lock", timeout=OWNER_SECONDS))
            # Another process may have ended the run between the first look and the lock.
            status = _settled(path)
            if status is Status.DONE:
                return None
            if status is Status.FAILED and not config.retry_failed:
                raise RunFailed(_earlier_failure(path))
            folder = _Folder(path, config, data, overrides, own)
            stack.push(own.pop_all())
            return folder
    except Timeout as error:
        raise RunBusy(f"{path.name} is being worked on by another process") from error


def _settled(folder: Path) -> Status:
    if (folder / "record.json").exists():
        return Status.DONE
    return Status.FAILED if (folder / "FAILED.json").exists() else Status.MISSING


def _is_locked(folder: Path) -> bool:
    lock = folder / "run.lock"
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def _earlier_failure(folder: Path) -> str:
    failure = json.loads((folder / "FAILED.json").read_text())
    return (
        f"{folder.name} failed earlier at step {failure['step']} ({failure['type']}: {failure['message']}); "
        "to try it again add retry_failed=true"
    )


class _Folder:
    """The folder of a run that has begun. A cut run starts over: its events so far are dropped."""

    def __init__(self, path: Path, config: RunConfig, data: Any, overrides: Sequence[str], stack: ExitStack) -> None:
        from experiments.environment import describe

        self.path, self.config, self.data = path, config, data
        self._started, self._environment, self._step = _now(), describe(), 0
        failure = path / "FAILED.json"
        self._earlier = failure.read_text() if failure.exists() else None
        failure.unlink(missing_ok=True)
        (path / "config.yaml").write_text(yaml.safe_dump(scientific_config(config), sort_keys=False))
        write_json(path / "environment.json", self._environment)
        _write_command(path / "command.sh", overrides)
        self._events = stack.enter_context((path / "events.jsonl").open("w"))

    def note(self, event: Event) -> None:
        """Append an event."""
        self._step = event.step
        self._events.write(json.dumps(dataclasses.asdict(event), allow_nan=False) + "\n")
        self._events.flush()

    def withdraw(self) -> None:
        """Leave no trace, or an earlier failure: the run could not begin."""
        if self._earlier is not None:
            (self.path / "FAILED.json").write_text(self._earlier)
            return
        for name in ("config.yaml", "environment.json", "command.sh", "events.jsonl"):
            (self.path / name).unlink()

    def finished(self, outcome: Any) -> Record:
        """Write the record."""
        data = self.data
        record = Record(
            schema_version=SCHEMA_VERSION,
            run_id=self.path.name,
            cell=cell_of(self.config),
            seed=self.config.seed,
            preset=self.config.preset.name,
            config=scientific_config(self.config),
            metrics=outcome.metrics,
            clocks=outcome.clocks,
            parameters=outcome.parameters,
            data=DataInfo(
                data.name,
                outcome.n_train,
                outcome.n_validation,
                outcome.n_test,
                data.sha256,
                data.subset,
                data.altered,
            ),
            started=self._started,
            finished=_now(),
            environment=self._environment,
        )
        write_record(self.path, record)
        return record

    def failed(self, error: Exception) -> RunFailed:
        """Write what went wrong."""
        step = getattr(error, "step", self._step)
        write_json(self.path / "FAILED.json", _failure(error, step))
        found = f"{self.path.name} failed at step {step}: {type(error).__name__}: {error}"
        failure = RunFailed(f"{found} ({relative(self.path / 'FAILED.json')})")
        failure.__cause__ = error
        return failure


def _failure(error: Exception, step: int) -> dict[str, Any]:
    text = "".join(traceback.format_exception(error))
    return {
        "type": type(error).__name__,
        "message": str(error),
        "step": step,
        "time": _now(),
        "traceback": text.replace(f"{ROOT}/", ""),
    }


def _write_command(path: Path, overrides: Sequence[str]) -> None:
    """The command that does this run, without the folders of the machine it ran on."""
    kept = [
        override
        for override in overrides
        if not override.startswith(("paths.", "retry_failed", "memory_gb", "hydra.", "+sweep"))
    ]
    command = shlex.join(["python", "-m", "experiments.run", *kept])
    path.write_text(f"#!/bin/sh\n# From the repository's root, in the environment of `make setup`.\n{command}\n")
    path.chmod(0o755)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
