"""The rules of displacements: the same as differences of projections, with digits where differences have none."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import primitives as P

import pjax
from pjax import displacement
from pjax.rules import displace, displacement_rules
from pjax_core import projections, rules
from pjax_core.trace import trace_with_arrays
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


def _operands(prim):
    keys = jax.random.split(jax.random.key(1), 3)
    xs = [jax.random.normal(key, (SAMPLES, *shape)) for key, shape in zip(keys, CASES[prim].shapes, strict=False)]
    return (*xs, jnp.full_like(xs[0], -2.5)) if prim is rules.scale_p else tuple(xs)


def _displaced(prim, xs, distance, operators=pjax.EXACT):
    moves, left = displace(prim, PARAMS.get(prim, {}), xs, distance, 1, operators)
    return [*moves, left]


def test_every_rule_is_tested():
    assert set(BILINEAR) == set(rules.bilinear_rules)
    assert {prim for prim in CASES if prim not in BILINEAR} == set(rules.projection_rules)
    assert set(LOSSES) == set(rules.loss_rules)
    # The margin's displacement is the difference of two numbers that are given.
    assert set(displacement_rules) == {*rules.projection_rules, *LOSSES} - {rules.margin_p}


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
        (move, still), left = displace(prim, LOSSES[prim], (x, each), None, 1, operators)
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
    (ours, _), _ = displace(prim, LOSSES[prim], operands, None, 1, pjax.EXACT)
    in_64_bits = tuple(a.astype(jnp.float64) for a in operands)
    (known, _), _ = displace(prim, LOSSES[prim], in_64_bits, None, 1, pjax.EXACT)
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
    (move,), left = displace(prim, params, (x,), distance, 1, operators)
    assert left is None
    np.testing.assert_allclose(move, [0, 0, 2.9, -3.1, 3.1, 0])


@pytest.mark.usefixtures("x64")
def test_at_the_origin_of_a_sign_the_next_levels_are_half_as_far():
    operators = dataclasses.replace(pjax.EXACT, step_margin=0.5)
    distance = jnp.array([0.4, 0.6, -0.6])
    (move,), _ = displace(P.sign_p, {}, (jnp.zeros(3),), distance, 1, operators)
    np.testing.assert_allclose(move, [0, 1, -1])


@pytest.mark.usefixtures("x64")
def test_between_levels_inputs_keep_half_the_margin_that_there_is():
    operators = dataclasses.replace(pjax.EXACT, step_margin=0.25)
    params = {"levels": 4, "scale": 1.5}  # levels a distance of 1 apart: -1.5, -0.5, 0.5, 1.5
    x = jnp.array([0.1, 0.1, 0.1, 0.1, 0.95])
    distance = jnp.array([0.0, 1.2, -1.2, 3.0, -0.6])
    (move,), left = displace(rules.quantize_p, params, (x,), distance, 1, operators)
    assert left is None
    # One's own interval is 0 to 1, of which a quarter at each end is left free; the outermost have one end.
    np.testing.assert_allclose(x + move, [0.1, 1.25, -0.25, 1.25, 0.75], atol=1e-12)


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
