"""The compiled parts: keys, batches, chunks, evaluation, and how often anything is compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from baselines.gradient import GradientMethod
from baselines.mlp import MLP
from experiments import probe, training
from experiments.cells import Planned
from experiments.compiled import EVALUATION_BATCH, TrainState, initial_state, make_chunk, make_evaluation, next_batch
from experiments.compose import compose_run
from experiments.data import Dataset, load
from experiments.keys import key_for
from experiments.loop import RUNS, Diverged, Runs
from experiments.methods import build_method
from experiments.models import build_model
from experiments.records import Event
from experiments.training import Trained, train, train_seeds


def test_keys_differ_by_axis_and_seed() -> None:
    keys = [key_for(seed, axis) for seed in (0, 1) for axis in ("split", "init", "order")]
    assert len({tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}) == 6


def epochs(n: int, batch_size: int, count: int, seed: int = 0) -> np.ndarray:
    """Indices of the batches of `count` epochs, (count, batches, batch_size)."""
    key, batches = key_for(seed, "order"), n // batch_size
    state = initial_state(GradientMethod(optax.sgd(1.0)), (), n)
    draw = jax.jit(next_batch, static_argnums=2)
    found = []
    for update in range(count * batches):
        indices, order = draw(state._replace(update=jnp.int32(update)), key, batch_size)
        state = TrainState((), (), jnp.int32(update), order)
        found.append(np.asarray(indices))
    return np.stack(found).reshape(count, batches, batch_size)


def test_an_epoch_visits_every_sample_once() -> None:
    for epoch in epochs(12, 4, 3):
        assert sorted(epoch.ravel().tolist()) == list(range(12))


def test_a_remainder_is_dropped_and_differs_by_epoch() -> None:
    visited = epochs(14, 4, 4)
    assert all(len(set(epoch.ravel().tolist())) == 12 for epoch in visited)
    assert len({frozenset(range(14)) - frozenset(epoch.ravel().tolist()) for epoch in visited}) > 1


def test_the_order_depends_on_epoch_and_seed_alone() -> None:
    first, again, other = epochs(12, 4, 2), epochs(12, 4, 2), epochs(12, 4, 2, seed=1)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first, other)


def test_two_short_chunks_are_one_long_chunk() -> None:
    """State, key and data determine the future: where a chunk ends changes no bit."""
    key = jax.random.key(0)
    x, y = jax.random.normal(key, (20, 6)), jnp.arange(20) % 3
    model, method = MLP((5,), 3), GradientMethod(optax.adam(0.1))
    apply: Any = model.apply
    start = initial_state(method, model.init(key, x), 20)
    short, long = (jax.jit(make_chunk(apply, method, batch_size=8, updates=n)) for n in (3, 6))
    rows = jnp.arange(20)
    twice, _ = short(short(start, x, y, rows, key)[0], x, y, rows, key)
    once, report = long(start, x, y, rows, key)
    jax.tree.map(np.testing.assert_array_equal, twice, once)
    assert bool(report.finite)
    assert int(report.first_bad) == -1
    assert int(once.update) == 6


@pytest.mark.parametrize("n", [7, EVALUATION_BATCH, 2 * EVALUATION_BATCH + 3])
def test_evaluation_counts_every_sample_once(n: int) -> None:
    key = jax.random.key(1)
    x, y = jax.random.normal(key, (n, 4)), jax.random.randint(key, (n,), 0, 4)
    rows = jax.random.permutation(key, n)
    correct, loss = jax.jit(make_evaluation(lambda params, x: params * x))(jnp.float32(2), x, y, rows)
    assert int(correct) == int(np.sum(np.argmax(np.asarray(x), -1) == np.asarray(y)))
    expected = optax.softmax_cross_entropy_with_integer_labels(2 * x, y)
    np.testing.assert_allclose(loss, expected.sum(), rtol=1e-5)


def test_evaluation_counts_every_position() -> None:
    key = jax.random.key(2)
    logits, y = jax.random.normal(key, (7, 5, 4)), jax.random.randint(key, (7, 5), 0, 4)
    tokens = jnp.repeat(jnp.arange(7)[:, None], 5, axis=1)
    correct, loss = jax.jit(make_evaluation(lambda params, x: logits[x[:, 0]]))((), tokens, y, jnp.arange(7))
    assert int(correct) == int(np.sum(np.argmax(np.asarray(logits), -1) == np.asarray(y)))
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    np.testing.assert_allclose(loss, expected.sum(), rtol=1e-5)


class Still:
    """A method that trains nothing, so that what is reported is the initial parameters'."""

    steps_per_update, batches_well = 1, True

    def init(self, params: Any) -> tuple[()]:
        return ()

    def update(self, loss_fn: Any, params: Any, state: tuple[()]) -> tuple[Any, tuple[()], jax.Array]:
        return params, state, jnp.mean(loss_fn(params))


