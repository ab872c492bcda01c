"""Runs as folders: what the folder of a run says, and doing runs: begun, gone on with, finished, failed, refused."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config import RunConfig, UsageError
from experiments.folder import RunFailed, RunFolder, earlier_failure
from experiments.interruption import Interruption, interruptible
from experiments.ownership import RunBusy, is_owned, owned
from experiments.records import Event, Record, run_id, saved_steps
from experiments.storage import StorageError, storage_error, writing

if TYPE_CHECKING:
    from experiments.checkpoint import Snapshot


class Status(Enum):
    """What the folder of a run says; and, where SLURM has it in its queue and nobody works on it yet, that it does."""

    DONE = "done"
    RUNNING = "running"
    QUEUED = "queued"
    CUT = "cut"
    FAILED = "failed"
    MISSING = "missing"


def folder_of(config: RunConfig) -> Path:
    """The run's folder, there or not."""
    return config.results_dir / run_id(config)


def status_of(config: RunConfig) -> Status:
    """Whether a run is finished, being worked on, failed, cut, or missing: not started, or cut before it was saved."""
    folder = folder_of(config)
    settled = _settled(folder)
    return Status.RUNNING if settled is not Status.DONE and folder.exists() and is_owned(folder) else settled


def resumable_step(config: RunConfig) -> int | None:
    """The step from which a cut run would go on; None if it would start from the beginning."""
    return next(iter(saved_steps(folder_of(config))), None)


