"""Displacements: the same as differences of projections, with digits where differences have none."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.extend.core import primitives as P

import pjax_core as pjax
from pjax_core import displacement, projections, rules
from pjax_core.copies import Edges
from pjax_core.counting import count_edges
from pjax_core.displacement import Displacement
from pjax_core.trace import trace_with_arrays
from tests.core.networks import CNN, RNN
from tests.core.test_projections import CASES, SAMPLES

PARAMS = {
    P.reduce_sum_p: {"axes": (1,)},
    rules.mean_p: {"axes": (-1,)},
    P.reduce_max_p: {"axes": (1,)},
    rules.quantize_p: {"levels": 4, "scale": 1.5},
}
BILINEAR = {
    P.dot_general_p: (lax.dot, (6, 5), (5, 3)),
    P.mul_p: (lax.mul, (4, 3), (4, 3)),
    P.conv_general_dilated_p: (lambda x, w: lax.conv_general_dilated(x, w, (1,), "VALID"), (2, 3, 8), (4, 3, 3)),
}
LOSSES = {rules.cross_entropy_p: {}, rules.squared_error_p: {}, rules.margin_p: {"margin": 1.0}}
STEPS = {rules.quantize_p, P.sign_p}
OPERATORS = {"exact": pjax.EXACT, "published": pjax.PUBLISHED}


class Kept:
    """Makes no step of what it is given, and keeps it as its state."""

    def init(self, params):
        return params

    def update(self, updates, state, params):
        return jax.tree.map(jnp.zeros_like, updates), updates


def _operands(prim):
    keys = jax.random.split(jax.random.key(1), 3)
    xs = [jax.random.normal(key, (SAMPLES, *shape)) for key, shape in zip(keys, CASES[prim].shapes, strict=False)]
    return (*xs, jnp.full_like(xs[0], -2.5)) if prim is rules.scale_p else tuple(xs)


def _displaced(prim, xs, distance, operators=pjax.EXACT):
    moves, left = rules.displace(prim, PARAMS.get(prim, {}), xs, distance, 1, operators)
    return [*moves, left]


def test_every_rule_is_tested():
    assert set(BILINEAR) == set(rules.bilinear_rules)
    assert {prim for prim in CASES if prim not in BILINEAR} == set(rules.projection_rules)
    assert set(LOSSES) == set(rules.loss_rules)
    # The margin's displacement is the difference of two numbers that are given.
    assert set(rules.displacement_rules) == {*rules.projection_rules, *LOSSES} - {rules.margin_p}


@pytest.mark.usefixtures("x64")
@pytest.mark.matrix
@pytest.mark.parametrize("operators", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("scale", [1e-3, 0.3, 10])
@pytest.mark.parametrize("prim", rules.projection_rules, ids=str)
def test_a_displacement_is_the_difference_of_projections(prim, scale, operators):
    xs = _operands(prim)
    distance = scale * jax.random.normal(jax.random.key(2), (SAMPLES,))
    target = prim.bind(*xs, **PARAMS.get(prim, {})) + distance
    projected, output = rules.projection_rules[prim](xs, target, 1, operators, **PARAMS.get(prim, {}))
    moves = [u - x for u, x in zip(projected, xs, strict=True)]
    # Nothing crosses a step for a small distance.
    assert any(bool(jnp.any(move != 0)) for move in moves) or (prim in STEPS and scale < 0.1)
    *found, left = _displaced(prim, xs, distance, operators)
    for move, difference in zip(found, moves, strict=True):
        np.testing.assert_allclose(move, difference, rtol=1e-6, atol=1e-12)
    # What operands absorb is no question at a step.
    assert (left is None) == (prim in STEPS)
    if left is not None:
        np.testing.assert_allclose(left, target - output, rtol=1e-6, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("prim", [prim for prim in rules.projection_rules if prim not in STEPS], ids=str)
def test_a_small_displacement_has_six_digits_in_32_bits(prim):
    xs = _operands(prim)
    xs32 = tuple(x.astype(jnp.float32) for x in xs)
    distance = 1e-12 * jax.random.normal(jax.random.key(2), (SAMPLES,), jnp.float32)
    ours = _displaced(prim, xs32, distance)
    # In 64 bits a displacement of 1e-4 is known from the test above; these rules are homogeneous so close to a point.
    known = _displaced(prim, tuple(x.astype(jnp.float64) for x in xs32), 1e8 * distance.astype(jnp.float64))
    assert any(bool(jnp.any(move != 0)) for move in ours)
    for move, expected in zip(ours, known, strict=True):
        assert move.dtype == jnp.float32
        far = jnp.abs(expected) > 1e-2  # a kink between
        np.testing.assert_allclose(jnp.where(far, 0, move), jnp.where(far, 0, 1e-8 * expected), rtol=1e-6, atol=0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("operators", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("prim", LOSSES, ids=str)
def test_a_losss_displacement_is_the_difference_of_projections(prim, operators):
    x = 3 * jax.random.normal(jax.random.key(1), (SAMPLES, 5))
    labels = jax.nn.one_hot(jnp.arange(SAMPLES) % 5, 5)
    for each in (labels, 0.9 * labels + 0.02):
        (move, still), left = rules.displace(prim, LOSSES[prim], (x, each), None, 1, operators)
        (projected, _), _ = rules.loss_rules[prim]((x, each), None, 1, operators, **LOSSES[prim])
        assert left is None
        assert not np.any(still)
        assert np.any(move)
        np.testing.assert_allclose(move, projected - x, rtol=1e-6, atol=1e-12)


def _nearly_solved(prim):
    """Operands of which every loss moves logits by about 1e-12, and one of them far from its kinks."""
    labels = jax.nn.one_hot(jnp.arange(SAMPLES) % 5, 5)
    noise = jax.random.uniform(jax.random.key(1), (SAMPLES, 5), jnp.float32, 0.5, 1.0)
    if prim is rules.cross_entropy_p:
        return 27 * labels + noise, labels
    if prim is rules.squared_error_p:
        return 1e-12 * noise, jnp.zeros_like(labels)
    return jnp.where(labels > 0, 2, 1e-12 * noise), labels


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("prim", LOSSES, ids=str)
def test_a_losss_small_displacement_has_six_digits_in_32_bits(prim):
    operands = tuple(a.astype(jnp.float32) for a in _nearly_solved(prim))
    (ours, _), _ = rules.displace(prim, LOSSES[prim], operands, None, 1, pjax.EXACT)
    in_64_bits = tuple(a.astype(jnp.float64) for a in operands)
    (known, _), _ = rules.displace(prim, LOSSES[prim], in_64_bits, None, 1, pjax.EXACT)
    assert ours.dtype == jnp.float32
    assert 1e-13 < jnp.max(jnp.abs(known)) < 1e-10
    # An exponential of -27 has 27 times the rounding of its argument.
    np.testing.assert_allclose(ours, known, rtol=27 * 2**-24 if prim is rules.cross_entropy_p else 1e-6, atol=0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("prim", [rules.quantize_p, P.sign_p], ids=str)
def test_a_step_moves_as_its_target_asks(prim):
    """With a margin projections also move an input that is nobody's business; displacements do not."""
    operators = dataclasses.replace(pjax.EXACT, step_margin=1.5)
    x = jnp.array([0.1, 0.1, 0.1, 0.1, -0.1, 4.0])
    params = {"levels": 2, "scale": 1.0} if prim is rules.quantize_p else {}
    value = prim.bind(x, **params)
    distance = jnp.array([0.0, 0.9, 1.1, -20.0, 20.0, 5.0])
    (projected,), _ = rules.projection_rules[prim]((x,), value + distance, 1, operators, **params)
    np.testing.assert_allclose(projected, [3, 3, 3, -3, 3, 4])
    (move,), left = rules.displace(prim, params, (x,), distance, 1, operators)
    assert left is None
    np.testing.assert_allclose(move, [0, 0, 2.9, -3.1, 3.1, 0])


