"""One run: split, train, evaluate, stop, and measure, with a clock for each."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from baselines.mlp import MLP
from experiments.compiled import Apply, initial_state, make_chunk, make_evaluation, make_update
from experiments.config import ProtocolConfig, RunConfig, UsageError
from experiments.data import Dataset
from experiments.keys import key_for
from experiments.methods import Method, build_method
from experiments.records import Clocks, Event, Metrics
from experiments.stopping import Patience, first_reaching

NEAR_BEST = 0.99
"""Share of the best validation accuracy at which the paper counts steps and time."""

PROBE_SECONDS = 2.0
"""How long the published definition of a step's time is measured, at most."""

PROBE_UPDATES = 1000
"""How many updates that measurement takes, at most."""

PROBE_AT_LEAST = 5
"""How many it takes however long they are: fewer have no median worth the name."""

PROBE_WARM_UP = 3
"""How many come before it, untimed."""


class Diverged(Exception):
    """Parameters or losses are no longer finite; `step` is the evaluation that found out."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class Split(NamedTuple):
    """Samples on the device: x (n, d) float32, y (n,) int32."""

    x: jax.Array
    y: jax.Array


@dataclass(frozen=True)
class Trained:
    """The outcome of a run."""

    metrics: Metrics
    clocks: Clocks
    parameters: int
    n_train: int
    n_validation: int
    n_test: int


def check(config: RunConfig, data: Dataset) -> None:
    """Refuse what `train` could not do as asked, before anything is compiled or written.

    Raises:
        UsageError: the method or the operators refuse a value, or the data do not hold a batch and a validation part.
    """
    build_method(config.method, config.engine)
    _validation_size(data, config.protocol)


def train(config: RunConfig, data: Dataset, on_event: Callable[[Event], None]) -> Trained:
    """Do one run.

    Args:
        config: the run.
        data: the data set it names.
        on_event: called after each evaluation, the first of them before any step.

    Raises:
        UsageError: what `check` refuses.
        Diverged: the parameters or a loss became infinite or NaN.
    """
    protocol = config.protocol
    method = build_method(config.method, config.engine)
    model = MLP(tuple(config.model.hidden), data.num_classes, config.model.skip, config.method.output_bias)
    train_split, validation, host = _split(data, config.seed, protocol)
    params = jax.jit(model.init)(key_for(config.seed, "init"), train_split.x[:1])
    run = _Run(model.apply, method, protocol, train_split, validation, params)  # type: ignore[arg-type]
    events = run.loop(key_for(config.seed, "order"), on_event)

    test = Split(jax.device_put(data.test_x), jax.device_put(data.test_y))
    test_accuracy, _ = run.evaluate(run.best, test)
    train_accuracy, _ = run.evaluate(run.best, train_split)
    near = first_reaching([event.validation_accuracy for event in events], NEAR_BEST)
    steps = events[-1].step
    metrics = Metrics(
        test_accuracy=test_accuracy,
        validation_accuracy=run.patience.best,
        train_accuracy=train_accuracy,
        best_step=run.patience.best_step,
        steps_run=steps,
        steps_to_99=events[near].step,
        time_to_99_s=events[near].train_s,
        stopped_by="patience" if run.patience.exhausted else "max_steps",
    )
    clocks = Clocks(
        compile_s=run.compile_s,
        train_s=run.train_s,
        device_ms_per_step=1e3 * run.train_s / steps,
        end_to_end_ms_per_step=1e3 * run.end_to_end_s / steps,
        published_ms_per_step=published_ms_per_step(run.apply, method, run.best, host, protocol.batch_size),
        evaluation_s=run.evaluation_s,
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.best))
    return Trained(metrics, clocks, parameters, *(len(split.y) for split in (train_split, validation, test)))


def _validation_size(data: Dataset, protocol: ProtocolConfig) -> int:
    n = len(data.train_y)
    n_validation = round(protocol.validation_fraction * n)
    if n_validation < 1 or n - n_validation < protocol.batch_size:
        raise UsageError(
            f"{n} training samples of {data.name} do not hold protocol.batch_size={protocol.batch_size} beside "
            f"protocol.validation_fraction={protocol.validation_fraction}"
        )
    return n_validation


def _split(
    data: Dataset, seed: int, protocol: ProtocolConfig
) -> tuple[Split, Split, tuple[NDArray[np.float32], NDArray[np.int32]]]:
    """The training set without its validation part, that part, and the former again in host memory."""
    n_validation = _validation_size(data, protocol)
    order = np.asarray(jax.random.permutation(key_for(seed, "split"), len(data.train_y)))
    kept, held = order[n_validation:], order[:n_validation]
    host = data.train_x[kept], data.train_y[kept]
    return (
        Split(jax.device_put(host[0]), jax.device_put(host[1])),
        Split(jax.device_put(data.train_x[held]), jax.device_put(data.train_y[held])),
        host,
    )


class _Run:
    """The training loop and its clocks, in seconds."""

    def __init__(
        self, apply: Apply, method: Method, protocol: ProtocolConfig, data: Split, validation: Split, params: Any
    ) -> None:
        self.apply, self.method, self.protocol = apply, method, protocol
        self.data, self.validation = data, validation
        self.patience = Patience(protocol.patience)
        self.compile_s = self.train_s = self.evaluation_s = self.end_to_end_s = 0.0
        self.best = _to_host(params)
        self._evaluations: dict[int, Callable[..., Any]] = {}
        self._state = initial_state(method, params, len(data.y))

    def loop(self, key: jax.Array, on_event: Callable[[Event], None]) -> list[Event]:
        """Train until patience or steps run out; returns the evaluations."""
        protocol = self.protocol
        updates = protocol.evaluate_every // self.method.steps_per_update
        chunk = self._compile_chunk(updates, key)
        self._compiled_evaluation(self.validation)
        start = time.perf_counter()
        events = [self._observe(0, 0, None, start, on_event)]
        while not self.patience.exhausted and events[-1].step < protocol.max_steps:
            before = time.perf_counter()
            self._state, report = jax.block_until_ready(chunk(self._state, self.data.x, self.data.y, key))
            self.train_s += time.perf_counter() - before
            step, update = events[-1].step + protocol.evaluate_every, events[-1].update + updates
            loss = float(report.loss)
            # One loss that is not finite makes their mean so. Parameters may stay finite beside it, but nothing that
            # is trained from there means anything.
            if not report.finite or not math.isfinite(loss):
                raise Diverged(self._where(step, bool(report.finite), int(report.first_bad)), step)
            events.append(self._observe(step, update, loss, start, on_event))
        self.end_to_end_s = time.perf_counter() - start - self.evaluation_s
        return events

    def evaluate(self, params: Any, split: Split) -> tuple[float, float]:
        """Accuracy and mean loss on a split."""
        compiled, n = self._compiled_evaluation(split), len(split.y)
        before = time.perf_counter()
        correct, loss = jax.block_until_ready(compiled(params, split.x, split.y))
        self.evaluation_s += time.perf_counter() - before
        return int(correct) / n, float(loss) / n

    def _compiled_evaluation(self, split: Split) -> Callable[..., Any]:
        n = len(split.y)
        if n not in self._evaluations:
            before = time.perf_counter()
            lowered = jax.jit(make_evaluation(self.apply)).lower(self._state.params, split.x, split.y)
            self._evaluations[n] = lowered.compile()
            self.compile_s += time.perf_counter() - before
        return self._evaluations[n]

    def _compile_chunk(self, updates: int, key: jax.Array) -> Callable[..., Any]:
        before = time.perf_counter()
        chunk = make_chunk(self.apply, self.method, batch_size=self.protocol.batch_size, updates=updates)
        # The state's buffers are reused for the next state.
        compiled = jax.jit(chunk, donate_argnums=0).lower(self._state, self.data.x, self.data.y, key).compile()
        self.compile_s += time.perf_counter() - before
        return compiled

    def _observe(
        self, step: int, update: int, loss: float | None, start: float, on_event: Callable[[Event], None]
    ) -> Event:
        accuracy, validation_loss = self.evaluate(self._state.params, self.validation)
        if not math.isfinite(validation_loss):
            raise Diverged(f"the validation loss is not finite at step {step}", step)
        if self.patience.observe(step, accuracy):
            self.best = _to_host(self._state.params)
        wall = time.perf_counter() - start
        event = Event(step, update, loss, accuracy, validation_loss, self.train_s, wall)
        on_event(event)
        return event

    def _where(self, step: int, finite: bool, first_bad: int) -> str:
        found = [] if finite else [f"parameters are not finite at step {step}"]
        if first_bad >= 0:
            found.append(f"the training loss is not finite from step {first_bad * self.method.steps_per_update} on")
        return "; ".join(found) or f"the training losses before step {step} have no finite mean"


def _to_host(params: Any) -> Any:
    """A copy that outlives the donation of the device buffers."""
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), params)


def published_ms_per_step(
    apply: Apply, method: Method, params: Any, data: tuple[NDArray[np.float32], NDArray[np.int32]], batch_size: int
) -> float:
    """Milliseconds per step as the paper counts them: one dispatch per batch, each batch from host memory.

    The median dispatch, as a short probe's mean would tell how busy the machine was.

    Args:
        apply: the network.
        method: the training method.
        params: where to start.
        data: inputs (n, d) and labels (n,) in host memory.
        batch_size: samples per update.
    """
    x, y = data
    state = method.init(params)
    update = jax.jit(make_update(apply, method)).lower(params, state, x[:batch_size], y[:batch_size]).compile()
    batches = len(y) // batch_size

    def dispatch(i: int) -> None:
        nonlocal params, state
        part = slice(i % batches * batch_size, (i % batches + 1) * batch_size)
        params, state, _ = jax.block_until_ready(update(params, state, x[part], y[part]))

    return 1e3 * median_seconds(dispatch) / method.steps_per_update


def median_seconds(dispatch: Callable[[int], None]) -> float:
    """Median duration of `dispatch(i)`, i counting up, after a warm-up and within the limits of the probe."""
    for i in range(PROBE_WARM_UP):
        dispatch(i)
    taken: list[float] = []
    while len(taken) < PROBE_AT_LEAST or (sum(taken) < PROBE_SECONDS and len(taken) < PROBE_UPDATES):
        before = time.perf_counter()
        dispatch(PROBE_WARM_UP + len(taken))
        taken.append(time.perf_counter() - before)
    return statistics.median(taken)
