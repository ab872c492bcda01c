"""The training loop of one run, or of several seeds as one program: train, evaluate, stop, and a clock for each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.stages import Compiled
from numpy.typing import NDArray

from experiments.checkpoint import Keeper, Snapshot
from experiments.cluster.distributed import everywhere, put
from experiments.compiled import Apply, TrainState, initial_state, make_chunk, make_evaluation
from experiments.config import ProtocolConfig, RunConfig, UsageError
from experiments.data import Dataset
from experiments.environment import device
from experiments.keys import key_for
from experiments.memory import gigabytes, limit_bytes, peak_bytes
from experiments.methods import Method
from experiments.records import Event
from experiments.stopping import Patience

RUNS = TrainState(0, 0, None, 0)  # type: ignore[arg-type]
"""Axes of several runs' states. They share the number of updates, or each would draw an order at every one."""


class Diverged(Exception):
    """Parameters or losses are no longer finite; `step` is the evaluation that found out."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class Split(NamedTuple):
    """Samples on the device, x (n, ...) and y (n,) or (n, positions) int32, and rows (m,) of them, or every run's."""

    x: jax.Array
    y: jax.Array
    rows: jax.Array


def validation_size(data: Dataset, protocol: ProtocolConfig) -> int:
    """How many training samples validate.

    Raises:
        UsageError: the rest does not hold a batch.
    """
    n = len(data.train_y)
    n_validation = round(protocol.validation_fraction * n)
    if n_validation < 1 or n - n_validation < protocol.batch_size:
        raise UsageError(
            f"{n} training samples of {data.name} do not hold protocol.batch_size={protocol.batch_size} beside "
            f"protocol.validation_fraction={protocol.validation_fraction}"
        )
    return n_validation


@dataclass
class One:
    """What is kept of one of the runs."""

    patience: Patience
    best: Any
    events: list[Event] = field(default_factory=list)
    diverged: Diverged | None = None

    @property
    def goes_on(self) -> bool:
        """Whether it still trains."""
        return not self.diverged and not self.patience.exhausted

    @contextmanager
    def divergence(self) -> Iterator[None]:
        """Keep that the run diverged, so that the others go on."""
        try:
            yield
        except Diverged as error:
            self.diverged = error