@pytest.mark.usefixtures("x64")
def test_at_the_origin_of_a_sign_the_next_levels_are_half_as_far():
    operators = dataclasses.replace(pjax.EXACT, step_margin=0.5)
    distance = jnp.array([0.4, 0.6, -0.6])
    (move,), _ = rules.displace(P.sign_p, {}, (jnp.zeros(3),), distance, 1, operators)
    np.testing.assert_allclose(move, [0, 1, -1])


@pytest.mark.usefixtures("x64")
def test_between_levels_inputs_keep_half_the_margin_that_there_is():
    operators = dataclasses.replace(pjax.EXACT, step_margin=0.25)
    params = {"levels": 4, "scale": 1.5}  # levels a distance of 1 apart: -1.5, -0.5, 0.5, 1.5
    x = jnp.array([0.1, 0.1, 0.1, 0.1, 0.95])
    distance = jnp.array([0.0, 1.2, -1.2, 3.0, -0.6])
    (move,), left = rules.displace(rules.quantize_p, params, (x,), distance, 1, operators)
    assert left is None
    # One's own interval is 0 to 1, of which a quarter at each end is left free; the outermost have one end.
    np.testing.assert_allclose(x + move, [0.1, 1.25, -0.25, 1.25, 0.75], atol=1e-12)


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


