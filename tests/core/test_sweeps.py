"""The method of displacements: one backward sweep through a network, its gains, sweeps and averages."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import pjax
from pjax.displacement import Displacement
from pjax.rules import displacement_rules
from pjax_core import rules
from pjax_core.copies import Edges
from pjax_core.counting import count_edges
from pjax_core.trace import trace_with_arrays
from tests.core.networks import CNN, RNN


class Kept:
    """Makes no step of what it is given, and keeps it as its state."""

    def init(self, params):
        return params

    def update(self, updates, state, params):
        return jax.tree.map(jnp.zeros_like, updates), updates


def _network(depth, width, dtype, skip=False):
    """Parameters of a plain or skip MLP and its loss on a batch, the same numbers in either type."""
    keys = jax.random.split(jax.random.key(0), depth + 3)
    sizes = [8, *[width] * depth]
    params = {
        f"layer{i:02}": jnp.sqrt(2 / m) * jax.random.normal(keys[i], (m, n))
        for i, (m, n) in enumerate(itertools.pairwise(sizes))
    }
    params["out"] = jax.random.normal(keys[-3], ((depth if skip else 1) * width, 5)) / jnp.sqrt(width)
    params = {name: value.astype(dtype) for name, value in params.items()}
    x = jax.random.normal(keys[-2], (16, 8)).astype(dtype)
    y = jax.random.randint(keys[-1], (16,), 0, 5)

    def loss(params):
        h, layers = x, []
        for i in range(depth):
            h = jax.nn.relu(h @ params[f"layer{i:02}"])
            layers.append(h)
        return pjax.nn.cross_entropy((jnp.concatenate(layers, -1) if skip else h) @ params["out"], y)

    return params, loss


def _swept(method, loss, params):
    """The displacements of the parameters, by name."""
    state = method.init(params)
    updated, *_ = dataclasses.replace(method, transform=optax.sgd(1.0)).update(loss, params, state)
    return {name: method.target_scale * np.asarray(updated[name] - params[name]) for name in params}


def _by_values(loss, params, scale, operators):
    """The same by values: each node projected once as the edge-by-edge engine does, the readers first."""
    graph, program, captured, constants, indices = trace_with_arrays(loss, params)
    values = graph.values(program.values(captured, jax.tree.leaves(params)), constants, indices)
    masks, counts = count_edges(graph, indices)
    arrived = {n: [] for n in range(len(graph.nodes))}  # sums over copies of how far they moved, and their number
    for n in reversed(graph.numbers("constraint", "loss")):
        node = graph.nodes[n]
        holder = Edges(node, operators, {p: values[p] for p in node.producers()}, indices, masks.get(n), counts[n])
        start = holder.start()
        target = (
            None if node.kind == "loss" else values[n] + sum(s for s, _ in arrived[n]) / sum(c for _, c in arrived[n])
        )
        _, projected, _ = holder.project(start, target, 1)
        factor = scale if node.kind == "loss" else 1
        moved = tuple(x + factor * (u - x) for u, x in zip(projected, start, strict=True))
        for i, operand in enumerate(node.operands):
            for p in operand.producers:
                if graph.nodes[p].kind != "constant":
                    count = counts[n][i][p]
                    arrived[p].append(((holder.mean(moved, i, p) - values[p]) * count, count))
    return {
        name: np.asarray(sum(s for s, _ in arrived[n]) / sum(c for _, c in arrived[n]))
        for name, n in zip(sorted(params), graph.numbers("parameter"), strict=True)
    }


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("skip", [False, True])
def test_a_sweep_projects_every_node_once_from_the_loss_on(skip):
    params, loss = _network(3, 8, jnp.float64, skip)
    graph = pjax.trace(loss, params)
    assert not graph.identities
    ours = _swept(Displacement(optax.sgd(1.0), 0.3, "none"), loss, params)
    for name, known in _by_values(loss, params, 0.3, pjax.EXACT).items():
        np.testing.assert_allclose(ours[name], known, rtol=1e-6, atol=1e-13)
        assert np.any(known)


@pytest.mark.usefixtures("x64")
# Without a gain sixteen layers make it smaller than the smallest number of 32 bits.
@pytest.mark.parametrize(("gain", "depth"), [("none", 10), ("fan_out", 16), ("node", 16), ("element", 16)])
def test_sixteen_layers_down_a_direction_is_that_of_64_bits(gain, depth):
    method = Displacement(Kept(), gain=gain)

    def first(dtype):
        params, loss = _network(depth, 32, dtype)
        given = method.update(loss, params, method.init(params)).state["layer00"]
        assert given.dtype == dtype
        # Squares of such small numbers are none in 32 bits.
        return np.asarray(given, np.float64)

    ours, known = first(jnp.float32), first(jnp.float64)
    assert (np.abs(known).max() < 1e-15) == (gain in ("none", "fan_out"))
    assert np.vdot(ours, known) / np.linalg.norm(ours) / np.linalg.norm(known) >= 0.999


@pytest.mark.usefixtures("x64")
def test_a_sweep_may_reach_more_nodes_than_the_one_before():
    """Carries that are read before they are made: the first sweep knows nothing of the second layer's reader."""
    keys = iter(jax.random.split(jax.random.key(0), 6))
    params = {name: jax.random.normal(next(keys), (3, 3)) for name in ("first", "second", "between", "out")}
    x, y = jax.random.normal(next(keys), (4, 2, 3)), jax.random.randint(next(keys), (4, 2), 0, 3)

    def cell(p, carry, x):
        first, second = carry
        next_second = jax.nn.relu(second @ p["second"] + first @ p["between"])
        return (jax.nn.relu(first @ p["first"] + x), next_second), second @ p["out"]

    def losses(p, unroll):
        carry = jnp.ones((2, 3)), jnp.ones((2, 3))
        if not unroll:
            _, logits = lax.scan(lambda carry, x: cell(p, carry, x), carry, x)
        else:
            steps = []
            for each in x:
                carry, logits = cell(p, carry, each)
                steps.append(logits)
            logits = jnp.stack(steps)
        return pjax.nn.cross_entropy(logits, y)

    def swept(sweeps, unroll):
        method = Displacement(optax.sgd(1.0), 0.1, "fan_out", sweeps)
        return _swept(method, lambda p: losses(p, unroll), params)

    known, found = swept(1, unroll=True), swept(4, unroll=False)
    assert all(np.any(move) for move in known.values())
    for name, move in known.items():
        np.testing.assert_allclose(found[name], move, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": optax.adam}, "something with init and update, such as optax.adam"),
        ({"transform": 0.001}, "something with init and update"),
        ({"target_scale": 0.0}, "target_scale=0.0: a positive, finite number"),
        ({"target_scale": float("inf")}, "target_scale=inf: a positive, finite number"),
        ({"gain": "full"}, "choose one of none, fan_out, node, element"),
        ({"sweeps": 0}, "sweeps"),
        ({"average": 1.0}, r"average=1.0: it lies in \[0, 1\)"),
        ({"average": True}, "average=True: a number"),
        ({"operators": dataclasses.replace(pjax.EXACT, weighted=True)}, "displacements have no weights"),
        ({"operators": "exact"}, "operators='exact': pass pjax.EXACT"),
    ],
)
def test_what_no_update_can_honour_is_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Displacement(**({"transform": optax.sgd(1.0)} | options))


