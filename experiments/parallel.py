"""Runs side by side on this machine, each in a process of its own, through Hydra's joblib launcher."""

from __future__ import annotations

import functools
import multiprocessing
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from experiments.interruption import interruptible
from experiments.progress import RunProgress, describe_outcome
from experiments.records import Event, run_id
from experiments.runner import RunBusy, RunFailed, execute
from experiments.storage import StorageError

News: TypeAlias = "tuple[str, Event | str | None]"
"""The name of a run, and what is new: nothing when it starts, an evaluation, or how it ended."""


def run_side_by_side(runs: Sequence[Planned], jobs: int, progress: RunProgress) -> dict[str, Exception]:
    """Do runs, so many at a time; returns those that did not finish, by name, and why.

    A signal ends all of them at once, and they go on from their last checkpoints another time.

    Raises:
        Interrupted: by a signal.
    """
    register_schemas()
    configs = {run_id(run.config): run.config for run in runs}
    with interruptible(), _shown(configs, progress) as news, initialize_config_dir(str(CONF), version_base="1.3"):
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
        returned = launcher.launch([run.overrides for run in runs], initial_job_idx=0)
    outcomes = zip(configs, (each.return_value for each in returned), strict=True)
    return {name: outcome for name, outcome in outcomes if outcome is not None}


def _job(news: Queue[News], cfg: DictConfig) -> Exception | None:
    """One run, in a process of the launcher's; an exception would be every run's end, so it is returned."""
    # A terminal's Ctrl-C reaches every process. The one that launched this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = to_run_config(cfg)
    name = run_id(config)
    news.put((name, None))
    try:
        outcome = execute(config, HydraConfig.get().overrides.task, lambda event: news.put((name, event)))
    except (UsageError, RunBusy, RunFailed, StorageError) as error:
        outcome = error
    news.put((name, describe_outcome(outcome)))
    return outcome if isinstance(outcome, Exception) else None


@contextmanager
def _shown(configs: Mapping[str, RunConfig], progress: RunProgress) -> Iterator[Queue[News]]:
    """A queue that other processes can write to, whose news are shown as they come."""
    # Not forked: this process has JAX's threads.
    with multiprocessing.get_context("spawn").Manager() as manager:
        news: Queue[News | None] = manager.Queue()

        def show() -> None:
            while (item := news.get()) is not None:
                config, what = configs[item[0]], item[1]
                if what is None:
                    progress.start(config)
                elif isinstance(what, Event):
                    progress.event(config, what)
                else:
                    progress.end(config, what)

        thread = threading.Thread(target=show)
        thread.start()
        try:
            yield news  # type: ignore[misc]
        finally:
            news.put(None)
            thread.join()
