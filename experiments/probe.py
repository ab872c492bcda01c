"""The time of a step by the paper's definition, which counts how a batch gets to the device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from experiments.compiled import Apply, make_update
from experiments.methods import Method

PROBE_SECONDS = 2.0
"""How long the published definition of a step's time is measured, at most."""

PROBE_UPDATES = 1000
"""How many updates that measurement takes, at most."""

PROBE_AT_LEAST = 5
"""How many it takes however long they are, unless the run had fewer: these have no median worth the name."""

PROBE_WARM_UP = 3
"""How many come before it, untimed."""


def published_ms_per_step(
    apply: Apply,
    method: Method,
    params: Any,
    data: tuple[NDArray[Any], NDArray[np.int32]],
    batch_size: int,
    updates: int,
) -> float:
    """Milliseconds per step as the paper counts them: one dispatch per batch, each batch from host memory.

    The median dispatch, as a short probe's mean would tell how busy the machine was.

    Args:
        apply: the network.
        method: the training method.
        params: where to start.
        data: inputs (n, ...) and labels (n, ...) in host memory.
        batch_size: samples per update.
        updates: of the run; the probe of a shorter run than the probe is as short.
    """
    x, y = data
    state = method.init(params)
    update = jax.jit(make_update(apply, method)).lower(params, state, x[:batch_size], y[:batch_size]).compile()
    batches = len(y) // batch_size

    def dispatch(i: int) -> None:
        nonlocal params, state
        part = slice(i % batches * batch_size, (i % batches + 1) * batch_size)
        params, state, _ = jax.block_until_ready(update(params, state, x[part], y[part]))

    return 1e3 * median_seconds(dispatch, min(PROBE_AT_LEAST, updates)) / method.steps_per_update


def median_seconds(dispatch: Callable[[int], None], at_least: int = PROBE_AT_LEAST) -> float:
    """Median duration of `dispatch(i)`, i counting up, after a warm-up and within the limits of the probe."""
    warm_up = min(PROBE_WARM_UP, at_least)
    for i in range(warm_up):
        dispatch(i)
    taken: list[float] = []
    while len(taken) < at_least or (sum(taken) < PROBE_SECONDS and len(taken) < PROBE_UPDATES):
        before = time.perf_counter()
        dispatch(warm_up + len(taken))
        taken.append(time.perf_counter() - before)
    return statistics.median(taken)
