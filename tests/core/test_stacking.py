"""Stacked nodes: fewer operations, the same iterates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax
from pjax import nn, optim
from pjax_core.stacking import stack
from tests.core.networks import blobs, network

pytestmark = pytest.mark.usefixtures("x64")

METHODS = {
    "AP": lambda on: optim.AlternatingProjections(8, stacking=on),
    "AP published": lambda on: optim.AlternatingProjections(8, pjax.PUBLISHED, stacking=on),
    "AP edges": lambda on: optim.AlternatingProjections(8, representation="edges", stacking=on),
    "CP": lambda on: optim.CyclicProjections(8, stacking=on),
    "DR": lambda on: optim.DouglasRachford(8, stacking=on),
    "DR history": lambda on: optim.DouglasRachford(8, representation="history", window=3, stacking=on),
    "cyclic DR": lambda on: optim.CyclicDouglasRachford(4, stacking=on),
}


def _names(graph):
    return [node.name for node in graph.nodes if node.kind in ("parameter", "constraint")]


def _stacked(graph):
    return stack(graph, graph.sides)


@pytest.mark.matrix
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_stacking_changes_no_iterate(method, skip):
    loss_fn, start = network((12, 8, 8, 8, 8, 5), skip=skip, batch=16)
    on, off = (METHODS[method](on).update(loss_fn, start, diagnostics=True) for on in (True, False))
    for k in start:
        np.testing.assert_allclose(on.params[k], off.params[k], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(on.diagnostics.residual, off.diagnostics.residual, rtol=1e-8)
    stacked, single = (d.diagnostics.target_displacement for d in (on, off))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7), stacked, single)


def test_equal_layers_and_their_parameters_become_one_node():
    loss_fn, params = network((12, 8, 8, 8, 8, 5), batch=16)
    graph = _stacked(pjax.trace(loss_fn, params))
    assert "3 x dot_general" in _names(graph)
    assert "4 x sum_relu" in _names(graph)
    assert "3 x linears.1.weight" in _names(graph)
    assert "4 x relus.0.bias" in _names(graph)
    deeper = _stacked(pjax.trace(*network((12, *[8] * 12, 5), batch=16)))
    assert len(deeper.nodes) == len(graph.nodes)
    assert sum(len(o.copies) for n in deeper.nodes for o in n.operands) == sum(
        len(o.copies) for n in graph.nodes for o in n.operands
    )


def test_cyclic_projections_keep_layers_apart():
    loss_fn, params = network((12, 8, 8, 8, 8, 5), batch=16)
    graph = pjax.trace(loss_fn, params)
    assert stack(graph, graph.layers) == graph


def test_large_nodes_are_left_alone():
    graph = pjax.trace(*network((12, 8, 8, 8, 5), batch=16))
    assert stack(graph, graph.sides, limit=16 * 8 - 1) == graph


def test_nodes_that_share_a_producer_are_left_alone():
    """Two branches read one value; layers that share a weight read one parameter."""
    x, y = blobs(8, 6, 3)
    w = {k: jax.random.normal(jax.random.key(i), (6, 6), x.dtype) for i, k in enumerate("abc")}

    def branches(p):
        h = jnp.maximum(x @ p["a"], 0)
        return nn.cross_entropy((h @ p["b"] + h @ p["c"])[:, :3], y)

    def tied(p):
        h = jnp.maximum(x @ p["a"], 0)
        return nn.cross_entropy((jnp.maximum(h @ p["b"], 0) @ p["b"])[:, :3], y)

    for loss_fn in (branches, tied):
        graph = _stacked(pjax.trace(loss_fn, w))
        assert not [name for name in _names(graph) if name.endswith("x dot_general")]
        on, off = (optim.AlternatingProjections(5, stacking=s).update(loss_fn, w).params for s in (True, False))
        for k in w:
            np.testing.assert_allclose(on[k], off[k], rtol=1e-9)


def test_convolutions_are_left_alone():
    """Batching them over images and kernels would need groups."""
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    w = [jax.random.normal(jax.random.key(i), (3, 3, 3, 3)) / 3 for i in range(3)]

    def loss_fn(w):
        h = x
        for kernel in w:
            layout = ("NHWC", "HWIO", "NHWC")
            h = jnp.maximum(jax.lax.conv_general_dilated(h, kernel, (1, 1), "SAME", dimension_numbers=layout), 0)
        return nn.cross_entropy(h.max((1, 2)), jnp.arange(2))

    graph = _stacked(pjax.trace(loss_fn, w))
    assert "3 x sum_relu" in _names(graph)
    assert _names(graph).count("conv_general_dilated") == 3
    on, off = (optim.AlternatingProjections(5, stacking=s).update(loss_fn, w).params for s in (True, False))
    for a, b in zip(on, off, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


@pytest.mark.parametrize("take", [lambda h: h[jnp.array([0, 2, 2, 5])], lambda h: jnp.take(h, jnp.array([1, 0]), 0)])
def test_networks_with_indexed_hidden_values_train_unstacked(take):
    """Which of their outputs are read is known when the graph runs, too late for a stack that reads itself."""
    x, y = blobs(6, 4, 4)
    key = jax.random.key(0)
    params = {f"w{i}": jax.random.normal(jax.random.fold_in(key, i), (4, 4)) for i in range(4)}

    def loss_fn(p):
        h = x
        for i in range(4):
            h = jax.nn.relu(h @ p[f"w{i}"])
        return nn.cross_entropy(take(h), take(jnp.asarray(y)))

    on, off = (optim.AlternatingProjections(5, stacking=on).update(loss_fn, params) for on in (True, False))
    jax.tree.map(np.testing.assert_array_equal, on, off)
