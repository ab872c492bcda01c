"""The compiled parts of a run: everything between two evaluations as one dispatch, and the evaluation.

The state of a run is (parameters, method state, number of updates, order of the current epoch); together with the key
of the axis "order" it determines everything that follows. Data are arguments of the executables, not constants in them:
all samples and the rows of a split, so that runs with other splits share the samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from experiments.cluster.distributed import split
from experiments.methods import Method
from pjax import nn

EVALUATION_BATCH = 1000
"""Samples evaluated at once: bounds the memory of evaluating a whole split, at 0.2 GB for the tables' networks."""

Apply = Callable[[Any, jax.Array], jax.Array]


class TrainState(NamedTuple):
    """What changes during training.

    Attributes:
        params: pytree of arrays.
        method: the method's own state.
        update: scalar int32, updates done so far.
        order: (n,) int32, the permutation of the training samples in the current epoch.
    """

    params: Any
    method: Any
    update: jax.Array
    order: jax.Array


class Report(NamedTuple):
    """What a chunk says about itself.

    Attributes:
        loss: scalar, mean over the updates of the mean training loss before each.
        first_bad: scalar int32, the first update with a loss that is not finite, or -1.
        finite: scalar bool, whether all parameters are finite at the end.
    """

    loss: jax.Array
    first_bad: jax.Array
    finite: jax.Array


def initial_state(method: Method, params: Any, n_train: int) -> TrainState:
    """The state before the first update; the order is drawn by the first chunk."""
    return TrainState(params, method.init(params), jnp.int32(0), jnp.zeros(n_train, jnp.int32))


def next_batch(state: TrainState, key: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Indices of the next batch, and the order of its epoch.

    Every epoch visits each sample once, in an order of its own; the samples left over at its end are dropped.

    Returns:
        indices: (batch_size,) int32.
        order: (n,) int32, drawn anew at the start of an epoch.
    """
    n = state.order.shape[0]
    epoch, position = jnp.divmod(state.update, n // batch_size)
    order = lax.cond(
        position == 0,
        lambda: jax.random.permutation(jax.random.fold_in(key, epoch), n).astype(jnp.int32),
        lambda: state.order,
    )
    return lax.dynamic_slice(order, (position * batch_size,), (batch_size,)), order


def make_update(apply: Apply, method: Method) -> Callable[[Any, Any, jax.Array, jax.Array], tuple[Any, Any, jax.Array]]:
    """One update on one batch: (params, method state, x, y) to (params, method state, mean loss)."""

    def update(params: Any, state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any, jax.Array]:
        return method.update(lambda p: nn.cross_entropy(apply(p, x), y), params, state)

    return update


def make_chunk(
    apply: Apply, method: Method, *, batch_size: int, updates: int
) -> Callable[[TrainState, jax.Array, jax.Array, jax.Array, jax.Array], tuple[TrainState, Report]]:
    """All updates from one evaluation to the next, as one function of (state, x, y, rows, key) to compile.

    Args:
        apply: parameters and inputs (batch, ...) to logits (batch, classes), or (batch, positions, classes) for a
            label at every position.
        method: the training method.
        batch_size: samples of an update.
        updates: number of updates.
    """
    update = make_update(apply, method)

    def chunk(
        state: TrainState, x: jax.Array, y: jax.Array, rows: jax.Array, key: jax.Array
    ) -> tuple[TrainState, Report]:
        def body(i: jax.Array, carry: tuple[TrainState, jax.Array, jax.Array]) -> Any:
            state, total, first_bad = carry
            indices, order = next_batch(state, key, batch_size)
            batch = rows[indices]
            params, method_state, loss = update(state.params, state.method, split(x[batch]), split(y[batch]))
            bad = ~jnp.isfinite(loss) & (first_bad < 0)
            first_bad = jnp.where(bad, state.update, first_bad)
            return TrainState(params, method_state, state.update + 1, order), total + loss, first_bad

        carry = (state, jnp.zeros(()), jnp.int32(-1))
        state, total, first_bad = lax.fori_loop(0, updates, body, carry)
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.params)]))
        return state, Report(total / updates, first_bad, finite)

    return chunk


def make_evaluation(
    apply: Apply,
) -> Callable[[Any, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """A function of (params, x, y, rows) to the number of correct predictions, int32, and the sum of the losses.

    Both count every label, so every position of a sample that has one at each.
    """

    def evaluate(params: Any, x: jax.Array, y: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        size = min(EVALUATION_BATCH, rows.shape[0])
        full = rows.shape[0] // size

        def add(sums: tuple[jax.Array, jax.Array], part: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits, labels = apply(params, x[part]), y[part]
            correct = jnp.sum(jnp.argmax(logits, -1) == labels, dtype=jnp.int32)
            return sums[0] + correct, sums[1] + jnp.sum(nn.cross_entropy(logits, labels))

        def body(i: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return add(sums, lax.dynamic_slice_in_dim(rows, i * size, size))

        sums = lax.fori_loop(0, full, body, (jnp.int32(0), jnp.zeros(())))
        return sums if full * size == rows.shape[0] else add(sums, rows[full * size :])

    return evaluate