class Runs:
    """The training loop of one run, or of several over a leading axis, and its clocks, in seconds."""

    def __init__(self, configs: Sequence[RunConfig], model: nn.Module, method: Method, data: Dataset) -> None:
        self.configs, self.method, self.protocol = configs, method, configs[0].protocol
        self.together = len(configs) > 1
        self.timed = not self.together
        """Whether the clocks are a run's own and of one device, in all its attempts."""
        self.device = device(configs[0].jobs)
        self.apply: Apply = model.apply  # type: ignore[assignment]
        self.compile_s = self.train_s = self.evaluation_s = self.checkpoint_s = self.end_to_end_s = 0.0
        self._step, self._wall_s, self._resumed = 0, 0.0, False
        n, n_validation = len(data.train_y), validation_size(data, self.protocol)
        if data.split == "last":  # a text goes on where its training part ends
            orders = [np.roll(np.arange(n), n_validation)] * len(configs)
        else:
            orders = [np.asarray(jax.random.permutation(key_for(c.seed, "split"), n)) for c in configs]
        self.data = self.split(data.train_x, data.train_y, [order[n_validation:] for order in orders])
        self.validation = self.data._replace(rows=self.stack([order[:n_validation] for order in orders]))
        init = self._batched(model.init, (0, None))
        params = jax.jit(init)(self.stack([key_for(c.seed, "init") for c in configs]), self.data.x[:1])
        self.keys = self.stack([key_for(c.seed, "order") for c in configs])
        self.each = [One(Patience(self.protocol.patience), self._of(params, i)) for i in range(len(configs))]
        start = self._batched(lambda params: initial_state(method, params, n - n_validation), (0,), RUNS)
        self._state = put(start(params))
        self._evaluations: dict[Any, Callable[..., Any]] = {}

    def stack(self, items: Sequence[Any]) -> Any:
        """Trees of all runs over a leading axis; of a lone run as it is."""
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *items) if self.together else items[0]
        return put(stacked)

    def split(self, x: NDArray[Any], y: NDArray[np.int32], rows: Sequence[NDArray[Any]]) -> Split:
        """Samples and every run's rows of them, on the device."""
        return Split(put(x), put(y), self.stack([np.asarray(r, np.int32) for r in rows]))

    def _batched(self, fun: Callable[..., Any], axes: tuple[Any, ...], out_axes: Any = 0) -> Callable[..., Any]:
        return jax.vmap(fun, axes, out_axes) if self.together else fun

    def _chunk(self, batch_size: int) -> Callable[..., Any]:
        updates = self.protocol.evaluate_every // self.method.steps_per_update
        chunk = make_chunk(self.apply, self.method, batch_size=batch_size, updates=updates)
        if not self.together or self.method.batches_well or jax.default_backend() != "cpu":
            return self._batched(chunk, (RUNS, None, None, 0, 0), (RUNS, 0))

        # One run after the other in one program: `python -m benchmarks seeds` shows both ways.
        def mapped(state: TrainState, x: jax.Array, y: jax.Array, rows: jax.Array, keys: jax.Array) -> Any:
            def one(own: tuple[TrainState, jax.Array, jax.Array]) -> Any:
                return chunk(own[0]._replace(update=state.update), x, y, *own[1:])

            after, reports = lax.map(one, (state._replace(update=()), rows, keys))
            return after._replace(update=after.update[0]), reports

        return mapped

    def _of(self, tree: Any, i: int) -> Any:
        """A run's part of what all have, on the host: a copy that outlives the donation of the device's buffers."""
        return jax.tree.map(lambda leaf: np.array(leaf[i] if self.together else leaf, copy=True), tree)

    def _by_run(self, numbers: jax.Array) -> list[Any]:
        return np.atleast_1d(np.asarray(numbers)).tolist()

    def restore(self, snapshots: Sequence[Snapshot]) -> None:
        """Be where the runs were, clocks included.

        Raises:
            Damaged: a snapshot does not fit the run.
        """
        fitted = [each.fitted(self._state_of(i), self.each[i].best) for i, each in enumerate(snapshots)]
        states = [each.state._replace(update=()) for each in fitted]
        self._state = self.stack(states)._replace(update=put(fitted[0].state.update))
        self.each = [
            One(each.patience, each.best, list(each.events), Diverged(*each.diverged) if each.diverged else None)
            for each in fitted
        ]
        self.timed &= all(event.train_s is not None for event in self.each[0].events)
        if self.timed and fitted[0].device != self.device:
            self.timed = False
            print(f"begun on another device ({fitted[0].device}): the record will have no clocks", flush=True)
        clocks = fitted[0].clocks
        self.compile_s, self.train_s = clocks["compile_s"], clocks["train_s"]
        self.evaluation_s, self.checkpoint_s = clocks["evaluation_s"], clocks["checkpoint_s"]
        self._step, self._wall_s, self._resumed = fitted[0].step, clocks["wall_s"], True

    def _snapshots(self, step: int, start: float) -> list[Snapshot]:
        clocks = {"compile_s": self.compile_s, "train_s": self.train_s, "evaluation_s": self.evaluation_s}
        clocks |= {"checkpoint_s": self.checkpoint_s, "wall_s": time.perf_counter() - start}
        return [
            Snapshot(
                step=step,
                state=self._state_of(i),
                best=one.best,
                patience=one.patience,
                events=one.events,
                clocks=clocks,
                device=self.device,
                diverged=(str(one.diverged), one.diverged.step) if one.diverged else None,
            )
            for i, one in enumerate(self.each)
        ]

    def _state_of(self, i: int) -> TrainState:
        """A run's part of the state, on the host."""
        own = self._of(self._state._replace(update=()), i)
        return own._replace(update=np.array(self._state.update, copy=True))

    def _keep(self, step: int, start: float, keeper: Keeper | None) -> None:
        # What has diverged for good is not worth a checkpoint.
        if keeper and not all(one.diverged for one in self.each):
            before = time.perf_counter()
            keeper.after(lambda: self._snapshots(step, start))
            self.checkpoint_s += time.perf_counter() - before

    def loop(self, on_event: Callable[[RunConfig, Event], None], keeper: Keeper | None = None) -> None:
        """Train until patience or steps of every run end."""
        protocol = self.protocol
        chunk = self._fitting_chunk()
        self._compiled_evaluation(self.validation)
        if keeper:
            keeper.begin()
        start, step = time.perf_counter() - self._wall_s, self._step
        if not self._resumed:
            self._observe(0, 0, [None] * len(self.each), start, on_event)
            self._keep(0, start, keeper)
        while any(one.goes_on for one in self.each) and step < protocol.max_steps:
            before = time.perf_counter()
            self._state, report = jax.block_until_ready(chunk(self._state, *self.data, self.keys))
            self.train_s += time.perf_counter() - before
            step += protocol.evaluate_every
            losses = self._by_run(report.loss)
            finite, first_bad = self._by_run(report.finite), self._by_run(report.first_bad)
            for i, one in enumerate(self.each):
                if one.goes_on:
                    with one.divergence():
                        self._check(step, losses[i], finite[i], first_bad[i])
            self._observe(step, step // self.method.steps_per_update, losses, start, on_event)
            self._keep(step, start, keeper)
        self.end_to_end_s = time.perf_counter() - start - self.evaluation_s

    def evaluate(self, params: Any, split: Split) -> tuple[list[float], list[float]]:
        """Accuracy and mean loss of every run on its split."""
        compiled = self._compiled_evaluation(split)
        n = split.rows.shape[-1] * math.prod(split.y.shape[1:])  # labels, one at every position
        before = time.perf_counter()
        correct, loss = jax.block_until_ready(compiled(params, *split))
        self.evaluation_s += time.perf_counter() - before
        return [count / n for count in self._by_run(correct)], [total / n for total in self._by_run(loss)]

    def _compiled_evaluation(self, split: Split) -> Callable[..., Any]:
        shapes = split.x.shape, split.rows.shape
        if shapes not in self._evaluations:
            before = time.perf_counter()
            evaluation = self._batched(make_evaluation(self.apply), (0, None, None, 0))
            compiled = jax.jit(evaluation, out_shardings=everywhere()).lower(self._state.params, *split).compile()
            self._evaluations[shapes] = compiled
            self.compile_s += time.perf_counter() - before
        return self._evaluations[shapes]

    def compile_chunk(self, batch_size: int) -> Compiled:
        """All updates from one evaluation to the next."""
        before = time.perf_counter()
        # The state's buffers are reused for the next state.
        chunk = jax.jit(self._chunk(batch_size), donate_argnums=0, out_shardings=everywhere())
        compiled = chunk.lower(self._state, *self.data, self.keys).compile()
        self.compile_s += time.perf_counter() - before
        return compiled

    def _fitting_chunk(self) -> Compiled:
        """The training program, unless it takes more memory than there is.

        Raises:
            UsageError: says how much, and the largest power of two that fits as a batch.
        """
        batch, given, jobs = self.protocol.batch_size, self.configs[0].memory_gb, self.configs[0].jobs
        limit = limit_bytes(given, jobs)
        chunk = self.compile_chunk(batch)
        needed = peak_bytes(chunk)
        if limit is None or needed is None or needed <= limit:
            return chunk
        where = "memory_gb" if given else "this device" if jobs == 1 else f"each of jobs={jobs}"
        if self.together:
            raise UsageError(
                f"{len(self.each)} seeds in one program take {gigabytes(needed)} of memory, more than the "
                f"{gigabytes(limit)} of {where}; run them one by one: together=no"
            )
        smaller = 2 ** (batch - 1).bit_length() // 2
        while smaller and (peak_bytes(self.compile_chunk(smaller)) or 0) > limit:
            smaller //= 2
        largest = f"the largest power of two that fits is {smaller}" if smaller else "not even one sample fits"
        raise UsageError(
            f"protocol.batch_size={batch} takes {gigabytes(needed)} of memory, more than the {gigabytes(limit)} of "
            f"{where}; {largest}"
        )

    def _observe(
        self,
        step: int,
        update: int,
        losses: Sequence[float | None],
        start: float,
        on_event: Callable[[RunConfig, Event], None],
    ) -> None:
        accuracies, validation_losses = self.evaluate(self._state.params, self.validation)
        wall = time.perf_counter() - start
        for i, (config, one) in enumerate(zip(self.configs, self.each, strict=True)):
            if not one.goes_on:
                continue
            with one.divergence():
                if not math.isfinite(validation_losses[i]):
                    raise Diverged(f"the validation loss is not finite at step {step}", step)
                if one.patience.observe(step, accuracies[i]):
                    one.best = self._of(self._state.params, i)
                train_s = self.train_s if self.timed else None
                one.events.append(Event(step, update, losses[i], accuracies[i], validation_losses[i], train_s, wall))
                on_event(config, one.events[-1])

    def _check(self, step: int, loss: float, finite: bool, first_bad: int) -> None:
        # One loss that is not finite makes their mean so. Parameters may stay finite beside it, but nothing that is
        # trained from there means anything.
        if finite and math.isfinite(loss):
            return
        found = [] if finite else [f"parameters are not finite at step {step}"]
        if first_bad >= 0:
            found.append(f"the training loss is not finite from step {first_bad * self.method.steps_per_update} on")
        raise Diverged("; ".join(found) or f"the training losses before step {step} have no finite mean", step)
