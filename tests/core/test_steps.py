"""Projections of steps: quantisation and the sign, with and without a margin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pjax_core import projections, rules

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("weight", [1, 7.5])
@pytest.mark.parametrize("levels", [2, 3, 64])
def test_quantize_is_theorem_9(levels, weight):
    """All k candidates on closed intervals."""
    alpha = 1.3
    z = np.linspace(-alpha, alpha, levels)
    ends = np.concatenate([[-np.inf], (z[1:] + z[:-1]) / 2, [np.inf]])
    rng = np.random.default_rng(7)
    x, target = 2 * rng.normal(size=(2, 2000))
    x[:levels], target[levels : 2 * levels] = ends[:levels].clip(-5), z
    candidates = np.clip(x[:, None], ends[:-1], ends[1:])
    least = ((candidates - x[:, None]) ** 2 + weight * (z - target[:, None]) ** 2).min(1)
    u, y = projections.project_quantize(jnp.asarray(x), jnp.asarray(target), weight, levels=levels, scale=alpha)
    index = np.abs(np.asarray(y)[:, None] - z).argmin(1)
    np.testing.assert_allclose(y, z[index], atol=1e-12)
    assert bool(np.all((u >= ends[index] - 1e-12) & (u <= ends[index + 1] + 1e-12)))
    np.testing.assert_allclose((u - x) ** 2 + weight * (y - target) ** 2, least, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weight", [1.0, 7.5])
@pytest.mark.parametrize("margin", [0.2, 0.5, 1.5])
@pytest.mark.parametrize("levels", [2, 3, 6])
def test_a_margin_keeps_inputs_inside_their_intervals(levels, margin, weight):
    """The nearest of all points of the set, level by level: between levels no more than half of the distance."""
    alpha = 1.5
    points = np.linspace(-alpha, alpha, levels)
    gap = points[1] - points[0]
    x, target = np.asarray(4 * jax.random.normal(jax.random.key(0), (2, 500)))
    u, y = projections.project_quantize(
        jnp.asarray(x), jnp.asarray(target), weight, levels=levels, scale=alpha, margin=margin
    )
    low = points - gap / 2 + min(margin, 0.5) * gap
    high = points + gap / 2 - min(margin, 0.5) * gap
    low[0], low[-1], high[0], high[-1] = (
        -np.inf,
        alpha - gap / 2 + margin * gap,
        -alpha + gap / 2 - margin * gap,
        np.inf,
    )
    nearest = np.clip(x[:, None], low, high)
    cost = (nearest - x[:, None]) ** 2 + weight * (points - target[:, None]) ** 2
    level = np.argmin(np.abs(points - np.asarray(y)[:, None]), -1)
    np.testing.assert_allclose(points[level], y, atol=1e-12)
    np.testing.assert_allclose(u, nearest[np.arange(500), level], atol=1e-12)
    np.testing.assert_allclose(cost[np.arange(500), level], cost.min(-1), atol=1e-12)


@pytest.mark.parametrize("weight", [1.0, 7.5])
def test_a_margin_keeps_a_sign_away_from_zero(weight):
    x, target = np.asarray(4 * jax.random.normal(jax.random.key(0), (2, 500)))
    u, y = projections.project_sign(jnp.asarray(x), jnp.asarray(target), weight, margin=0.75)
    lines = np.stack([np.maximum(x, 1.5), np.minimum(x, -1.5)]), np.array([[1.0], [-1.0]])
    cost = (lines[0] - x) ** 2 + weight * (lines[1] - target) ** 2
    np.testing.assert_allclose((u - x) ** 2 + weight * (y - target) ** 2, cost.min(0), atol=1e-12)
    assert bool(jnp.all((jnp.sign(u) == y) & (jnp.abs(u) >= 1.5)))


def test_quantize_takes_midpoints_down_and_has_no_slope():
    x = jnp.array([-9, -1, -0.999, 0.5, 1, 1.001, 9])
    np.testing.assert_allclose(rules.quantize_p.bind(x, levels=3, scale=2.0), [-2, -2, 0, 0, 0, 2, 2])
    np.testing.assert_array_equal(jax.grad(lambda x: rules.quantize_p.bind(x, levels=3, scale=2.0).sum())(x), 0)
    for levels, scale in ((1, 1.0), (3, 0.0)):
        with pytest.raises(ValueError, match="at least 2 levels and a positive scale"):
            rules.quantize_p.bind(x, levels=levels, scale=scale)


def test_steps_enter_an_interval_through_its_open_end():
    """The nearest point of the closure: x on the boundary, the output of the interval above."""
    u, y = projections.project_quantize(jnp.asarray(0.9), jnp.asarray(2.0), levels=3, scale=2.0)
    assert (u, y, projections.quantize(u, levels=3, scale=2.0)) == (1, 2, 0)
    u, y = projections.project_sign(jnp.asarray(-0.1), jnp.asarray(1.0))
    assert (u, y, jnp.sign(u)) == (0, 1, 0)
    assert projections.project_sign(jnp.asarray(0.1), jnp.asarray(0.1)) == (0, 0)
