"""Every registered rule against the definition of a projection, and against slow solutions."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.extend.core import primitives as P

import pjax_core as pjax
from pjax_core import projections, rules
from pjax_core.operators import Operators

pytestmark = pytest.mark.usefixtures("x64")

SAMPLES = 200


def _bilinear(xs, target, weight, operators):
    x, w, output, _ = projections.project_dot(xs[0], xs[1], target, weight, operators)
    return (x, w), output


def _scaled(xs, target, weight, operators):
    (x, factor), output = rules.projection_rules[rules.scale_p](
        (xs[0], jnp.full_like(xs[0], -2.5)), target, weight, operators
    )
    assert bool(jnp.all(factor == -2.5))
    return (x,), output


@dataclasses.dataclass(frozen=True)
class Case:
    """A rule on batches of small problems: ``value`` is the primitive, ``exact_in`` who claims exactness."""

    shapes: tuple[tuple[int, ...], ...]
    rule: Callable[..., Any]
    value: Callable[..., Any]
    exact_in: tuple[Operators, ...] = (pjax.EXACT, pjax.PUBLISHED)
    output: tuple[int, ...] = ()


def _registered(prim, **params):
    return lambda xs, y, n, ops: rules.projection_rules[prim](xs, y, n, ops, **params)


CASES = {
    rules.identity_p: Case(((),), _registered(rules.identity_p), lambda x: x),
    P.add_p: Case(((), ()), _registered(P.add_p), lambda x, y: x + y),
    P.sub_p: Case(((), ()), _registered(P.sub_p), lambda x, y: x - y),
    P.neg_p: Case(((),), _registered(P.neg_p), lambda x: -x),
    P.reduce_sum_p: Case(((4,),), _registered(P.reduce_sum_p, axes=(1,)), lambda x: x.sum(-1)),
    rules.sum_relu_p: Case(
        ((), (), ()), _registered(rules.sum_relu_p), lambda *xs: jnp.maximum(sum(xs), 0), (pjax.EXACT,)
    ),
    rules.scale_p: Case(((),), lambda xs, y, n, ops: _scaled(xs, y, n, ops), lambda x: -2.5 * x),
    P.dot_general_p: Case(
        ((6,), (6,)),
        _bilinear,
        lambda x, w: (x * w).sum(-1),
        (pjax.EXACT,),
    ),
    P.mul_p: Case(
        ((1,), (1,)),
        _bilinear,
        lambda x, w: (x * w).sum(-1),
        (pjax.EXACT,),
    ),
}


def _penalty(x, labels):
    """What the proximal operator of the cross-entropy minimises beside half the squared distance."""
    return 5 * (jax.nn.logsumexp(x, axis=-1) - jnp.sum(labels * x, -1))


def _indicator(x, labels):
    """Zero on the margin constraint's set."""
    return jnp.where(jnp.all(jnp.where(labels > 0, x >= 1.5, x <= 0), -1), 0, jnp.inf)


LOSS_CASES = {rules.cross_entropy_p: (_penalty, {}), rules.margin_p: (_indicator, {"margin": 1.5})}


def test_every_rule_has_a_case():
    assert set(CASES) == set(rules.projection_rules) | set(rules.bilinear_rules)
    assert set(LOSS_CASES) == set(rules.loss_rules)


@pytest.mark.parametrize("scale", [0.1, 1, 10, 100])
@pytest.mark.parametrize("prim", LOSS_CASES, ids=str)
def test_definition_of_losses(prim, scale):
    """No competitor has a smaller penalty plus half the squared distance; labels stay as they are."""
    penalty, params = LOSS_CASES[prim]
    x = scale * jax.random.normal(jax.random.key(0), (SAMPLES, 4))
    labels = jax.nn.one_hot(jnp.arange(SAMPLES) % 4, 4)
    (answer, same), output = rules.loss_rules[prim]((x, labels), None, 1, pjax.EXACT, **params)
    assert output is None
    np.testing.assert_array_equal(same, labels)

    def objective(u):
        return penalty(u, labels) + ((u - x) ** 2).sum(-1) / 2

    best = objective(answer)
    assert bool(jnp.all(jnp.isfinite(best)))
    for i, size in enumerate([0, 1e-4, 1e-2, 1, scale] * 4):
        noise = size * jax.random.normal(jax.random.key(i), x.shape)
        for other in (answer + noise, x + noise):
            assert bool(jnp.all(best <= objective(other) * (1 + 1e-12) + 1e-9))