def windows(n: int, m: int) -> Dataset:
    """Random text; the validation part is its end."""
    text = np.random.default_rng(0).integers(0, 65, (n + m, 65)).astype(np.int32)
    x, y = text[:, :-1], text[:, 1:]
    return Dataset("shakespeare", 65, x[:n], y[:n], x[n:], y[n:], "", split="last")


def test_a_text_is_scored_by_position_and_validated_on_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ["protocol.batch_size=4", "protocol.evaluate_every=1", "protocol.max_steps=1"]
    config = compose_run(["task=shakespeare-rnn_4x128", "model.hidden=[8]", "method=sgd", *sizes])
    data = windows(20, 6)
    monkeypatch.setattr(training, "build_method", lambda method, engine: Still())
    events: list[Event] = []
    trained = train(config, data, events.append)
    model = build_model(config)
    params = model.init(key_for(0, "init"), data.train_x[:1])

    def score(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
        logits = jnp.asarray(model.apply(params, x))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return float(losses.mean()), float(np.mean(np.argmax(np.asarray(logits), -1) == y))

    assert (trained.n_train, trained.n_validation, trained.n_test) == (18, 2, 6)
    loss, accuracy = score(data.train_x[18:], data.train_y[18:])
    np.testing.assert_allclose((events[0].validation_loss, events[0].validation_accuracy), (loss, accuracy), rtol=1e-5)
    assert trained.metrics.test_accuracy == pytest.approx(score(data.test_x, data.test_y)[1])
    assert trained.metrics.train_accuracy == pytest.approx(score(data.train_x[:18], data.train_y[:18])[1])
    assert events[1].train_loss == pytest.approx(loss, rel=0.1)  # a mean over a batch's positions, too


def test_the_end_of_a_text_validates_whatever_the_seed_and_another_split_depends_on_it() -> None:
    text = windows(20, 6)
    for data, same in ((text, True), (dataclasses.replace(text, split="random"), False)):
        found = []
        for seed in (0, 1):
            config = compose_run(["task=shakespeare-rnn_1x256", f"seed={seed}", "protocol.batch_size=4"])
            runs = Runs([config], build_model(config), build_method(config.method, config.engine), data)
            rows, validation = np.asarray(runs.data.rows), np.asarray(runs.validation.rows)
            assert sorted([*rows, *validation]) == list(range(20))
            found.append(validation.tolist())
        assert (found == [[18, 19]] * 2) == same
        assert (found[0] == found[1]) == same


def test_nothing_is_compiled_between_the_first_evaluation_and_the_last(short: Callable[..., Planned]) -> None:
    config = short("method=adam").config
    compiled: list[str] = []
    heard: list[int] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if "backend_compile" in event:
            compiled.append(event)

    def note(event: Event) -> None:
        heard.append(len(compiled))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        train(config, load(config.dataset, Path()), note)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(heard) == 5
    assert heard[0] > 0, "the listener heard no compilation at all"
    assert len(set(heard)) == 1


@pytest.mark.parametrize(
    ("durations", "count", "median"),
    [
        ([9.0, 9.0, 9.0, 0.1, 0.1, 0.1, 1.8, 0.1, 9.0], 3 + 5, 0.1),  # neither warm-up nor one slow dispatch counts
        ([0.0] * 3 + [3.0, 5.0, 4.0, 4.0, 7.0, 9.0], 3 + 5, 4.0),  # five, however long
        ([0.0] * 3 + [0.25] * 9, 3 + 8, 0.25),  # until the time is up
        ([0.001] * 2000, 3 + 1000, 0.001),
    ],
)
def test_the_published_time_is_a_median_within_limits(
    durations: list[float], count: int, median: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, seen = [0.0], []

    def dispatch(i: int) -> None:
        seen.append(i)
        clock[0] += durations[i]

    monkeypatch.setattr(probe.time, "perf_counter", lambda: clock[0])
    assert probe.median_seconds(dispatch) == pytest.approx(median)
    assert seen == list(range(count))


def test_the_probe_of_a_short_run_is_as_short(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seen = [0.0], []

    def dispatch(i: int) -> None:
        seen.append(i)
        clock[0] += 3.0

    monkeypatch.setattr(probe.time, "perf_counter", lambda: clock[0])
    assert probe.median_seconds(dispatch, at_least=2) == pytest.approx(3.0)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("output_bias", [False, True])
def test_mlp_has_the_published_layers(skip: bool, output_bias: bool) -> None:
    model = MLP((8, 8, 8), 5, skip=skip, output_bias=output_bias)
    params: Any = model.init(jax.random.key(0), jnp.zeros((1, 400)))["params"]
    assert params["Dense_3"]["kernel"].shape == ((24 if skip else 8), 5)
    assert ("bias" in params["Dense_3"]) == output_bias
    assert all(not params[f"Dense_{i}"]["bias"].any() for i in range(3))
    np.testing.assert_allclose(params["Dense_0"]["kernel"].std(), np.sqrt(2 / 400), rtol=0.05)


def test_gradient_method_descends_the_mean_loss() -> None:
    target = jnp.array([1.0, 2.0, 6.0])
    method = GradientMethod(optax.sgd(0.5))
    params = jnp.float32(0.0)
    params, _, loss = method.update(lambda p: (p - target) ** 2, params, method.init(params))
    np.testing.assert_allclose(loss, np.mean(np.square([1, 2, 6])), rtol=1e-6)
    np.testing.assert_allclose(params, 3.0, rtol=1e-6)  # the mean: 0 - 0.5 * 2 * (0 - 3)


@pytest.mark.usefixtures("compiled_once")
@pytest.mark.parametrize("method", ["adam", "dr", "ap"])
def test_seeds_as_one_program_have_the_numbers_of_runs_alone(method: str, short: Callable[..., Planned]) -> None:
    configs = [short(f"method={method}", f"seed={seed}", "protocol.patience=1").config for seed in range(3)]
    data = load(configs[0].dataset, Path())
    heard: list[tuple[int, Event]] = []
    together = train_seeds(configs, data, lambda config, event: heard.append((config.seed, event)))
    for config, outcome in zip(configs, together, strict=True):
        events: list[Event] = []
        alone = train(config, data, events.append)
        assert isinstance(outcome, Trained)
        assert (outcome.clocks, outcome.metrics.time_to_99_s) == (None, None)
        times = {"train_s": None, "wall_s": 0.0, "validation_loss": 0.0, "train_loss": 0.0}
        of_seed = [event for seed, event in heard if seed == config.seed]
        assert [dataclasses.replace(e, **times) for e in of_seed] == [dataclasses.replace(e, **times) for e in events]
        np.testing.assert_allclose(
            [(event.validation_loss, event.train_loss or 0) for event in of_seed],
            [(event.validation_loss, event.train_loss or 0) for event in events],
            rtol=1e-4,
        )
        assert outcome.metrics == dataclasses.replace(alone.metrics, time_to_99_s=None)


def test_a_seed_that_diverges_stops_no_other(short: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        """Has an infinite loss where the first weight is the smallest of the seeds'."""

        steps_per_update, batches_well = 1, True

        def init(self, params: Any) -> tuple[()]:
            return ()

        def update(self, loss_fn: Any, params: Any, state: tuple[()]) -> tuple[Any, tuple[()], jax.Array]:
            first = jax.tree.leaves(params)[1].ravel()[0]
            return params, state, jnp.where(first <= smallest, jnp.inf, 1.0)

    configs = [short("method=sgd", f"seed={seed}").config for seed in range(3)]
    data = load(configs[0].dataset, Path())
    model = MLP((32,), 10, output_bias=True)
    inits: list[Any] = [model.init(key_for(c.seed, "init"), data.train_x[:1].reshape(1, -1)) for c in configs]
    firsts = [float(jax.tree.leaves(params)[1].ravel()[0]) for params in inits]
    smallest = min(firsts)
    monkeypatch.setattr(training, "build_method", lambda method, engine: Broken())
    outcomes = train_seeds(configs, data, lambda config, event: None)
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [Diverged if first == smallest else Trained for first in firsts]


def test_seeds_draw_an_order_no_more_often_than_one() -> None:
    """At the start of an epoch: a batched condition would draw at every update."""
    key = jax.random.key(0)
    x, y = jax.random.normal(key, (20, 6)), jnp.arange(20) % 3
    model, method = MLP((5,), 3), GradientMethod(optax.sgd(0.1))
    apply: Any = model.apply
    chunk = make_chunk(apply, method, batch_size=8, updates=3)
    keys = jax.random.split(key, 2)
    states = jax.vmap(lambda k: initial_state(method, model.init(k, x), 20), 0, RUNS)(keys)
    rows = jnp.stack([jnp.arange(20)] * 2)
    jaxpr = jax.make_jaxpr(jax.vmap(chunk, (RUNS, None, None, 0, 0), (RUNS, 0)))(states, x, y, rows, keys)
    assert " cond[" in str(jaxpr)
