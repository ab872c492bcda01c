"""Every registered rule against the definition of a projection, and against slow solutions."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import primitives as P

import pjax
from pjax_core import projections, rules
from pjax_core.operators import Operators

pytestmark = pytest.mark.usefixtures("x64")

SAMPLES = 200


def _bilinear(fun, *shapes):
    """The registered copies of operands with one output, one of each, projected as the engine does."""

    def expand(x, w):
        (eqn,) = jax.make_jaxpr(fun)(x, w).eqns
        return rules.bilinear_rules[eqn.primitive].expand(x, w, **eqn.params)

    def rule(xs, target, weight, operators):
        copies = jax.vmap(expand)(*xs)
        x, w = (a.reshape(SAMPLES, -1) for a in copies)
        x, w, output, _ = projections.project_dot(x, w, target, weight, operators)
        projected = tuple(a.reshape(c.shape) for a, c in zip((x, w), copies, strict=True))
        (answer,) = jax.linear_transpose(lambda xs: jax.vmap(expand)(*xs), xs)(projected)
        return answer, output

    def value(x, w):
        return jax.vmap(fun)(x, w).reshape(SAMPLES)

    return Case(shapes, rule, value, (pjax.EXACT,), ties=False)  # Theorem 7 excludes equal vectors


def _convolution(x, w):
    return lax.conv_general_dilated(x, w, (1,), "VALID")


def _scaled(xs, target, weight, operators):
    (x, factor), output = rules.projection_rules[rules.scale_p](
        (xs[0], jnp.full_like(xs[0], -2.5)), target, weight, operators
    )
    assert bool(jnp.all(factor == -2.5))
    return (x,), output


@dataclasses.dataclass(frozen=True)
class Case:
    """A rule on batches of small problems.

    ``value`` is the primitive, written apart from it; ``exact_in`` says who claims exactness. Where the value
    ``jumps``, the nearest point is one of the graph's closure. ``ties`` are operands that can be equal.
    """

    shapes: tuple[tuple[int, ...], ...]
    rule: Callable[..., Any]
    value: Callable[..., Any]
    exact_in: tuple[Operators, ...] = (pjax.EXACT, pjax.PUBLISHED)
    jumps: bool = False
    ties: bool = True


LEVELS = np.linspace(-1.5, 1.5, 4)


def _quantized(x):
    """The nearest level; `argmin` takes the first, the lower, of two."""
    return jnp.asarray(LEVELS)[jnp.argmin(jnp.abs(x[..., None] - jnp.asarray(LEVELS).reshape([1] * x.ndim + [-1])), -1)]


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
    P.dot_general_p: _bilinear(lax.dot, (6,), (6,)),
    P.mul_p: _bilinear(lax.mul, (), ()),
    P.conv_general_dilated_p: _bilinear(_convolution, (1, 2, 4), (1, 2, 4)),
    rules.mean_p: Case(((4,),), _registered(rules.mean_p, axes=(-1,)), lambda x: x.sum(-1) / 4),
    P.reduce_max_p: Case(((5,),), _registered(P.reduce_max_p, axes=(1,)), lambda x: x.max(-1)),
    P.max_p: Case(((), ()), _registered(P.max_p), lambda x, y: jnp.where(x > y, x, y)),
    rules.quantize_p: Case(((),), _registered(rules.quantize_p, levels=4, scale=1.5), _quantized, jumps=True),
    P.sign_p: Case(((),), _registered(P.sign_p), lambda x: (x > 0) * 1.0 - (x < 0), jumps=True),
}


def _penalty(x, labels):
    """What the proximal operator of the cross-entropy minimises beside half the squared distance."""
    return 5 * (jax.nn.logsumexp(x, axis=-1) - jnp.sum(labels * x, -1))


def _indicator(x, labels):
    """Zero on the margin constraint's set."""
    return jnp.where(jnp.all(jnp.where(labels > 0, x >= 1.5, x <= 0), -1), 0, jnp.inf)


def _five_squares(x, targets):
    return 5 * ((x - targets) ** 2).sum(-1)


LOSS_CASES = {
    rules.cross_entropy_p: (_penalty, {}),
    rules.margin_p: (_indicator, {"margin": 1.5}),
    rules.squared_error_p: (_five_squares, {}),
}


def test_every_rule_has_a_case():
    assert set(CASES) == set(rules.projection_rules) | set(rules.bilinear_rules)
    assert set(LOSS_CASES) == set(rules.loss_rules)


