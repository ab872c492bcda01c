"""Histories: which nodes they hold, what a window loses, and what it folds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import pjax
from pjax import nn, optim
from pjax_core.history import History
from pjax_core.whole import Whole
from tests.core.networks import (
    CNN,
    RNN,
    FlaxMLP,
    blobs,
    feasibility,
    images,
    initial,
    network,
    problem,
    relative_error,
    sentences,
)

DR = optim.DouglasRachford
RTOL = 1e-5
PRESETS = {"published": pjax.PUBLISHED, "exact": pjax.EXACT}


def _windows(holders):
    """Of the nodes that are held by past consensus values."""
    return [h.window for h in holders.values() if type(h) is History]


@pytest.mark.matrix
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("operators", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize(("window", "bound"), [(1, 1e-3), (2, 1e-4)])
@pytest.mark.parametrize(("sizes", "skip"), [((40, 64, 5), False), ((40, 64, 64, 64, 64, 5), True)])
def test_short_windows_stay_within_their_bound(sizes, skip, operators, window, bound):
    """Where "auto" uses history, 20 steps err by less than 0.1 % of the way that the parameters moved."""
    loss_fn, start = network(sizes, skip=skip, batch=64)
    assert DR().window == 1
    holders = feasibility(loss_fn, start, DR(operators=operators)).holders
    assert list(map(type, holders.values())).count(History) == len(sizes) - 2
    edges, windowed = (DR(20, operators, r, window=window).update(loss_fn, start).params for r in ("edges", "auto"))
    assert relative_error(windowed, edges, start) < bound


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("make", "slots"),
    [
        (functools.partial(optim.DifferenceMap, beta=0.8), 2),
        (functools.partial(optim.DifferenceMap, beta=-1.0), 1),
        (functools.partial(DR, relaxation=0.3), 6),
        (functools.partial(DR, relaxation=0.6), 3),
        (functools.partial(DR, relaxation=1.0), None),
        (optim.CyclicDouglasRachford, 1),
    ],
)
def test_the_default_serves_every_method_for_a_whole_update(make, slots):
    """With one slot the difference map grew by a factor in each step: parameters of 1e13 after 50."""
    loss_fn, start = network((40, 64, 5), batch=64)
    holders = feasibility(loss_fn, start, make()).holders
    assert _windows(holders) == ([slots] if slots else [])
    edges, windowed = (make(50, representation=r).update(loss_fn, start).params for r in ("edges", "auto"))
    assert relative_error(windowed, edges, start) < 0.01


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("channels", [1, 3])
def test_convolutions_are_held_by_history_and_stay_within_its_bound(channels):
    """However few products a window sums; the output layer, of which an element has 5 copies, holds all."""
    model = CNN(channels, 16, 5)
    x, y = images((8, 8, channels), 5)
    start = initial(model, x.dtype)

    def loss_fn(p):
        return nn.cross_entropy(model.apply(p, x), y)

    solved = feasibility(loss_fn, start, DR())
    kinds = [(solved.graph.nodes[n].name, type(h)) for n, h in solved.holders.items() if h.bilinear]
    assert kinds == [("conv_general_dilated", History)] * 2 + [("dot_general", Whole)]
    edges, windowed = (DR(20, representation=r).update(loss_fn, start).params for r in ("edges", "auto"))
    assert relative_error(windowed, edges, start) < 1e-3


@pytest.mark.matrix
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("operators", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize(
    "make",
    [
        DR,
        functools.partial(DR, relaxation=1.0),
        functools.partial(optim.DifferenceMap, beta=0.8),
        optim.CyclicDouglasRachford,
    ],
    ids=["DR", "reflections", "difference map", "cyclic DR"],
)
@pytest.mark.parametrize("shape", ["dense", "skip", "convolution", "more than 32 samples"])
def test_copies_held_whole_are_edges(shape, make, operators):
    if shape == "convolution":
        x, y = images((5, 5, 2), 5)
        x, y, start = x[:4], y[:4], {"w": 0.1 * jax.random.normal(jax.random.key(1), (4, 4, 2, 5))}

        def loss_fn(p):
            out = lax.conv_general_dilated(x, p["w"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            return nn.cross_entropy(jax.nn.relu(out).mean((1, 2)), y)

    else:
        sizes, batch = ((12, 5), 50) if "32" in shape else ((12, 9, 9, 5), 7)
        loss_fn, start = network(sizes, skip=shape == "skip", batch=batch)
    holders = feasibility(loss_fn, start, make()).holders
    assert Whole in map(type, holders.values())
    assert not _windows(holders)
    edges, whole = (make(10, operators, representation=r).update(loss_fn, start).params for r in ("edges", "auto"))
    assert relative_error(whole, edges, start) < 1e-9


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("make", [DR, optim.CyclicDouglasRachford])
@pytest.mark.parametrize("steps", [2, 3, 4])
def test_a_window_of_all_that_is_written_is_exact(steps, make):
    """Of few slots inner products are held by row, of more in a square."""
    loss_fn, start = network((12, 64, 5), batch=64)
    window = (2 if make is optim.CyclicDouglasRachford else 1) * steps + 1
    history = make(steps, representation="history", window=window).update(loss_fn, start).params
    edges = make(steps, representation="edges").update(loss_fn, start).params
    assert relative_error(history, edges, start) < RTOL


@pytest.mark.usefixtures("x64")
def test_what_falls_out_of_the_window_goes_to_the_next_oldest_slot():
    problem = feasibility(*network((12, 64, 5), batch=64), DR(window=2, representation="history"))
    graph = problem.graph
    (number, history), *_ = [(n, h) for n, h in problem.holders.items() if isinstance(h, History)]
    before = z = problem.start()
    for _ in range(6):
        before, z = z, DR(window=2).step(problem, z)
    assert float(jnp.abs(jnp.diff(before[number].slots[1], axis=0)).max()) > 1e-6
    x = problem.project(graph.sides[0], before)
    y = problem.project(graph.sides[1], problem.combine((2, x), (-1, before)))
    moved, settled = problem.combine((1, before), (1, y), (-1, x))[number], z[number]
    ((new, _),) = moved.new.items()
    np.testing.assert_allclose(settled.slots[1], [before[number].slots[1][1], new.operands[1]], rtol=1e-12)
    for kept, (oldest, *others) in zip(settled.coefficients[:2], history.coefficients(moved), strict=True):
        np.testing.assert_allclose(kept, [oldest + others[0], others[1]], rtol=1e-12)
        assert float(jnp.abs(oldest).max()) > 1e-6


@pytest.mark.usefixtures("x64")
def test_no_window_is_longer_than_what_an_update_and_its_diagnostics_write():
    for make, slots in (
        (functools.partial(DR, relaxation=0.3), 6),
        (functools.partial(optim.DifferenceMap, beta=0.8), 11),
    ):
        holders = feasibility(*network((40, 64, 5), batch=64), make(4, representation="history", window=6)).holders
        assert {*_windows(holders)} == {slots, slots + 1}  # near the loss


def test_folding_never_makes_an_impossible_state():
    """Narrow layers have large roots, where a truncated past is far from edges; it must still train."""
    x, y = blobs(64, 6, 5)
    model = FlaxMLP()
    params, losses = model.init(jax.random.key(0), x), []
    for _ in range(10):
        params, loss = DR(50, representation="history").update(
            lambda p: nn.cross_entropy(jnp.asarray(model.apply(p, x)), y), params
        )
        losses.append(float(loss))
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.usefixtures("x64")
def test_near_a_loss_histories_keep_one_slot_more():
    holders = feasibility(*network((40, 64, 64, 64, 40), batch=64), DR(window=3)).holders
    assert _windows(holders) == [3, 3, 3, 4]

    def loss_fn(w):  # the second loss is two constraints away, on the other side of the bipartition
        hidden = jnp.ones((64, 40)) @ w["w"]
        label = jnp.zeros(64, int)
        return nn.cross_entropy(jax.nn.relu(hidden) @ w["v"], label), nn.margin_loss(0.5 * hidden, label)

    holders = feasibility(loss_fn, {"w": jnp.ones((40, 64)), "v": jnp.ones((64, 5))}, DR(window=3)).holders
    assert _windows(holders) == [4]


@pytest.mark.usefixtures("x64")
def test_relaxed_history_equals_edges():
    loss_fn, start = problem("1 layer")
    for relaxation in (0.3, 1.0):
        history, edges = (
            DR(10, pjax.EXACT, r, relaxation=relaxation, window=11).update(loss_fn, start).params
            for r in ("history", "edges")
        )
        assert relative_error(history, edges, start) < RTOL


@pytest.mark.usefixtures("x64")
def test_dots_on_side_a_are_held_by_history_too():
    """An output bias puts the last dot product on side A."""
    x, y = blobs(32, 12, 5)
    w = jax.random.normal(jax.random.key(0), (12, 5)) / 4

    def loss_fn(p):
        return nn.cross_entropy(x @ p["w"] + p["b"][None], y)

    start = {"w": w, "b": jnp.zeros(5)}
    graph = pjax.trace(loss_fn, start)
    assert "dot_general" in {graph.nodes[i].name for i in graph.sides[0]}
    history, edges = (DR(20, representation=r, window=21).update(loss_fn, start).params for r in ("history", "edges"))
    assert relative_error(history, edges, start) < RTOL


def test_a_wide_output_layer_trains_nearly_as_by_edges():
    """Where roots are large, a short window is no exact method; it has to serve."""
    model = RNN(tokens=33, features=32, hidden=48, state=32)
    x, y = sentences(8, 16, 33)
    start = initial(model, jnp.float32)
    losses = {}
    for representation in ("auto", "edges"):
        params = start
        for _ in range(7):
            params, loss = DR(50, representation=representation).update(
                lambda p: nn.cross_entropy(model.apply(p, x), y), params
            )
            losses.setdefault(representation, []).append(float(loss))
    fallen = {name: values[0] - values[-1] for name, values in losses.items()}
    assert fallen["auto"] > 0.8 * fallen["edges"] > 0.1
