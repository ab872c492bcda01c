"""Maxima, steps, means and squared errors in networks: how they are traced, that they train."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax
from pjax import nn, optim
from pjax_core import projections, rules
from tests.core.networks import blobs, relative_error

X, Y, W = jnp.ones((4, 6, 3)), jnp.array([0, 1, 0, 1]), jnp.ones((3, 2))


def _names(graph):
    return [n.name for n in graph.nodes if n.kind == "constraint"]


@pytest.mark.parametrize(
    "mean",
    [
        lambda h: h.mean(1),
        lambda h: h.sum(1) / 6,
        lambda h: h.sum(1) * (1 / 6),
        lambda h: jax.vmap(lambda row: row.mean(0))(h),
        lambda h: h.reshape(4, 2, 3, 2).mean((1, 2)),
    ],
    ids=["mean", "div", "mul", "vmap", "two axes"],
)
def test_a_mean_is_one_constraint(mean):
    def loss_fn(w):
        return nn.cross_entropy(mean(X @ w), Y)

    graph = pjax.trace(loss_fn, W)
    assert _names(graph) == ["dot_general", "mean"]
    inside = []
    jax.jit(lambda w: (inside.append(pjax.trace(loss_fn, w)), w)[1])(W)
    assert inside == [graph]


@pytest.mark.parametrize(
    "not_mean",
    [
        lambda h: h.sum(1) / 5,
        lambda h: -h.sum(1) / 6,
        lambda h: h.sum(1) * jnp.array([1 / 6, 1 / 5]).reshape(1, 2),
        lambda h: (lambda s: s / 6 + s)(h.sum(1)),
        lambda h: h.mean(1, keepdims=True)[:, 0],
    ],
    ids=["another number", "sign", "several numbers", "sum read twice", "sum copied"],
)
def test_what_is_no_mean_stays_a_sum(not_mean):
    names = _names(pjax.trace(lambda w: nn.cross_entropy(not_mean(X @ w), Y), W))
    assert "reduce_sum" in names
    assert "scale" in names
    assert "mean" not in names


@pytest.mark.usefixtures("x64")
def test_a_mean_is_projected_as_in_theorem_5():
    """One step of the sides by hand: the loss moves the mean, the mean its entries."""
    p = jax.random.normal(jax.random.key(0), (4, 5, 2))
    new = optim.AlternatingProjections(2).update(lambda p: nn.squared_error(p.mean(1), jnp.zeros((4, 2))), p).params
    target = projections.prox_squared_error(p.mean(1), jnp.zeros((4, 2)), pjax.EXACT)
    step = (target - p.mean(1)) / (5 / 25 + 1)
    np.testing.assert_allclose(
        optim.AlternatingProjections(1).update(lambda p: nn.squared_error(p.mean(1), jnp.zeros((4, 2))), p).params,
        p + step[:, None] / 5,
    )
    assert bool(jnp.all(jnp.abs(new.mean(1)) < jnp.abs(p.mean(1))))


@pytest.mark.parametrize("fun", [lambda h: jnp.maximum(h, 0.5), lambda h: jnp.maximum(jnp.float32(0.5), h)])
def test_a_constant_in_a_maximum_is_an_operand_that_its_node_restores(fun):
    start = jnp.array([[0.7, -3.0], [2.0, -3.0]])
    targets = jnp.array([[2.0, 0.5], [0.0, 3.0]])
    graph = pjax.trace(lambda p: nn.squared_error(fun(p), targets), start)
    assert [n.name for n in graph.nodes if n.kind == "constant"] == ["constant0", "constant1"]
    new, _ = optim.AlternatingProjections(300).update(lambda p: nn.squared_error(fun(p), targets), start)
    # (0, 0) reaches its target, (0, 1) is satisfied as it is, (1, 0) falls to the constant. At (1, 1) the
    # constant is the larger: its copy alone is drawn up and restored, as a derivative would be zero there.
    np.testing.assert_allclose(fun(new), [[2.0, 0.5], [0.5, 0.5]], atol=0.02)
    np.testing.assert_allclose(new[:, 1], -3)


def test_a_maximum_with_zero_stays_a_relu():
    names = _names(pjax.trace(lambda w: nn.cross_entropy(jnp.maximum(0, X[:, 0] @ w), Y), W))
    assert names == ["dot_general", "sum_relu"]


ACTIVATIONS = {
    "maxout": lambda h: h.reshape(len(h), 8, 3).max(-1),
    "maximum": lambda h: jnp.maximum(h[:, :8], h[:, 8:16]),
    "maximum of a constant": lambda h: jnp.maximum(h, 0.3),
    "mean": lambda h: jax.nn.relu(h).reshape(len(h), 8, 3).mean(-1),
}
STEPS = {"quantize": lambda h: rules.quantize_p.bind(h, levels=5, scale=1.0), "sign": jnp.sign}


def _problem(name):
    """Two layers: an activation between them and classes, or ReLU between them and numbers that step."""
    x, y = blobs(32, 6, 3)
    between = ACTIVATIONS.get(name, jax.nn.relu)
    width = jax.eval_shape(between, jnp.zeros((2, 24))).shape[1]
    keys = jax.random.split(jax.random.key(0))
    params = {
        "hidden": jax.random.normal(keys[0], (6, 24), x.dtype) * 0.5,
        "out": jax.random.normal(keys[1], (width, 3), x.dtype) * 0.5,
    }

    def loss_fn(p):
        outputs = between(x @ p["hidden"]) @ p["out"]
        if name in STEPS:
            return nn.squared_error(STEPS[name](outputs), 2 * jax.nn.one_hot(y, 3, dtype=x.dtype) - 1)
        return nn.cross_entropy(outputs, y)

    return loss_fn, params


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", [*ACTIVATIONS, *STEPS])
def test_representations_agree(name):
    loss_fn, start = _problem(name)
    ap, cp, dr = optim.AlternatingProjections, optim.CyclicProjections, optim.DouglasRachford
    for fast, edges in (
        (ap(20, representation="consensus"), ap(20, representation="edges")),
        (cp(20, representation="consensus"), cp(20, representation="edges")),
        (dr(20, representation="history", window=21), dr(20, representation="edges")),
    ):
        a, b = (method.update(loss_fn, start).params for method in (fast, edges))
        assert relative_error(a, b, start) < 1e-5


@pytest.mark.parametrize("name", [*ACTIVATIONS, *STEPS])
def test_networks_train(name):
    """Also where the loss has no slope anywhere."""
    loss_fn, start = _problem(name)
    params, losses = start, []
    for _ in range(15):
        params, loss = optim.DouglasRachford(30).update(loss_fn, params)
        losses.append(float(loss))
    assert losses[-1] < 0.3 * losses[0]
    assert float(jnp.linalg.norm(params["hidden"] - start["hidden"])) > 1e-2
    slopes = jax.tree.leaves(jax.grad(lambda p: loss_fn(p).mean())(start))
    assert (max(float(jnp.abs(s).max()) for s in slopes) == 0) == (name in STEPS)


def test_squared_error_is_the_sum_over_features():
    outputs = jax.random.normal(jax.random.key(0), (4, 2))
    np.testing.assert_allclose(nn.squared_error(outputs, jnp.ones((4, 2), int)), ((outputs - 1) ** 2).sum(-1))
    np.testing.assert_allclose(jax.grad(lambda u: nn.squared_error(u, jnp.zeros((4, 2))).sum())(outputs), 2 * outputs)
    np.testing.assert_allclose(
        jax.vmap(nn.squared_error)(outputs, outputs + 2), nn.squared_error(outputs, outputs + 2), rtol=1e-6
    )


@pytest.mark.parametrize("shape", [(4,), (4, 1), (2,), ()])
def test_targets_of_the_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"targets of shape \(.*\) do not fit outputs of shape \(4, 2\)"):
        nn.squared_error(jnp.ones((4, 2)), jnp.zeros(shape))


def test_a_scalar_beside_an_array_of_zeros_is_copied():
    result = optim.AlternatingProjections(3).update(
        lambda p: nn.squared_error(jnp.maximum(p, jnp.zeros(3)), jnp.ones(3)), jnp.array(0.5)
    )
    assert result.loss == pytest.approx(3 * 0.25)
    assert 0.5 < result.params < 1.1
