"""Tracing plain JAX: the graph it gives and the errors it explains."""

import contextlib

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import primitives as P

import pjax
from pjax import nn, optim
from pjax_core import projections, rules
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

    graph = pjax.trace(loss_fn, {"w": jnp.ones((3, 2)), "b": jnp.ones((4, 2))})
    assert _names(graph) == ["dot_general", "add", "sum_relu", "cross_entropy", "cross_entropy"]
    assert [len(n.operands) for n in graph.nodes if n.name == "sum_relu"] == [1]


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


@pytest.mark.parametrize("fun", [lambda h: jnp.where(h > 0, h, 0), lambda h: jnp.clip(h, -1, 1)], ids=["where", "clip"])
def test_missing_rule_inside_a_jitted_function_names_the_users_line(fun):
    with pytest.raises(TypeError, match=rf"at \S*test_trace.py:{fun.__code__.co_firstlineno}\b.* has no projection"):
        pjax.trace(lambda w: nn.cross_entropy(fun(X @ w), Y), W)


def test_a_known_zero_is_known_inside_jit_too():
    def loss_fn(w):
        h = X @ w
        return nn.cross_entropy(jnp.maximum(h, jnp.zeros_like(h)), Y)

    method = optim.AlternatingProjections(2)
    outside = method.update(loss_fn, W).params
    np.testing.assert_allclose(jax.jit(lambda w: method.update(loss_fn, w).params)(W), outside, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32, bool, jnp.float16])
def test_constants_take_the_parameters_dtype(dtype):
    x = jnp.asarray(np.arange(12).reshape(4, 3) % 3, dtype)
    method = optim.AlternatingProjections(2)
    ours = method.update(lambda w: nn.cross_entropy(x @ w, Y), W).params
    np.testing.assert_allclose(ours, method.update(lambda w: nn.cross_entropy(x.astype(W.dtype) @ w, Y), W).params)


COPIES = {
    P.broadcast_in_dim_p: lambda p: jnp.broadcast_to(p[:, None], (4, 2, 6))[:, 0],
    P.concatenate_p: lambda p: jnp.concatenate([p, p[:, :2]], 1),
    P.copy_p: lambda p: jnp.array(p, copy=True),
    P.dynamic_slice_p: lambda p: jax.lax.dynamic_slice(p, (jnp.int32(1), jnp.int32(0)), (2, 6)),
    P.gather_p: lambda p: p[jnp.array([0, 2, 2, 1])],
    P.pad_p: lambda p: jnp.pad(p, ((0, 0), (1, 2))),
    P.reshape_p: lambda p: p.reshape(3, 8),
    P.rev_p: lambda p: p[:, ::-1],
    P.slice_p: lambda p: p[1:, ::2],
    P.squeeze_p: lambda p: jnp.squeeze(p[:, None], 1),
    P.transpose_p: lambda p: p.T,
    jax.lax.split_p: lambda p: jnp.split(p, 3, 1)[1],
    jax.lax.stack_p: lambda p: jnp.stack([p, p], 1).reshape(8, 6),
    jax.lax.tile_p: lambda p: jnp.tile(p, (2, 1)),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("prim", list(rules.copy_rules), ids=str)
def test_every_copy_averages_by_its_dense_matrix(prim):
    """One AP step through a copy: the mean over copies by S written out as a 0/1 matrix, column by column."""
    fun = COPIES[prim]
    start = jax.random.normal(jax.random.key(0), (4, 6))
    out = fun(start)
    labels = jnp.arange(out.shape[0]) % out.shape[1]
    basis = jnp.eye(start.size).reshape(-1, *start.shape)
    dense = np.stack([np.asarray(fun(e) - fun(jnp.zeros_like(start))).ravel() for e in basis], 1)
    proxed = projections.prox_cross_entropy(out, jax.nn.one_hot(labels, out.shape[1]), pjax.EXACT)
    counts = dense.sum(0)
    mean = np.where(counts > 0, dense.T @ np.asarray(proxed).ravel() / np.maximum(counts, 1), start.ravel())
    traced = str(jax.make_jaxpr(fun)(start))
    assert str(prim) in traced
    for representation in ("edges", "consensus"):
        new = optim.AlternatingProjections(1, representation=representation).update(
            lambda p: nn.cross_entropy(fun(p), labels), start
        )
        np.testing.assert_allclose(new.params, mean.reshape(start.shape), rtol=1e-9)


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
        (lambda w: nn.cross_entropy(X[:0] @ w, Y[:0]), W, "no sample"),
        (
            lambda w: nn.cross_entropy(X @ w / jnp.array([[1, 0]]), Y),
            W,
            "div at .* divides by a constant that holds a zero",
        ),
    ],
    ids=["mean", "logits", "constant", "nothing", "integer", "empty", "labels", "no sample", "zero"],
)
def test_wrong_functions_are_explained(loss_fn, params, message):
    with pytest.raises(TypeError, match=message):
        pjax.trace(loss_fn, params)