def test_an_average_is_that_of_the_parameters_that_move():
    params, loss = _network(2, 8, jnp.float32)
    plain, averaging = (Displacement(optax.adam(0.1), average=average) for average in (0.0, 0.5))
    mean, state = params, averaging.init(params)
    moving, plain_state = params, plain.init(params)
    known = params
    for n in range(12):
        moving, plain_state, plain_loss = plain.update(loss, moving, plain_state)
        mean, state, loss_of_mean = averaging.update(loss, mean, state)
        kept = min(0.5, (1 + n) / (10 + n))
        known = jax.tree.map(lambda a, p, kept=kept: kept * a + (1 - kept) * p, known, moving)
        assert loss_of_mean == plain_loss
    for name, expected in known.items():
        np.testing.assert_allclose(mean[name], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(state.iterate[name], moving[name])
        assert mean[name].dtype == jnp.float32


def test_a_transformation_that_is_no_key_is_named():
    class Unhashable(Kept):
        __hash__ = None  # type: ignore[assignment]

    with pytest.raises(TypeError, match="it has to be hashable"):
        Displacement(Unhashable())


def _cosines(found, gradients):
    return {
        name: -np.vdot(move, gradients[name]) / np.linalg.norm(move) / np.linalg.norm(gradients[name])
        for name, move in found.items()
    }


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("skip", [False, True])
def test_displacements_become_those_of_backprop_as_targets_come_near(skip):
    params, loss = _network(3, 8, jnp.float64, skip)
    operators = dataclasses.replace(pjax.EXACT, prox_lambda=1e-4)
    gradients = jax.grad(lambda p: loss(p).sum())(params)

    swept = _swept(Displacement(optax.sgd(1.0), 1e-3, "element", operators=operators), loss, params)
    assert min(_cosines(swept, gradients).values()) > 0.9999


GRADIENTS = {
    "sum": lambda x, w: jnp.sum(x * x, 1),
    "mean": lambda x, w: jnp.mean(x * x, 0),
    "max": lambda x, w: jnp.max(jax.nn.relu(x), 1),  # zeros that are equal
    "maximum": lambda x, w: jnp.maximum(x, w),
    "difference": lambda x, w: -2.5 * x - w / 3,
    "product": lambda x, w: x * w,
    "relu of a sum": lambda x, w: jax.nn.relu(x + w),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("fun", GRADIENTS.values(), ids=GRADIENTS)
def test_every_rule_becomes_a_derivative_as_targets_come_near(fun):
    """Beside a way around it, so that its own factor has to be right."""
    params = {name: jax.random.normal(jax.random.key(i), (6, 4)) - 0.5 for i, name in enumerate("xwb")}

    def loss(p):
        beside = p["b"] + p["x"]
        return pjax.nn.squared_error(jnp.concatenate([fun(p["x"], p["w"]).ravel(), beside.ravel()])[None], goal)

    size = fun(params["x"], params["w"]).size + 24
    goal = jax.random.normal(jax.random.key(9), (1, size))
    operators = dataclasses.replace(pjax.EXACT, prox_lambda=1e-4)
    swept = _swept(Displacement(optax.sgd(1.0), 1e-3, operators=operators), loss, params)
    gradients = jax.grad(lambda p: loss(p).sum())(params)
    factor = swept["b"] / gradients["b"]
    np.testing.assert_allclose(factor, factor[0, 0], rtol=1e-6)
    for name in "xw":
        np.testing.assert_allclose(swept[name], factor[0, 0] * gradients[name], rtol=1e-4, atol=1e-9)


def test_a_rule_that_changes_a_length_is_made_good_for_on_average(request):
    pairs_p = rules.defprimitive("pair_sum", lambda x: x[..., 0::2] + x[..., 1::2])
    pjax.defproj(pairs_p, rules.Linear(lambda x: x[..., 0::2] + x[..., 1::2]))
    request.addfinalizer(lambda: [table.pop(pairs_p) for table in (rules.projection_rules, displacement_rules)])
    params = {"w": jax.random.normal(jax.random.key(0), (3, 4))}

    def loss(p):
        return pjax.nn.squared_error(pairs_p.bind(p["w"]), jnp.zeros((3, 2)))

    swept = {gain: _swept(Displacement(optax.sgd(1.0), gain=gain), loss, params)["w"] for gain in ("node", "element")}
    np.testing.assert_allclose(swept["element"], swept["node"], rtol=1e-6)
    assert np.any(swept["node"])


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_state_of_another_method_is_named(average):
    params, loss = _network(1, 4, jnp.float32)
    other = Displacement(optax.sgd(1.0), average=0.9 - average)
    with pytest.raises(TypeError, match="the state is of a method with another average"):
        Displacement(optax.sgd(1.0), average=average).update(loss, params, other.init(params))


@pytest.mark.parametrize("gain", ["node", "element"])
def test_a_large_constant_is_made_good_for(gain):
    """Its node follows all but a hundred millionth of what it is given, which no difference of values tells."""
    params = {"w": jax.random.normal(jax.random.key(0), (3, 4))}

    def loss(p):
        return pjax.nn.squared_error(1e4 * p["w"], jnp.zeros((3, 4)))

    swept = _swept(Displacement(optax.sgd(1.0), 1e-3, gain), loss, params)
    # From a target D away, w moves by D / (1 + 1e-8) / 1e4 and the factor is 1 + 1e8.
    distance = -10 / 11 * 1e4 * params["w"]
    np.testing.assert_allclose(swept["w"], 1e-3 * 1e4 * distance, rtol=1e-5)


def _images(model):
    """Parameters of a convolutional network and its loss on a batch."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, y = jax.random.normal(keys[0], (6, 5, 5, 2)), jax.random.randint(keys[1], (6,), 0, 3)
    params = jax.tree.map(lambda a: a.astype(jnp.float64), model.init(keys[2]))
    return params, lambda p: pjax.nn.cross_entropy(model.apply(p, x), y)


@pytest.mark.usefixtures("x64")
def test_convolutions_and_pooling_are_swept():
    params, loss = _images(CNN(2, 3, 3))
    operators = dataclasses.replace(pjax.EXACT, prox_lambda=1e-4)
    gradients = jax.grad(lambda p: loss(p).sum())(params)
    swept = _swept(Displacement(optax.sgd(1.0), 1e-3, "element", operators=operators), loss, params)
    assert min(_cosines(swept, gradients).values()) > 0.999


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("gain", ["fan_out", "element"])
def test_as_many_sweeps_as_steps_reach_back_to_the_start_of_a_recurrence(gain):
    model = RNN(5, 4, 6, 4)
    keys = jax.random.split(jax.random.key(0), 3)
    tokens, y = (jax.random.randint(key, (4, 3), 0, 5) for key in keys[:2])
    params = jax.tree.map(lambda a: a.astype(jnp.float64), model.init(keys[2]))

    def swept(sweeps, unroll):
        method = Displacement(optax.sgd(1.0), 0.1, gain, sweeps)
        return _swept(method, lambda p: pjax.nn.cross_entropy(model.apply(p, tokens, False, unroll), y), params)

    known, found, fewer = swept(1, unroll=True), swept(4, unroll=False), swept(2, unroll=False)
    for name, move in known.items():
        np.testing.assert_allclose(found[name], move, rtol=1e-8, atol=1e-14)
    assert any(not np.allclose(fewer[name], move, rtol=1e-3, atol=0) for name, move in known.items())


def test_a_layer_of_signs_is_trained_that_gradients_leave_as_it_is():
    """A ring around a disc, of which no sum of 32 fixed half-planes through the middle tells."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.uniform(keys[0], (512, 2), jnp.float32, -2, 2)
    y = (jnp.sum(x * x, -1) > 1.5).astype(jnp.int32)
    start = {
        "bias": jnp.zeros(32),
        "hidden": jax.random.normal(keys[1], (2, 32)),
        "out": jax.random.normal(keys[2], (32, 2)) / 4,
    }

    def logits(p):
        a = x @ p["hidden"]
        return jnp.sign(a + jnp.broadcast_to(p["bias"], a.shape)) @ p["out"]

    def accuracy(p):
        return float(jnp.mean(jnp.argmax(logits(p), -1) == y))

    def loss(p):
        return pjax.nn.cross_entropy(logits(p), y)

    operators = dataclasses.replace(pjax.EXACT, prox_lambda=1.0, step_margin=0.3)
    method = Displacement(optax.adam(1e-2), 10.0, operators=operators)
    params, state = start, method.init(start)
    for _ in range(400):
        params, state, _ = method.update(loss, params, state)
    gradients = jax.grad(lambda p: loss(p).mean())(start)
    assert not np.any(gradients["hidden"])
    assert accuracy(params) > 0.9 > jnp.mean(y) + 0.1  # of the more frequent label