def _competitors(xs, answer, objective, data, scale):
    """Points that could be nearer than the answer: random, and made to be from the input and the answer."""
    keys = iter(jax.random.split(jax.random.key(6), 200))

    def noisy(us, size):
        return tuple(u + size * jax.random.normal(next(keys), u.shape) for u in us)

    yield xs
    yield tuple(map(jnp.zeros_like, xs))
    yield tuple(-a for a in answer)
    yield tuple(jnp.roll(a, 1, 0) for a in answer)  # another problem's answer
    yield answer[::-1]  # swapped operands
    yield tuple(a[:, ::-1] if a.ndim > 1 else a for a in answer)
    for t in (-1, -0.01, 0.01, 0.5, 0.99, 2):
        yield tuple(a + t * (x - a) for a, x in zip(answer, xs, strict=True))
    for size in (1e-4, 1e-2, 1, scale):
        for start in (answer, xs):
            yield from (noisy(start, size) for _ in range(5))
        for i, a in enumerate(answer):  # one coordinate alone
            for coordinate in np.eye(a[0].size).reshape(-1, *a.shape[1:]):
                moves = (a + sign * size * coordinate[None] for sign in (1, -1))
                yield from ((*answer[:i], move, *answer[i + 1 :]) for move in moves)
    for start in (xs, noisy(xs, 1), noisy(answer, 0.1), noisy(answer, scale)):
        yield _descend(start, objective, data)


@functools.partial(jax.jit, static_argnames="objective")
def _descend(start, objective, data):
    """Gradient descent; every sample takes the best of many step lengths, 0 included."""

    def step(us, _):
        slopes = jax.grad(lambda us: objective(us, data).sum())(us)
        along = [tuple(u - t * s for u, s in zip(us, slopes, strict=True)) for t in (0, *np.logspace(-6, 1, 12))]
        best = jnp.argmin(jnp.stack([objective(vs, data) for vs in along]), 0)
        return tuple(jnp.stack(vs)[best, jnp.arange(SAMPLES)] for vs in zip(*along, strict=True)), None

    return jax.lax.scan(step, start, length=20)[0]


@functools.cache  # one compilation for all scales
def _proximal(prim):
    penalty, _ = LOSS_CASES[prim]

    @jax.jit
    def objective(us, data):
        (u,), (x, labels) = us, data
        return penalty(u, labels) + ((u - x) ** 2).sum(-1) / 2

    return objective


@functools.cache
def _distance_on_graph(prim):
    @jax.jit
    def objective(us, data):
        return _distance(us, CASES[prim].value(*us), *data)

    return objective


def _distance(us, output, xs, target, weight):
    flat = [((u - x) ** 2).reshape(SAMPLES, -1).sum(-1) for u, x in zip(us, xs, strict=True)]
    return sum(flat) + weight * (output - target) ** 2


@pytest.mark.parametrize("scale", [0.1, 1, 10, 100])
@pytest.mark.parametrize("prim", LOSS_CASES, ids=str)
def test_definition_of_losses(prim, scale):
    """No competitor has a smaller penalty plus half the squared distance; labels stay as they are."""
    _, params = LOSS_CASES[prim]
    x = scale * jax.random.normal(jax.random.key(0), (SAMPLES, 4))
    labels = jax.nn.one_hot(jnp.arange(SAMPLES) % 4, 4)
    (answer, same), output = rules.loss_rules[prim]((x, labels), None, 1, pjax.EXACT, **params)
    assert output is None
    np.testing.assert_array_equal(same, labels)

    objective, data = _proximal(prim), (x, labels)
    best = objective((answer,), data)
    assert bool(jnp.all(jnp.isfinite(best)))
    for number, us in enumerate(_competitors((x,), (answer,), objective, data, scale)):
        assert bool(jnp.all(best <= objective(us, data) * (1 + 1e-12) + 1e-9)), number


def _problems(case, scale):
    """Random operands and targets, and among them equal operands, operands on kinks, points of the graph."""
    keys = iter(jax.random.split(jax.random.key(5), 10))
    kind = jnp.arange(SAMPLES) % 4
    xs = []
    for shape in case.shapes:
        x = jax.random.normal(next(keys), (SAMPLES, *shape))
        rounded = case.ties & (kind % 2 == 1).reshape(-1, *[1] * len(shape))
        xs.append(jnp.where(rounded, jnp.round(2 * x) / 2, x))
    target = scale * jax.random.normal(next(keys), (SAMPLES,))
    return tuple(xs), jnp.where(kind == 2, case.value(*xs), jnp.where(kind == 3, jnp.round(target), target))


def _check_on_graph(case, answer, output, scale):
    """The output is the value or, of a function that jumps, the value on one side of the answer."""
    if not case.jumps:
        np.testing.assert_allclose(case.value(*answer), output, atol=1e-9 * scale, rtol=1e-7)
        return
    (x,) = answer
    sides = jnp.stack([case.value(x + side) for side in (0, -1e-9, 1e-9)])
    np.testing.assert_allclose(jnp.abs(sides - output[None]).min(0), 0, atol=1e-12)