@pytest.mark.parametrize("labels", [[0, 1, 2, 0], [0, -1, 0, 0]])
def test_labels_out_of_range(labels):
    with pytest.raises(ValueError, match="for 2 classes: they lie in 0 to 1"):
        nn.cross_entropy(jnp.ones((4, 2)), jnp.array(labels))


def test_labels_are_a_distribution():
    for wrong, name in ((1.0, "1"), (jnp.nan, "nan")):
        labels = jnp.array([[0.5, 0.5], [wrong, 1]])
        with pytest.raises(ValueError, match=rf"labels \[ ?{name}\.? +1. ?\] at \[1\] are no distribution"):
            pjax.trace(lambda w, y=labels: nn.cross_entropy(X[:2] @ w, y), W)


@pytest.mark.usefixtures("x64")
def test_two_dtypes_of_parameters_are_refused():
    params = {"w": W, "v": jnp.ones((2, 2), jnp.float64)}
    with pytest.raises(TypeError, match=r"mixes dtypes \(float32, float64\)"):
        pjax.trace(lambda p: nn.cross_entropy(lax.dot(X @ p["w"], p["v"]), Y), params)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_refused(dtype):
    with pytest.raises(TypeError, match=f"parameter 'w' has dtype {jnp.dtype(dtype).name}.*use float32 or float64"):
        pjax.trace(lambda p: nn.cross_entropy(X.astype(dtype) @ p["w"], Y), {"w": W.astype(dtype)})


def test_explicit_mesh_axes_are_refused_and_automatic_ones_are_not():
    for kind in (jax.sharding.AxisType.Explicit, jax.sharding.AxisType.Auto):
        mesh = jax.make_mesh((1,), ("batch",), axis_types=(kind,))
        x = jax.device_put(X, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch")))
        refused = kind == jax.sharding.AxisType.Explicit
        with pytest.raises(TypeError, match="explicit mesh axes") if refused else contextlib.nullcontext():
            pjax.trace(lambda w, x=x: nn.cross_entropy(x @ w, Y), W)


def test_what_no_loss_needs_is_neither_traced_nor_counted():
    def loss_fn(p):
        h = X @ p["w"] + p["b"]
        _ = jnp.sin(h), h * 2.0  # a metric, say
        return nn.cross_entropy(jnp.maximum(h, 0), Y)

    graph = pjax.trace(loss_fn, {"w": W, "b": jnp.zeros((4, 2))})
    assert _names(graph) == ["dot_general", "sum_relu", "cross_entropy"]


INDEXED = {
    "gather": lambda h: h[jnp.array([3, 2, 2, 0])],
    "take": lambda h: jnp.take(h, jnp.array([1, 1, 0, 3]), axis=0),
    "dynamic_slice": lambda h: lax.dynamic_slice(h, (jnp.int32(1), jnp.int32(0)), (2, 2)),
    "after a ReLU": lambda h: jnp.maximum(h, 0)[jnp.array([0, 2])],
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("operators", [pjax.EXACT, pjax.Operators(weighted=True)])
@pytest.mark.parametrize("name", INDEXED)
def test_hidden_values_can_be_indexed(name, operators):
    """By known indices and, under an outer jit, by unknown ones; rows that nobody takes count in no mean."""
    start = jax.random.normal(jax.random.key(0), (3, 2))
    x = jax.random.normal(jax.random.key(1), (4, 3), start.dtype)
    rows = INDEXED[name](jnp.arange(8.0).reshape(4, 2))[:, 0] // 2 if name != "after a ReLU" else jnp.array([0, 2])

    def loss_fn(p):
        out = INDEXED[name](x @ p)
        return nn.cross_entropy(out, Y[: len(out)])

    def before(p):
        out = x[rows.astype(int)] @ p
        return nn.cross_entropy(jnp.maximum(out, 0) if name == "after a ReLU" else out, Y[: len(rows)])

    for method in (optim.AlternatingProjections, optim.DouglasRachford):
        a, b = (method(5, operators, r).update(loss_fn, start).params for r in ("auto", "edges"))
        np.testing.assert_allclose(a, b, rtol=1e-9)
        jitted = jax.jit(lambda p, m=method: m(5, operators).update(loss_fn, p).params)(start)
        np.testing.assert_allclose(a, jitted, rtol=1e-9)
    if len(set(rows.tolist())) == len(rows):
        same = optim.AlternatingProjections(5, operators).update(before, start).params
        np.testing.assert_allclose(
            optim.AlternatingProjections(5, operators).update(loss_fn, start).params, same, rtol=1e-9
        )


@pytest.mark.parametrize("xs", [(jnp.ones((4, 2)), jnp.ones((1, 2))), (jnp.ones((4, 2), jnp.float16),), (X,)])
def test_relu_of_the_wrong_shapes(xs):
    with pytest.raises(ValueError, match=r"ReLU\(2\) takes arrays of one shape"):
        nn.ReLU(2).apply({"bias": jnp.zeros(2)}, *xs)


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
    with pytest.raises(ValueError, match="copy top_k has several results; make them one by one"):
        pjax.defshape(jax.lax.top_k_p)


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