def _squared_distance(xs, ys, output, target, weight):
    flat = [((a - b) ** 2).reshape(SAMPLES, -1).sum(-1) for a, b in zip(xs, ys, strict=True)]
    return sum(flat) + weight * (output - target) ** 2


@pytest.mark.parametrize("weight", [1, 7.5])
@pytest.mark.parametrize("scale", [0.1, 1, 10, 100])
@pytest.mark.parametrize("prim", CASES, ids=str)
def test_definition(prim, scale, weight):
    """No point of the graph is nearer than the answer; the competitors include the input itself."""
    case = CASES[prim]
    keys = iter(jax.random.split(jax.random.key(5), 100))
    xs = tuple(jax.random.normal(next(keys), (SAMPLES, *s)) for s in case.shapes)
    target = scale * jax.random.normal(next(keys), (SAMPLES,))
    for operators in case.exact_in:
        answer, output = case.rule(xs, target, weight, operators)
        np.testing.assert_allclose(case.value(*answer), output, atol=1e-9 * scale, rtol=1e-7)
        best = _squared_distance(answer, xs, output, target, weight)
        competitors = [xs, tuple(map(jnp.zeros_like, xs)), tuple(-a for a in answer)]
        for size in (1e-4, 1e-2, 1, scale):
            competitors += [tuple(a + size * jax.random.normal(next(keys), a.shape) for a in answer) for _ in range(5)]
        for ys in competitors:
            other = _squared_distance(ys, xs, case.value(*ys), target, weight)
            assert bool(jnp.all(best <= other * (1 + 1e-9) + 1e-9)), (scale, operators)
        # A projection is idempotent.
        again, output_again = case.rule(answer, output, weight, operators)
        for a, b in zip((*answer, output), (*again, output_again), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6 * scale)


