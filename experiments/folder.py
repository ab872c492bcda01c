"""The folder of a run that this process owns: what is written into it, from the start to the record or the failure."""

from __future__ import annotations

import dataclasses
import json
import shlex
import traceback
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from experiments.config import ROOT, RunConfig
from experiments.ownership import Owner, RunBusy
from experiments.records import (
    SCHEMA_VERSION,
    DataInfo,
    Event,
    Record,
    cell_of,
    saved_steps,
    scientific_config,
    write_json,
    write_record,
)
from experiments.storage import StorageError, append, discard, relative, storage_error, sync, write_whole, writing

if TYPE_CHECKING:
    from experiments.checkpoint import Snapshot

UNSAID = ("paths.", "retry_failed", "memory_gb", "checkpoint_every_s", "jobs", "tracker", "cluster", "hydra", "+sweep")
"""Arguments that `command.sh` leaves to the machine that repeats the run."""
WRITTEN = ("FAILED.json", "config.yaml", "environment.json", "command.sh", "events.jsonl", "attempts.jsonl")
"""What an attempt changes in the folder, checkpoints aside; what matters most first."""
STARTS, ENDS = {"started", "resumed"}, {"finished", "failed", "interrupted", "not written"}
"""What `attempts.jsonl` says of an attempt."""


class RunFailed(Exception):
    """A run ended by an error, which its `FAILED.json` describes."""