def refusals(configs: Sequence[RunConfig]) -> dict[str, UsageError]:
    """The runs that `execute` would refuse, by name, and why. Starts none of them, and reads each data set once."""
    from experiments.data import load
    from experiments.training import check, check_cell

    by_data: dict[tuple[str, Path], list[RunConfig]] = {}
    refused: dict[str, UsageError] = {}
    for config in configs:
        try:
            check_cell(config)
        except UsageError as error:
            refused[run_id(config)] = error
        else:
            by_data.setdefault((str(config.dataset), config.data_dir), []).append(config)
    for same in by_data.values():
        try:
            data = load(same[0].dataset, same[0].data_dir)
        except UsageError as error:
            refused |= dict.fromkeys(map(run_id, same), error)
            continue
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
        StorageError: its files could not be written; it goes on from its last checkpoint another time.
        Interrupted: a signal asked to end, and the run is saved.
    """
    (outcome,) = execute_together([(config, overrides)], lambda _, event: on_event(event))
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def execute_together(
    runs: Sequence[tuple[RunConfig, Sequence[str]]], on_event: Callable[[RunConfig, Event], None]
) -> list[Record | Exception | None]:
    """Do runs that differ by their seeds alone as one program; see `execute` for what becomes of each.

    One that `execute` would refuse, or that diverges, stops no other; what else goes wrong in training is all's. Runs
    that were cut go on together from the last evaluation at which all of them were saved. If there is none, because
    some are new for example, those that were saved at the same step go on as a program of their own.
    """
    outcomes: dict[int, Record | Exception] = {}
    # A second signal would end the process before its locks are free, if it were heard no longer.
    with interruptible() as interruption, ExitStack() as stack:
        folders: dict[int, RunFolder] = {}
        from experiments.data import load

        load_data = functools.cache(lambda: load(runs[0][0].dataset, runs[0][0].data_dir))
        for i, (config, overrides) in enumerate(runs):
            try:
                folder = _owned(config, overrides, load_data, stack)
            except (UsageError, RunFailed, RunBusy, StorageError) as error:
                outcomes[i] = error
            else:
                if folder:
                    folders[i] = folder
        try:
            for program in _programs(folders, outcomes):
                outcomes |= _train({i: folders[i] for i in program}, program, on_event, interruption)
                # A signal that came too late for the loop to see.
                interruption.deferred = False
                interruption.check()
        except KeyboardInterrupt:
            for folder in folders.values():
                folder.ended("interrupted")
            raise
    return [outcomes.get(i) for i in range(len(runs))]


def _programs(
    folders: Mapping[int, RunFolder], outcomes: dict[int, Record | Exception]
) -> list[dict[int, Snapshot | None]]:
    """Which runs become one program, and where each begins. One that cannot be read has its outcome already."""
    saved: dict[int, dict[int, Snapshot]] = {}
    for i, folder in folders.items():
        try:
            saved[i] = folder.checkpoints()
        except StorageError as error:
            outcomes[i] = error
    common = set.intersection(*(set(each) for each in saved.values())) if saved else set()
    if common:
        step = max(common)
        return [{i: each[step] for i, each in saved.items()}]
    by_step: dict[int | None, dict[int, Snapshot | None]] = {}
    for i, each in saved.items():
        step = max(each, default=None)
        by_step.setdefault(step, {})[i] = None if step is None else each[step]
    if len(by_step) > 1:
        parts = ", ".join(f"{len(part)} from step {step or 0}" for step, part in by_step.items())
        print(f"these seeds were not cut together and become {len(by_step)} programs: {parts}", flush=True)
    return list(by_step.values())


def _train(
    folders: Mapping[int, RunFolder],
    snapshots: Mapping[int, Snapshot | None],
    on_event: Callable[[RunConfig, Event], None],
    interruption: Interruption,
) -> dict[int, Record | Exception]:
    """Do runs as one program."""
    # JAX is imported late, so that skipping finished runs is quick.
    from experiments.checkpoint import Damaged, Saver
    from experiments.cluster.distributed import leading
    from experiments.training import Diverged, train_seeds

    outcomes: dict[int, Record | Exception] = {}
    begun: dict[int, RunFolder] = {}
    for i, folder in folders.items():
        try:
            folder.begin(snapshots[i])
        except (StorageError, RunBusy) as error:
            folder.ended("not written")
            outcomes[i] = error
        else:
            begun[i] = folder
    if not begun:
        return outcomes
    by_name = {folder.path.name: folder for folder in begun.values()}

    def note(config: RunConfig, event: Event) -> None:
        by_name[run_id(config)].note(event)
        # Who watches may be gone, or writes to a full disk, which is no failure of the run.
        with suppress(OSError, EOFError):
            on_event(config, event)

    first = next(iter(begun.values()))
    saver = Saver([folder.save for folder in begun.values()], first.config.checkpoint_every_s, interruption)
    resumed = [snapshot for i in begun if (snapshot := snapshots[i])]
    try:
        configs, paths = zip(*((folder.config, folder.path) for folder in begun.values()), strict=True)
        with leading(configs, paths, resumed, saver) as keeper:
            trained = train_seeds(configs, first.data, note, resumed, keeper)
    except Damaged as error:
        for snapshot, folder in zip(resumed, begun.values(), strict=True):
            folder.distrust(snapshot.step, error)
        for program in _programs(begun, outcomes):
            outcomes |= _train({i: begun[i] for i in program}, program, on_event, interruption)
        return outcomes
    except UsageError as error:
        outcomes |= dict.fromkeys(begun, error)
        for i, folder in begun.items():
            try:
                folder.withdraw()
            except StorageError as full:
                outcomes[i] = full
        return outcomes
    except (StorageError, RunBusy) as error:
        # Of seeds in one program, those beside a lost one.
        for folder in begun.values():
            folder.ended("not written" if isinstance(error, StorageError) else "interrupted")
        return outcomes | dict.fromkeys(begun, error)
    except Exception as error:
        return outcomes | {i: folder.failed(error) for i, folder in begun.items()}
    for (i, folder), outcome in zip(begun.items(), trained, strict=True):
        try:
            outcomes[i] = folder.failed(outcome) if isinstance(outcome, Diverged) else folder.finished(outcome)
        except (StorageError, RunBusy) as error:
            folder.ended("not written")
            outcomes[i] = error
        except Exception as error:
            outcomes[i] = folder.failed(error)
    return outcomes


def _owned(
    config: RunConfig, overrides: Sequence[str], load_data: Callable[[], Any], stack: ExitStack
) -> RunFolder | None:
    """The run's folder, locked until the stack closes; None if the run is finished."""
    path = folder_of(config)
    if _settled(path) is Status.DONE:
        return None
    # What cannot be done as asked is found before anything compiles, and is no failure of the run. Imported late,
    # because the methods bring JAX.
    from experiments.training import check, check_cell

    check_cell(config)
    data = load_data()
    check(config, data)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise storage_error(path / "run.lock", error) from error
        raise UsageError(f"paths.results={config.paths.results} cannot hold a run: {error}") from error
    with ExitStack() as own:
        with writing(path / "run.lock"):
            owner = own.enter_context(owned(path))
        # Another process may have ended the run between the first look and the lock.
        status = _settled(path)
        if status is Status.DONE:
            return None
        if status is Status.FAILED and not config.retry_failed:
            raise RunFailed(earlier_failure(path))
        folder = RunFolder(path, config, data, overrides, owner)
        stack.push(own.pop_all())
        return folder


def _settled(folder: Path) -> Status:
    """The status of a run on which nobody works."""
    if (folder / "record.json").exists():
        return Status.DONE
    if (folder / "FAILED.json").exists():
        return Status.FAILED
    return Status.CUT if saved_steps(folder) else Status.MISSING