@pytest.mark.parametrize("scale", [0.1, 1, 20, 1e4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dot_root_is_the_bracketed_root(scale, dtype):
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(2, 300, 5)).astype(dtype)
    z = (scale * rng.normal(size=300)).astype(dtype)
    p, q = (x * w).sum(-1), (x * x + w * w).sum(-1)
    roots = projections.dot_root(jnp.asarray(p), jnp.asarray(q), jnp.asarray(z), 1, pjax.EXACT)
    for p_, q_, z_, root in zip(*(a.astype(float) for a in (p, q, z, roots)), strict=True):
        f = lambda t: (1 + t * t) * p_ + t * q_ + (t - z_) * (1 - t * t) ** 2  # noqa: B023, E731
        assert abs(root - scipy.optimize.brentq(f, -1, 1, xtol=1e-14)) < 1e-6
    assert roots.dtype == dtype


def test_published_dot_root_is_ten_newton_steps_from_zero_and_can_leave_the_interval():
    rng = np.random.default_rng(2)
    p, q, z = rng.normal(size=400), 2 + rng.random(400), 20 * rng.normal(size=400)
    root = np.zeros(400)
    for _ in range(10):
        s = 1 - root**2
        value = ((1 + root**2) * p + root * q) / s**2 - z + root
        slope = (2 * p * root * (3 + root**2) + q * (1 + 3 * root**2)) / s**3 + 1
        root = root - value / slope
    ours = projections.dot_root(jnp.asarray(p), jnp.asarray(q), jnp.asarray(z), 1, pjax.PUBLISHED)
    calm = np.abs(root) < 2  # runaway iterates amplify rounding
    np.testing.assert_allclose(ours[calm], root[calm], rtol=1e-6)
    assert np.mean(np.abs(root) >= 1) > 0.1


@pytest.mark.parametrize("scale", [0.1, 1, 10, 100])
@pytest.mark.parametrize("lam", [0.5, 5, 100])
def test_exact_prox_solves_equation_49(scale, lam):
    x = scale * jax.random.normal(jax.random.key(0), (500, 10))
    labels = jax.nn.one_hot(jnp.arange(500) % 10, 10)
    u = projections.prox_cross_entropy(x, labels, dataclasses.replace(pjax.EXACT, prox_lambda=lam))
    assert float(jnp.abs(u - x - lam * (labels - jax.nn.softmax(u))).max()) < 1e-10
    single = projections.prox_cross_entropy(jnp.float32(x), jnp.float32(labels), pjax.EXACT)
    residual = single - jnp.float32(x) - 5 * (labels - jax.nn.softmax(jnp.float64(single)))
    assert float(jnp.abs(residual).max()) < 1e-6 * max(scale, 10)


def test_prox_against_a_minimiser():
    rng = np.random.default_rng(3)
    x = 3 * rng.normal(size=(5, 4))
    labels = np.eye(4)[[0, 1, 2, 3, 0]]
    ours = projections.prox_cross_entropy(jnp.asarray(x), jnp.asarray(labels), pjax.EXACT)

    def objective(u, x, label):
        return 5 * (scipy.special.logsumexp(u) - label @ u) + 0.5 * ((u - x) ** 2).sum()

    for x_, label, u in zip(x, labels, ours, strict=True):
        best = scipy.optimize.minimize(objective, x_, (x_, label), options={"gtol": 1e-10})
        np.testing.assert_allclose(u, best.x, atol=1e-5)


def test_published_prox_is_ten_sweeps_and_ends_in_a_two_cycle():
    x = 3 * jax.random.normal(jax.random.key(0), (500, 10))
    labels = jax.nn.one_hot(jnp.arange(500) % 10, 10)
    u = x
    for _ in range(10):
        u = x + 5 * (labels - jax.nn.softmax(u))
    np.testing.assert_allclose(projections.prox_cross_entropy(x, labels, pjax.PUBLISHED), u)
    exact = projections.prox_cross_entropy(x, labels, pjax.EXACT)
    assert float(jnp.abs(u - exact).mean()) > 0.1


def test_published_sum_relu_misses_a_third_of_negative_targets():
    xs = tuple(jax.random.normal(k, (9000,)) for k in jax.random.split(jax.random.key(1)))
    target = jax.random.normal(jax.random.key(2), (9000,))

    def squared_distance(exact):
        us, y = projections.project_sum_relu(xs, target, exact=exact)
        return sum((u - x) ** 2 for u, x in zip(us, xs, strict=True)) + (y - target) ** 2

    missed = squared_distance(False) > squared_distance(True) * (1 + 1e-9)
    assert 0.28 < float(missed[target < 0].mean()) < 0.40
    assert not bool(missed[target >= 0].any())


def test_sum_relu_against_a_grid():
    rng = np.random.default_rng(4)
    grid = np.linspace(-4, 4, 401)
    u, v = np.meshgrid(grid, grid, indexing="ij")
    for _ in range(50):
        x, y, target = 1.5 * rng.normal(size=3)
        (a, b), out = projections.project_sum_relu((jnp.asarray(x), jnp.asarray(y)), jnp.asarray(target))
        ours = (a - x) ** 2 + (b - y) ** 2 + (out - target) ** 2
        brute = ((u - x) ** 2 + (v - y) ** 2 + (np.maximum(u + v, 0) - target) ** 2).min()
        assert abs(float(ours) - brute) < 0.05
        assert float(ours) <= brute + 1e-12


def test_margin_is_the_nearest_point_of_its_set():
    x = jax.random.normal(jax.random.key(0), (1000, 4))
    labels = jax.nn.one_hot(jnp.arange(1000) % 4, 4)
    u = projections.project_margin(x, labels, margin=1.5)
    assert bool(jnp.all(jnp.where(labels > 0, u >= 1.5, u <= 0)))
    inside = jnp.where(labels > 0, x >= 1.5, x <= 0)
    np.testing.assert_array_equal(u[inside], x[inside])
    np.testing.assert_array_equal(u[~inside], jnp.where(labels > 0, 1.5, 0.0)[~inside])


@pytest.mark.parametrize(
    ("field", "value"), [("consensus", "means"), ("prox_lambda", 0), ("dot_newton_steps", 0), ("prox_sweeps", -1)]
)
def test_operators_refuse_impossible_values(field, value):
    with pytest.raises(ValueError, match=field):
        Operators(**{field: value})
