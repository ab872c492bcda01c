"""Runs: split, train, evaluate, stop, and measure, with a clock for each; one, or several seeds as one program."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from experiments.checkpoint import Keeper, Snapshot
from experiments.config import RunConfig
from experiments.data import Dataset
from experiments.keys import key_for
from experiments.loop import Diverged, Runs, validation_size
from experiments.memory import peak_bytes
from experiments.methods import build_method
from experiments.models import arrange, build_model
from experiments.predict import Pace
from experiments.probe import published_ms_per_step
from experiments.records import Clocks, Event, Metrics
from experiments.stopping import first_reaching

NEAR_BEST = 0.99
"""Share of the best validation accuracy at which the paper counts steps and time."""


@dataclass(frozen=True)
class Trained:
    """The outcome of a run; a run that shared its program with others has no clocks of its own."""

    metrics: Metrics
    clocks: Clocks | None
    parameters: int
    n_train: int
    n_validation: int
    n_test: int


def check_cell(config: RunConfig) -> None:
    """Refuse what no data could mend, before any are read.

    Raises:
        UsageError: the method or the operators refuse a value, or the network cannot read such data.
    """
    build_method(config.method, config.engine)
    build_model(config)


def check(config: RunConfig, data: Dataset) -> None:
    """Refuse what `train` could not do as asked, before anything is compiled or written.

    Raises:
        UsageError: the method or the operators refuse a value, the network cannot read the data, or they do not hold a
            batch and a validation part.
    """
    check_cell(config)
    validation_size(data, config.protocol)


def train(config: RunConfig, data: Dataset, on_event: Callable[[Event], None], keeper: Keeper | None = None) -> Trained:
    """Do one run.

    Args:
        config: the run.
        data: the data set it names.
        on_event: called after each evaluation, the first of them before any step.
        keeper: told of each evaluation, to save the state.

    Raises:
        UsageError: what `check` refuses, or a batch that does not fit in memory.
        Diverged: the parameters or a loss became infinite or NaN.
    """
    (outcome,) = train_seeds([config], data, lambda _, event: on_event(event), keeper=keeper)
    if isinstance(outcome, Diverged):
        raise outcome
    return outcome


def train_seeds(
    configs: Sequence[RunConfig],
    data: Dataset,
    on_event: Callable[[RunConfig, Event], None],
    resumed: Sequence[Snapshot] = (),
    keeper: Keeper | None = None,
) -> list[Trained | Diverged]:
    """Do runs that differ by their seeds alone, several of them as one batched program.

    A run's numbers are those that it would have alone, to rounding. A seed that stops early or diverges computes on
    until the others have stopped, and nobody looks.

    Args:
        configs: the runs.
        data: the data set they name.
        on_event: called after each evaluation of each run.
        resumed: each run at the evaluation from which to go on, all at the same step; empty to begin.
        keeper: told of each evaluation, to save the states.

    Raises:
        Damaged: a snapshot does not fit the runs.
    """
    config, protocol = configs[0], configs[0].protocol
    method = build_method(config.method, config.engine)
    data = _arranged(config, data)
    runs = Runs(configs, build_model(config), method, data)
    if resumed:
        runs.restore(resumed)
    runs.loop(on_event, keeper)
    if all(one.diverged for one in runs.each):
        return [one.diverged for one in runs.each if one.diverged]

    test = runs.split(data.test_x, data.test_y, [np.arange(len(data.test_y))] * len(configs))
    best = runs.stack([each.best for each in runs.each])
    test_accuracy, _ = runs.evaluate(best, test)
    train_accuracy, _ = runs.evaluate(best, runs.data)
    outcomes: list[Trained | Diverged] = []
    for i, one in enumerate(runs.each):
        if one.diverged:
            outcomes.append(one.diverged)
            continue
        near = one.events[first_reaching([event.validation_accuracy for event in one.events], NEAR_BEST)]
        steps, patience = one.events[-1].step, one.patience
        metrics = Metrics(
            test_accuracy=test_accuracy[i],
            validation_accuracy=patience.best,
            train_accuracy=train_accuracy[i],
            best_step=patience.best_step,
            steps_run=steps,
            steps_to_99=near.step,
            time_to_99_s=near.train_s if runs.timed else None,
            stopped_by="patience" if patience.exhausted else "max_steps",
        )
        clocks = None
        if runs.timed:
            kept = np.asarray(runs.data.rows)
            host = data.train_x[kept], data.train_y[kept]
            clocks = Clocks(
                compile_s=runs.compile_s,
                train_s=runs.train_s,
                device_ms_per_step=1e3 * runs.train_s / steps,
                end_to_end_ms_per_step=1e3 * runs.end_to_end_s / steps,
                published_ms_per_step=published_ms_per_step(
                    runs.apply, method, one.best, host, protocol.batch_size, steps // method.steps_per_update
                ),
                evaluation_s=runs.evaluation_s,
                checkpoint_s=runs.checkpoint_s,
            )
        parameters = sum(leaf.size for leaf in jax.tree.leaves(one.best))
        sizes = (split.rows.shape[-1] for split in (runs.data, runs.validation, test))
        outcomes.append(Trained(metrics, clocks, parameters, *sizes))
    return outcomes


def predicted_bytes(config: RunConfig, data: Dataset) -> int | None:
    """Memory of a run's training program from one evaluation to the next, without a step of it; None if unknown."""
    check(config, data)
    method = build_method(config.method, config.engine)
    runs = Runs([config], build_model(config), method, _arranged(config, data))
    return peak_bytes(runs.compile_chunk(config.protocol.batch_size))


def measured_pace(config: RunConfig, data: Dataset) -> Pace:
    """The pace of a run by a few updates of it, each with a batch from host memory, evaluations left out."""
    method = build_method(config.method, config.engine)
    data = _arranged(config, data)
    model = build_model(config)
    params = model.init(key_for(config.seed, "init"), data.train_x[:1])
    before = time.perf_counter()
    ms_per_step = published_ms_per_step(
        model.apply,  # type: ignore[arg-type]
        method,
        params,
        (data.train_x, data.train_y),
        config.protocol.batch_size,
        updates=1,
    )
    return Pace(ms_per_step, start_s=time.perf_counter() - before)


def _arranged(config: RunConfig, data: Dataset) -> Dataset:
    train_x, test_x = arrange(config, data.train_x), arrange(config, data.test_x)
    return dataclasses.replace(data, train_x=train_x, test_x=test_x)