class RunFolder:
    """Writes the files of a run. One that cannot be written raises `StorageError` and is as it was before.

    `attempts.jsonl` has a line for each start, each checkpoint that was of no use, and each end. A start without an end
    was killed.
    """

    def __init__(self, path: Path, config: RunConfig, data: Any, overrides: Sequence[str], owner: Owner) -> None:
        from experiments.environment import describe

        self.path, self.config, self.data = path, config, data
        self._overrides, self._owner = overrides, owner
        self._started, self._environment, self._step = _now(), describe(config.jobs), 0
        # What is left of earlier attempts if this one is refused.
        self._earlier = {name: _earlier(path / name) for name in WRITTEN if (path / name).exists()}
        # A process that was killed while it wrote leaves half a line.
        self._log = [line for text in self._earlier.get("attempts.jsonl", "").splitlines() if (line := _parsed(text))]
        self._attempt = 1 + max((line["attempt"] for line in self._log), default=0)

    def checkpoints(self) -> dict[int, Snapshot]:
        """The run at the evaluations from which it can go on, by step. What is of no use is told, noted and removed.

        Raises:
            StorageError: the disk cannot be read.
        """
        found: dict[int, Snapshot] = {}
        for step in saved_steps(self.path):
            from experiments.checkpoint import Damaged, load

            try:
                found[step] = load(self.path, step)
            except Damaged as error:
                self.distrust(step, error)
        return found

    def distrust(self, step: int, reason: Exception) -> None:
        """Do without a checkpoint."""
        left = [other for other in saved_steps(self.path) if other < step]
        instead = f"the one of step {left[0]:,} is tried" if left else "there is no other, so the run starts over"
        print(f"{self.path.name}: the checkpoint of step {step:,} is of no use: {reason}; {instead}", flush=True)
        with suppress(StorageError):
            self._note_attempt("checkpoint of no use", step, reason=str(reason))
        discard(self.path / "checkpoint" / str(step))

    def begin(self, snapshot: Snapshot | None) -> None:
        """Start, or go on from a snapshot: events after it are dropped, and come again."""
        self._owner.check()
        self._step = snapshot.step if snapshot else 0
        write_whole(self.path / "config.yaml", yaml.safe_dump(scientific_config(self.config), sort_keys=False))
        write_json(self.path / "environment.json", self._environment)
        _write_command(self.path / "command.sh", [each for each in self._overrides if not each.startswith(UNSAID)])
        lines = [f"{_line(dataclasses.asdict(event))}\n" for event in (snapshot.events if snapshot else ())]
        write_whole(self.path / "events.jsonl", "".join(lines))
        code = {name: self._environment[name] for name in ("commit", "dirty", "device")}
        jax_version = self._environment["versions"]["jax"]
        self._note_attempt("resumed" if snapshot else "started", self._step, self._started, **code, jax=jax_version)
        # Last, so that a disk that is full leaves the failure as it was.
        with writing(self.path / "FAILED.json"):
            (self.path / "FAILED.json").unlink(missing_ok=True)
        kept = {str(step) for step in saved_steps(self.path) if snapshot and step <= self._step}
        for path in self.path.glob("checkpoint/*"):
            # Later ones come again; others are what a process left that was killed while it wrote.
            if path.name not in kept:
                discard(path)
        if snapshot:
            print(f"{self.path.name}: goes on from step {self._step:,} (attempt {self._attempt})", flush=True)

    def note(self, event: Event) -> None:
        """Append an event."""
        self._owner.check()
        append(self.path / "events.jsonl", _line(dataclasses.asdict(event)))
        self._step = event.step

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint."""
        from experiments.checkpoint import save

        self._owner.check()
        save(self.path, snapshot)

    def withdraw(self) -> None:
        """Leave no trace, or what earlier attempts left: the run could not begin."""
        self._log = [line for line in self._log if line["attempt"] < self._attempt]
        for name in WRITTEN:
            if name in self._earlier:
                write_whole(self.path / name, self._earlier[name])
                continue
            with writing(self.path / name):
                (self.path / name).unlink(missing_ok=True)
        with writing(self.path / "command.sh"), suppress(FileNotFoundError):
            (self.path / "command.sh").chmod(0o755)

    def finished(self, outcome: Any) -> Record:
        """Write the record, after which the checkpoints are of no use."""
        self._owner.check()
        data = self.data
        # Where the log of earlier attempts is lost, its first line is this attempt's.
        begun = next((line for line in reversed(self._log) if line["what"] == "started"), self._log[0])
        clocks = outcome.clocks and dataclasses.replace(outcome.clocks, attempts=self._attempt - begun["attempt"] + 1)
        record = Record(
            schema_version=SCHEMA_VERSION,
            run_id=self.path.name,
            cell=cell_of(self.config),
            seed=self.config.seed,
            preset=self.config.preset.name,
            config=scientific_config(self.config),
            metrics=outcome.metrics,
            clocks=clocks,
            parameters=outcome.parameters,
            data=DataInfo(
                data.name, outcome.n_train, outcome.n_validation, outcome.n_test, data.sha256, data.subset, data.altered
            ),
            started=begun["time"],
            finished=_now(),
            environment=self._environment,
        )
        # The record is the sign that all is there.
        with writing(self.path / "events.jsonl"):
            sync(self.path / "events.jsonl")
        write_record(self.path, record)
        self.ended("finished")
        discard(self.path / "checkpoint")
        return record

    def ended(self, how: str) -> None:
        """Note once how the attempt ended, if it began and can be written. A lost run's folder is another process's."""
        noted = {line["what"] for line in self._log if line["attempt"] == self._attempt}
        if not noted & STARTS or noted & ENDS:
            return
        with suppress(StorageError, RunBusy):
            self._owner.check()
            self._note_attempt(how, self._step)

    def failed(self, error: Exception) -> RunFailed | StorageError | RunBusy:
        """Write what went wrong."""
        from experiments.loop import Diverged

        self._step = getattr(error, "step", self._step)
        try:
            self._owner.check()
            write_json(self.path / "FAILED.json", _failure(error, self._step))
        except (StorageError, RunBusy) as unwritten:
            return unwritten
        self.ended("failed")
        if isinstance(error, Diverged):
            # From its checkpoints it would diverge again.
            discard(self.path / "checkpoint")
        found = f"{self.path.name} failed at step {self._step}: {type(error).__name__}: {error}"
        failure = RunFailed(f"{found} ({relative(self.path / 'FAILED.json')})")
        failure.__cause__ = error
        return failure

    def _note_attempt(self, what: str, step: int, time: str | None = None, **more: Any) -> None:
        line = {"attempt": self._attempt, "what": what, "step": step, "time": time or _now(), **more}
        self._log.append(line)
        # Whole, and not appended: a line that was cut earlier must not spoil this one.
        write_whole(self.path / "attempts.jsonl", "".join(f"{_line(each)}\n" for each in self._log))


def _earlier(path: Path) -> str:
    """A file of an earlier attempt, as far as it is text.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise storage_error(path, error, "read") from error


def earlier_failure(folder: Path) -> str:
    """What to say of a run that failed in an earlier attempt."""
    try:
        failure = json.loads((folder / "FAILED.json").read_text())
        how = f"at step {failure['step']} ({failure['type']}: {failure['message']})"
    except (ValueError, KeyError, TypeError):
        how = f"({relative(folder / 'FAILED.json')} is damaged and does not say how)"
    return f"{folder.name} failed earlier {how}; to try it again add retry_failed=true"


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
    command = shlex.join(["python", "-m", "experiments.run", *overrides])
    write_whole(path, f"#!/bin/sh\n# From the repository's root, in the environment of `make setup`.\n{command}\n")
    with writing(path):
        path.chmod(0o755)


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, allow_nan=False)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
