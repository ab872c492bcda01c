"""Runs side by side on this machine, each in a process of its own, through Hydra's joblib launcher."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.managers import SyncManager
from queue import Queue
from typing import TypeAlias

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks  # what a launcher must be given, though it has no public home
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from experiments.cells import Planned
from experiments.config import CONF, ROOT, RunConfig, UsageError, register_schemas, to_run_config
from experiments.interruption import Interrupted, interruptible
from experiments.progress import RunProgress, describe_outcome
from experiments.records import Event, run_id
from experiments.runner import RunBusy, RunFailed, execute
from experiments.storage import StorageError

News: TypeAlias = "tuple[str, Event | Ended | None]"
"""The name of a run, and what is new: nothing when it starts, an evaluation, or how it ended."""
SHARED_ENDS = 2
"""How often a run may be cut by the end of a process beside it. After that it runs alone, and costs no other."""


class ProcessEnded(Exception):
    """The process of a run was killed, or ended by an error that is not the run's."""


@dataclass(frozen=True)
class Ended:
    """How a run ended: in words, and the error if it did not finish."""

    words: str
    error: Exception | None = None


@dataclass
class Seen:
    """What the processes have told of the runs, by name."""

    started: set[str] = field(default_factory=set)
    ended: dict[str, Ended] = field(default_factory=dict)


def run_side_by_side(runs: Sequence[Planned], jobs: int, progress: RunProgress) -> dict[str, Exception]:
    """Do runs, so many at a time; returns those that did not finish, by name, and why.

    A signal to this process ends all of them at once, and they go on from their last checkpoints another time. Where
    the process of a run is killed, by a kernel that is out of memory for example, joblib ends the others, too; all go
    on from their checkpoints, and a run that was cut so each time goes on alone at last.

    Raises:
        Interrupted: by a signal.
    """
    register_schemas()
    # On a GPU each process would otherwise take three quarters of the memory when it starts.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    configs = {run_id(run.config): run.config for run in runs}
    cut: Counter[str] = Counter()
    with interruptible() as interruption, _shown(configs, progress) as (news, seen), _launcher(jobs, news) as launch:
        while left := [run for run in runs if run_id(run.config) not in seen.ended]:
            # One that was raised where Python drops what is raised.
            interruption.check()
            batch = [run for run in left if cut[run_id(run.config)] < SHARED_ENDS] or left[:1]
            seen.started.clear()
            broken: BrokenProcessPool | None = None
            try:
                launch([run.overrides for run in batch])
            except BrokenProcessPool as error:
                broken = error
            news.join()
            if not broken:
                continue
            # It has the exit codes, or what else went wrong.
            why = " ".join(str(broken).split())
            names = [run_id(run.config) for run in batch]
            # A process that was killed before it could tell of its run may have had any.
            lost = [name for name in names if name in seen.started and name not in seen.ended] or names
            cut.update(lost)
            if len(batch) == 1:
                error = ProcessEnded(
                    f"{lost[0]}: its process was killed; the same command goes on from its last checkpoint. {why}"
                )
                news.put((lost[0], Ended(describe_outcome(error), error)))
                news.join()
            else:
                progress.line(f"a process was killed; {len(lost)} runs were cut and go on. {why}")
    return {name: ended.error for name, ended in seen.ended.items() if ended.error}


@contextmanager
def _launcher(jobs: int, news: Queue[News]) -> Iterator[Callable[[Sequence[Sequence[str]]], None]]:
    """What does runs by the arguments they were composed from, so many at a time."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        overrides = [
            "hydra/launcher=joblib",
            f"hydra.launcher.n_jobs={jobs}",
            # They differ in length a thousandfold, so a process gets the next one when it has nothing to do.
            "hydra.launcher.batch_size=1",
            f"hydra.sweep.dir={ROOT / 'results' / '.hydra'}",
        ]
        config = hydra.compose_config("config", overrides, run_mode=RunMode.MULTIRUN, with_log_configuration=False)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
        job = functools.partial(_job, news)
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=job, config=config)

        def launch(overrides: Sequence[Sequence[str]]) -> None:
            for each in launcher.launch(overrides, initial_job_idx=0):
                _ = each.return_value  # raises what the job did not tell

        yield launch


def _job(news: Queue[News], cfg: DictConfig) -> None:
    """One run, in a process of the launcher's; an exception would be every run's end, so it is told."""
    # A terminal's Ctrl-C reaches every process. The one that launched this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = to_run_config(cfg)
    name = run_id(config)
    news.put((name, None))
    try:
        outcome = execute(config, HydraConfig.get().overrides.task, lambda event: news.put((name, event)))
    except (UsageError, RunBusy, RunFailed, StorageError) as error:
        outcome = error
    except Interrupted as error:
        # A signal to this process alone; one to the launching process ends all.
        outcome = ProcessEnded(f"{name}: {error} ended it, saved; the same command goes on from there")
    except Exception:
        outcome = ProcessEnded(f"{name}: ended by an error that is not the run's\n{traceback.format_exc()}")
    news.put((name, Ended(describe_outcome(outcome), outcome if isinstance(outcome, Exception) else None)))


def _show(progress: RunProgress, config: RunConfig, what: Event | Ended | None) -> None:
    if what is None:
        progress.start(config)
    elif isinstance(what, Event):
        progress.event(config, what)
    else:
        progress.end(config, what.words)


def _deaf() -> None:
    """Signals to all processes of a job are for the one that launched the others."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)


@contextmanager
def _shown(configs: Mapping[str, RunConfig], progress: RunProgress) -> Iterator[tuple[Queue[News], Seen]]:
    """A queue that other processes can write to, and what came through it, which is shown as it comes."""
    seen = Seen()
    # Not forked: this process has JAX's threads.
    manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
    manager.start(_deaf)
    with manager:
        news: Queue[News | None] = manager.Queue()

        def show() -> None:
            display = True
            while (item := news.get()) is not None:
                name, what = item
                known = name in seen.ended
                if what is None:
                    seen.started.add(name)
                elif isinstance(what, Ended):
                    seen.ended.setdefault(name, what)
                try:
                    if display and not known:
                        _show(progress, configs[name], what)
                except (Exception, SystemExit):
                    # The terminal is gone, or the disk that the output goes to is full. The runs go on.
                    display = False
                finally:
                    news.task_done()

        thread = threading.Thread(target=show)
        thread.start()
        try:
            yield news, seen  # type: ignore[misc]
        finally:
            news.put(None)
            thread.join()
