"""Iterations inside projections: the root of a dot product (Theorem 7), the prox of cross-entropy (Theorem 11)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

import pjax
from pjax_core import projections

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("scale", [0.1, 1, 20, 1e4])
@pytest.mark.parametrize("weight", [1, 7.5])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-11)])
def test_dot_root_is_the_bracketed_root(scale, weight, dtype, tolerance):
    """Also of vectors that are nearly equal up to sign, which have roots near a pole."""
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(2, 400, 5))
    if dtype == "float64":  # the rounding of p and q moves such a root
        w[:100] = np.where(np.arange(100) % 2, 1, -1)[:, None] * x[:100] + 1e-3 * w[:100]
    z, p, q = (a.astype(dtype) for a in (scale * rng.normal(size=400), (x * w).sum(-1), (x * x + w * w).sum(-1)))
    roots = projections.dot_root(projections.sum_and_difference, [p, q], jnp.asarray(z), weight, pjax.EXACT)
    for p_, q_, z_, root in zip(*(a.astype(float) for a in (p, q, z, roots)), strict=True):
        f = lambda t: (1 + t * t) * p_ + t * q_ + (t / weight - z_) * (1 - t * t) ** 2  # noqa: B023, E731
        assert abs(root - scipy.optimize.brentq(f, -1, 1, xtol=1e-15)) < tolerance
    assert roots.dtype == dtype


def test_a_fixed_number_of_newton_steps_does_not_depend_on_other_elements():
    p, q, target = jnp.array([0.38726, 0.0]), jnp.array([0.93548, 1.0]), jnp.array([-0.14917, 50.0])
    for steps in (1, 2):
        operators = pjax.Operators(dot_newton_steps=steps)
        both, alone = (
            projections.dot_root(projections.sum_and_difference, [p[:n], q[:n]], target[:n], 1, operators)
            for n in (2, 1)
        )
        assert both[0] == alone[0]
    np.testing.assert_allclose(alone, -0.31, atol=0.01)


def test_roots_at_a_pole_end_the_iteration(monkeypatch):
    """A target out of reach, whose Newton steps never get small, and a root nearer to the pole than rounding shows."""
    rounds = []
    loop = jax.lax.while_loop

    def counted(unfinished, body, start):
        end = loop(unfinished, body, start)
        if end[1].dtype == jnp.int32:  # of the iteration, not of what decides whether there is one
            rounds.append(end[1])
        return end

    monkeypatch.setattr(jax.lax, "while_loop", counted)
    p, q, target = (jnp.array(a, jnp.float32) for a in ([2, 0, 0.1], [4, 0, 3], [-9, 5, 1e6]))
    with jax.disable_jit():
        roots = projections.dot_root(projections.sum_and_difference, [p, q], target, 1, pjax.EXACT)
    np.testing.assert_allclose(roots, [-1, 1, 1], atol=2e-3)
    assert 0 < int(rounds[-1]) < 50


def test_exact_prox_ignores_how_far_a_masked_class_is():
    x = jnp.array([[0, 5, 1, -1]], jnp.float32)
    labels = jnp.array([[0, 0.25, 0.75, 0]], jnp.float32)
    expected = projections.prox_cross_entropy(x[:, :3], labels[:, :3], pjax.EXACT)
    for low in (-1e4, -1e9, -3e38, -jnp.inf):
        u = projections.prox_cross_entropy(x.at[0, 3].set(low), labels, pjax.EXACT)
        np.testing.assert_allclose(u[:, :3], expected, atol=1e-6)
        assert u[0, 3] == low


def test_dot_root_of_equal_vectors_stops_inside_the_bracket():
    x, target = jnp.array([1.0, 1, 0, 0, 0]), jnp.array([-9, 9, -9, 0.1, 9])
    roots = projections.dot_root(projections.sum_and_difference, [x * x, 2 * x * x], target, 1, pjax.EXACT)
    assert float(jnp.abs(roots).max()) < 1
    np.testing.assert_allclose(roots[jnp.array([0, 2, 3, 4])], [-1, -1, 0.1, 1], atol=1e-6)
    root = float(roots[1])
    np.testing.assert_allclose(1 / (1 - root) ** 2 + root, 9, rtol=1e-6)


def test_published_dot_root_is_ten_newton_steps_from_zero_and_can_leave_the_interval():
    rng = np.random.default_rng(2)
    p, q, z = rng.normal(size=400), 2 + rng.random(400), 20 * rng.normal(size=400)
    root = np.zeros(400)
    for _ in range(10):
        s = 1 - root**2
        value = ((1 + root**2) * p + root * q) / s**2 - z + root
        slope = (2 * p * root * (3 + root**2) + q * (1 + 3 * root**2)) / s**3 + 1
        root = root - value / slope
    ours = projections.dot_root(projections.sum_and_difference, [p, q], jnp.asarray(z), 1, pjax.PUBLISHED)
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


def test_squared_error_prox_is_closed_and_the_same_in_both_presets():
    x, targets = jnp.array([1.0, -2]), jnp.array([3.0, 0])
    for preset in (pjax.EXACT, pjax.PUBLISHED):
        np.testing.assert_allclose(projections.prox_squared_error(x, targets, preset), (x + 10 * targets) / 11)