def _zero_error(output):
    rows = output.reshape(-1, output.shape[-1])
    return pjax.nn.squared_error(rows, jnp.zeros_like(rows))


def _node(prim, dtype=jnp.float64):
    """A node of two parameters, their values and what the engine makes of the primitive."""
    fun, x_shape, w_shape = BILINEAR[prim]
    keys = jax.random.split(jax.random.key(3))
    params = {"w": jax.random.normal(keys[1], w_shape, dtype), "x": jax.random.normal(keys[0], x_shape, dtype)}
    graph, *_ = trace_with_arrays(lambda p: _zero_error(fun(p["x"], p["w"])), params)
    (node,) = (node for node in graph.nodes if node.primitive is prim)
    return node, (params["x"], params["w"])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("scale", [1e-3, 0.3])
@pytest.mark.parametrize("prim", BILINEAR, ids=str)
def test_a_dots_displacement_is_the_difference_of_projections(prim, scale):
    node, operands = _node(prim)
    distance = scale * jax.random.normal(jax.random.key(2), node.shape)
    moves, left = displacement._dots(node, operands, distance, pjax.EXACT, False)
    x, w = displacement.Dots(node).expand(*operands)
    target = node.evaluate(operands) + distance
    next_x, next_w, known, _ = projections.project_dot(x, w, target, 1, pjax.EXACT)
    differences = displacement.Dots(node).contract((next_x - x, next_w - w))
    for move, difference in zip([*moves, left], [*differences, target - known], strict=True):
        np.testing.assert_allclose(move, difference, rtol=1e-6, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("prim", BILINEAR, ids=str)
def test_a_dots_small_displacement_has_six_digits_in_32_bits(prim):
    node, operands = _node(prim, jnp.float32)
    distance = 1e-12 * jax.random.uniform(jax.random.key(2), node.shape, jnp.float32, 0.5, 1)
    ours, left = displacement._dots(node, operands, distance, pjax.EXACT, False)
    node64, _ = _node(prim)
    in_64_bits = [a.astype(jnp.float64) for a in (*operands, distance)]
    known, left64 = displacement._dots(node64, tuple(in_64_bits[:2]), in_64_bits[2], pjax.EXACT, False)
    for move, expected in zip([*ours, left], [*known, left64], strict=True):
        # A sum of terms of both signs has the digits of the terms.
        np.testing.assert_allclose(move, expected, rtol=1e-6, atol=1e-6 * float(jnp.max(jnp.abs(expected))))


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


def test_a_rule_that_changes_a_length_is_made_good_for_on_average(monkeypatch):
    pairs_p = rules.defprimitive("pair_sum", lambda x: x[..., 0::2] + x[..., 1::2])
    project, displace = rules._linear(lambda x: x[..., 0::2] + x[..., 1::2])
    monkeypatch.setitem(rules.projection_rules, pairs_p, project)
    monkeypatch.setitem(rules.displacement_rules, pairs_p, displace)
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
