"""Tracing plain JAX: the graph it gives and the errors it explains."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import primitives as P

import pjax_core as pjax
from pjax_core import nn, optim, projections, rules
from tests.core.networks import FlaxMLP, blobs, problem

X, Y = jnp.ones((4, 3)), jnp.array([0, 1, 0, 1])


def _names(graph):
    return [n.name for n in graph.nodes if n.kind in ("constraint", "loss")]


def test_listing_graph_has_the_papers_nodes():
    loss_fn, params = problem("1 layer")
    graph = pjax.trace(loss_fn, params)
    assert _names(graph) == ["dot_general", "sum_relu", "dot_general", "cross_entropy"]
    assert [n.name for n in graph.nodes if n.kind == "parameter"] == sorted(params)
    side_a = {graph.nodes[i].name for i in graph.sides[0]}
    assert {"cross_entropy", "sum_relu", "out.weight", "linears.0.weight"} <= side_a
    text = str(graph)
    assert "linears.0.weight" in text
    assert "float32[12,20]" in text


def test_flax_dense_and_relu_give_the_same_graph():
    x, y = blobs(8, 6, 5)
    model = FlaxMLP()
    params = model.init(jax.random.key(0), x)
    graph = pjax.trace(lambda p: nn.cross_entropy(jnp.asarray(model.apply(p, x)), y), params)
    assert _names(graph) == ["dot_general", "sum_relu"] * 2 + ["dot_general", "add", "cross_entropy"]


def test_an_addition_that_others_read_is_not_fused():
    def loss_fn(p):
        h = X @ p["w"] + p["b"]
        return nn.cross_entropy(jnp.maximum(h, 0), Y), nn.cross_entropy(h, Y)

    names = _names(pjax.trace(loss_fn, {"w": jnp.ones((3, 2)), "b": jnp.ones((4, 2))}))
    assert names == ["dot_general", "add", "sum_relu", "cross_entropy", "cross_entropy"]


def test_constants_are_evaluated_whatever_their_primitives():
    def loss_fn(p):
        features = jnp.sin(X) + jnp.cumsum(X, 0)
        return nn.cross_entropy(features @ p, Y)

    assert _names(pjax.trace(loss_fn, jnp.ones((3, 2)))) == ["dot_general", "cross_entropy"]


def test_copies_are_not_nodes_and_their_means_are_exact():
    """An embedding row averages exactly its occurrences; an unread row keeps its value."""
    tokens = jnp.array([0, 2, 2, 2])
    table = jnp.arange(8.0).reshape(4, 2)

    def loss_fn(p):
        return nn.cross_entropy(p[tokens], Y)

    graph = pjax.trace(loss_fn, table)
    assert _names(graph) == ["cross_entropy"]
    new, _ = optim.AlternatingProjections(1, pjax.EXACT).update(loss_fn, table)
    proxed = projections.prox_cross_entropy(table[tokens], jax.nn.one_hot(Y, 2), pjax.EXACT)
    np.testing.assert_allclose(new[0], proxed[0], rtol=1e-5)
    np.testing.assert_allclose(new[2], proxed[1:].mean(0), rtol=1e-5)
    np.testing.assert_array_equal(new[jnp.array([1, 3])], table[jnp.array([1, 3])])


def test_identity_makes_an_odd_cycle_bipartite():
    """A residual sum closes an odd cycle: x reaches the addition directly and through one constraint."""

    def loss_fn(p):
        h = jnp.maximum(X @ p["w"], 0)
        return nn.cross_entropy(h + jnp.maximum(h + p["b"], 0), Y)

    params = {"w": jnp.ones((3, 2)), "b": jnp.zeros((4, 2))}
    graph = pjax.trace(loss_fn, params)
    assert [n.name for n in graph.nodes if n.primitive is rules.identity_p] == ["identity(sum_relu)"]
    side = {n: 0 for n in graph.sides[0]} | {n: 1 for n in graph.sides[1]}
    assert all(side[p] != side[n] for n in side for p in graph.nodes[n].producers())
    new, loss = optim.DouglasRachford(10).update(loss_fn, params)
    assert float(nn.cross_entropy(0 + _residual(new), Y).mean()) < float(loss)


def _residual(p):
    h = jnp.maximum(X @ p["w"], 0)
    return h + jnp.maximum(h + p["b"], 0)


def test_two_traces_compare_equal():
    loss_fn, params = problem("4 layers, skip")
    assert pjax.trace(loss_fn, params) == pjax.trace(loss_fn, params)
    assert hash(pjax.trace(loss_fn, params)) == hash(pjax.trace(loss_fn, params))


W = jnp.ones((3, 2))


def test_missing_rule_names_primitive_line_and_remedy():
    def loss_fn(w):
        return nn.cross_entropy(jnp.sin(X @ w), Y)

    with pytest.raises(TypeError) as error:
        pjax.trace(loss_fn, W)
    message = str(error.value)
    line = loss_fn.__code__.co_firstlineno + 1
    assert message.startswith("sin at ")
    assert f"test_trace.py:{line}" in message
    assert "dot_general" in message
    assert "defproj" in message


@pytest.mark.parametrize(
    ("loss_fn", "params", "message"),
    [
        (lambda w: nn.cross_entropy(X @ w, Y).mean(), W, "reads the value of a loss"),
        (lambda w: X @ w, W, "not a loss"),
        (lambda w: (nn.cross_entropy(X @ w, Y), 1.0), W, "not a loss"),
        (lambda w: None, W, "returns nothing"),
        (lambda w: nn.cross_entropy(X @ w["w"], Y), {"w": jnp.ones((3, 2), int)}, "parameter 'w' has dtype int"),
        (lambda w: nn.cross_entropy(X @ W, Y), {}, "params holds no array"),
        (lambda w: nn.cross_entropy(X @ w, jnp.maximum(X @ w, 0)), W, "labels of cross_entropy"),
    ],
    ids=["mean", "logits", "constant", "nothing", "integer", "empty", "labels"],
)
def test_wrong_functions_are_explained(loss_fn, params, message):
    with pytest.raises(TypeError, match=message):
        pjax.trace(loss_fn, params)


@pytest.mark.parametrize("loss", [nn.cross_entropy, nn.margin_loss])
@pytest.mark.parametrize("labels", [jnp.zeros(3, int), jnp.zeros((4, 3)), jnp.zeros(4)])
def test_labels_of_the_wrong_shape(loss, labels):
    with pytest.raises(ValueError, match="do not fit logits"):
        loss(jnp.ones((4, 2)), labels)


def test_a_second_rule_for_a_primitive_is_refused():
    with pytest.raises(ValueError, match="has a rule already"):
        pjax.defproj(P.add_p, rules.projection_rules[P.add_p])
    with pytest.raises(ValueError, match="has a rule already"):
        pjax.defshape(P.dot_general_p)


def test_losses_differentiate_and_batch():
    logits = jax.random.normal(jax.random.key(0), (4, 2))
    grad = jax.grad(lambda a: nn.cross_entropy(a, Y).mean())(logits)
    np.testing.assert_allclose(grad, (jax.nn.softmax(logits) - jax.nn.one_hot(Y, 2)) / 4, atol=1e-6)
    for loss in (nn.cross_entropy, nn.margin_loss):
        np.testing.assert_allclose(jax.vmap(loss)(logits, Y), loss(logits, Y), rtol=1e-6)

    def per_sample(w):
        return jax.vmap(lambda x, y: nn.cross_entropy(nn.ReLU(2).apply({"bias": jnp.zeros(2)}, x @ w), y))(X, Y)

    assert _names(pjax.trace(per_sample, W)) == ["dot_general", "sum_relu", "cross_entropy"]


def test_flax_module_is_unchanged_by_training():
    x, y = blobs(64, 6, 5)
    model = FlaxMLP()
    start = model.init(jax.random.key(0), x)
    assert isinstance(model, flax.linen.Module)

    def loss_fn(p):
        return nn.cross_entropy(jnp.asarray(model.apply(p, x)), y)

    for method in (optim.AlternatingProjections, optim.CyclicProjections, optim.DouglasRachford):
        params, losses = start, []
        for _ in range(10):
            params, loss = method(50).update(loss_fn, params)
            losses.append(float(loss))
        assert jax.tree.structure(params) == jax.tree.structure(start)
        assert losses[-1] < 0.6 * losses[0], method