@pytest.mark.parametrize("weight", [1, 7.5])
@pytest.mark.parametrize("scale", [0.1, 1, 10, 100])
@pytest.mark.parametrize("prim", CASES, ids=str)
def test_definition(prim, scale, weight):
    """The answer is on the graph, no competitor on the graph is nearer, and it is its own projection."""
    case = CASES[prim]
    xs, target = _problems(case, scale)

    objective, data = _distance_on_graph(prim), (xs, target, float(weight))
    for operators in case.exact_in:
        answer, output = case.rule(xs, target, weight, operators)
        _check_on_graph(case, answer, output, scale)
        best = _distance(answer, output, *data)
        for number, us in enumerate(_competitors(xs, answer, objective, data, scale)):
            excess = best - objective(us, data) * (1 + 1e-9)
            assert float(excess.max()) <= 1e-9, (number, excess.argmax(), operators)
        again, output_again = case.rule(answer, output, weight, operators)
        for a, b in zip((*answer, output), (*again, output_again), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6 * scale)


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


def _sorted_max(x, target, weight):
    """Theorem 8 as printed: sort, n candidates, the nearest valid one; the weight as so many copies of y0."""
    order = np.argsort(x, kind="stable")
    ordered, best = x[order], None
    for k in range(len(x)):
        y = (ordered[k:].sum() + weight * target) / (len(x) - k + weight)
        u = np.where(np.arange(len(x)) >= k, y, ordered)
        if k and ordered[k - 1] > y:
            continue
        distance = ((u - ordered) ** 2).sum() + weight * (y - target) ** 2
        if best is None or distance < best[0]:
            best = distance, u[np.argsort(order)], y
    assert best is not None
    return best


@pytest.mark.parametrize("weight", [1, 7.5])
@pytest.mark.parametrize("size", [1, 2, 9])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_max_is_theorem_8(dtype, size, weight):
    """One problem at a time, so that no other keeps its iteration alive."""
    rng = np.random.default_rng(6)
    project = jax.jit(lambda x, y: projections.project_max(x, y, weight, axes=(0,)))
    for i in range(60):
        x = (rng.normal(size=size) if i % 3 else 2.0 ** -np.arange(size)).astype(dtype)
        target = np.asarray((0.1, 1, 10, 100)[i % 4] * rng.normal(), dtype)
        u, y = project(x, target)
        assert u.dtype == y.dtype == dtype
        _, expected, output = _sorted_max(x.astype(float), float(target), weight)
        tolerance = 4 * np.finfo(dtype).eps * (1 + abs(target))
        np.testing.assert_allclose(u, expected, rtol=0, atol=tolerance * size)
        np.testing.assert_allclose(y, output, rtol=0, atol=tolerance * size)


@pytest.mark.parametrize("axes", [(1,), (0, 2), (2, 0), (-1,), (0, 1, 2)])
def test_max_over_any_axes_is_max_of_the_flattened(axes):
    x = jnp.round(2 * jax.random.normal(jax.random.key(0), (3, 4, 5))) / 2
    kept = [i for i in range(3) if i not in {a % 3 for a in axes}]
    flat = x.transpose([*kept, *sorted(a % 3 for a in axes)]).reshape(*(x.shape[i] for i in kept), -1)
    for target in (jnp.full(flat.shape[:-1], -1.0), jnp.max(flat, -1), jnp.full(flat.shape[:-1], 3.0)):
        u, y = projections.project_max(x, target, axes=axes)
        v, same = projections.project_max(flat, target, axes=(flat.ndim - 1,))
        np.testing.assert_allclose(y, same)
        np.testing.assert_allclose(
            u.transpose([*kept, *sorted(a % 3 for a in axes)]).reshape(flat.shape), v, rtol=1e-12
        )


def test_max_moves_one_of_equal_entries_up_and_all_of_them_down():
    x = jnp.array([2.0, 1.0, 2.0, -1.0])
    up, y = projections.project_max(x, jnp.asarray(5.0), axes=(0,))
    np.testing.assert_allclose(up, [3.5, 1, 2, -1])
    assert y == 3.5
    down, y = projections.project_max(x, jnp.asarray(-1.0), axes=(0,))
    np.testing.assert_allclose(down, [1, 1, 1, -1])
    assert y == 1
    a, b, y = projections.project_maximum(x[0], x[2], jnp.asarray(5.0))
    assert (a, b, y) == (3.5, 2, 3.5)
    assert "sort" not in str(jax.make_jaxpr(lambda x: projections.project_max(x, x[0], axes=(0,)))(x))


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
