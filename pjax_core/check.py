"""Certify a projection rule: is its answer the nearest point of the primitive's graph?"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Primitive

from pjax_core import nn, rules
from pjax_core.operators import EXACT, Operators
from pjax_core.trace import trace

Points = tuple[Array, ...]

_WEIGHTS = (1.0, 7.5)
_NUDGE = 1e-9  # how far from the answer f may take the value of the output, see check_projection
_ROUNDS = 100  # of the search for a nearer point, from each start


class ProjectionError(AssertionError):
    """A projection rule does not do what a projection does."""


class ProjectionReport(NamedTuple):
    """What a certified rule was tried on, and its largest errors over (1 + scale)."""

    primitive: str
    problems: int
    off_graph: float  # |f(answer) - output|
    idempotence: float  # how far an answer moves that is projected again
    batching: float  # difference between the rule of a batch and the batch of the rule
    excess: float  # root of the squared distance of the answer less that of the nearest competitor, at least 0


def check_projection(
    prim: Primitive,
    shapes: Sequence[tuple[int, ...]],
    *,
    params: dict[str, Any] | None = None,
    scales: Sequence[float] = (0.1, 1.0, 10.0, 100.0),
    samples: int = 200,
    operators: Operators = EXACT,
    key: Array | None = None,
    tolerance: float = 1e-6,
) -> ProjectionReport:
    """Certify the rule of a constraint, registered by ``pjax.defproj`` or ``pjax.defelementwise``.

    The rule has to solve ``argmin ||u - x||^2 + n (f(u) - y)^2``. On random problems, some of them with
    equal operands, on kinks, or on the graph already, for n = 1 and 7.5 and in 64-bit floats: it keeps
    shapes and dtypes, its output is ``f`` of its operands, an answer projects to itself, a batch is its
    samples, and a random search from the input, the origin and the answer finds no nearer point.

    Where ``f`` jumps, the nearest point is one of the graph's closure: the output may be the value of ``f``
    at 1e-9 from the operands, which is no concession to a continuous ``f``.

    Args:
        prim: batched by ``jax.vmap`` into itself, as those of ``pjax.defprimitive`` are.
        shapes: of the operands of one sample. Small ones, because the search is random.
        params: the primitive's parameters for such operands.
        scales: sizes of the targets; the operands have size 1.
        samples: problems for every scale and n.
        operators: passed to the rule.
        key: random key of the problems.
        tolerance: bound of every error in :class:`ProjectionReport`.

    Raises:
        ProjectionError: says which property fails, on which problem and by how much.
        TypeError: the primitive has no rule of this kind (losses and bilinear primitives have others).
    """
    if prim not in rules.projection_rules:
        raise TypeError(f"{prim} has no projection to check; register one by pjax.defproj(primitive, rule)")
    params = params or {}
    value = functools.partial(prim.bind, **params)

    def project(xs: Points, target: Array, weight: float, **params: Any) -> Any:
        return rules.projection_rules[prim](xs, target, weight, operators, **params)

    structs = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    given = (structs, jax.eval_shape(value, *structs))
    found = jax.eval_shape(functools.partial(project, **params), *given, 1)
    expected, returned = ([f"{a.dtype}{list(a.shape)}" for a in jax.tree.leaves(tree)] for tree in (given, found))
    if expected != returned:
        raise ProjectionError(f"the rule of {prim} returns {returned} for operands and a target {expected}")

    key = jax.random.key(0) if key is None else key
    worst: dict[str, float] = dict.fromkeys(_FAILURES, 0.0)
    with jax.enable_x64(True):
        f = jax.jit(jax.vmap(value))
        single = jax.jit(jax.vmap(functools.partial(project, **params), in_axes=(0, 0, None)))
        whole = jax.jit(functools.partial(project, **_batched_params(prim, f, shapes, samples)))
        search = jax.jit(functools.partial(_search, f))
        for number, (scale, weight) in enumerate(itertools.product(scales, _WEIGHTS)):
            keys = jax.random.split(jax.random.fold_in(key, number), 3)
            xs, target = _problems(f, keys[0], shapes, samples, scale)
            answer, output = single(xs, target, weight)
            # Elements of an output are taken one by one: each may lie at its own side of a jump.
            sides = [answer, *(_moved(k, answer, jnp.full(samples, _NUDGE)) for k in jax.random.split(keys[1], 16))]
            off_graph = functools.reduce(jnp.minimum, (jnp.abs(f(*us) - output) for us in sides))
            best = _distance(answer, output, xs, target, weight)
            nearest = search(keys[2], xs, target, weight, answer)
            errors = {
                "off_graph": _largest([off_graph]),
                "idempotence": _difference(single(answer, output, weight), (answer, output)),
                "batching": _difference(whole(xs, target, weight), (answer, output)),
                "excess": jnp.sqrt(jnp.maximum(best - nearest, 0)),
            }
            for name, error in errors.items():
                error = np.nan_to_num(np.asarray(error) / (1 + scale), nan=np.inf)
                i = int(error.argmax())
                worst[name] = max(worst[name], float(error[i]))
                if error[i] > tolerance:
                    raise ProjectionError(
                        f"the rule of {prim} at target scale {scale:g} and weight {weight:g}: {_FAILURES[name]} "
                        f"({name} {error[i]:.2g} x (1 + scale), tolerance {tolerance:g}; distance of the answer "
                        f"{best[i] ** 0.5:.4g}, of the nearest point found {nearest[i] ** 0.5:.4g}). Operands "
                        f"{[x[i].tolist() for x in xs]}, target {target[i].tolist()}, answer "
                        f"{[a[i].tolist() for a in answer]}, output {output[i].tolist()}"
                    )
    return ProjectionReport(str(prim), samples * len(scales) * len(_WEIGHTS), **worst)


_FAILURES = {
    "off_graph": "the output is not the primitive's value of the answer",
    "idempotence": "an answer, projected again, moves",
    "batching": "the rule of a batch is not the batch of the rule",
    "excess": "a point of the graph is nearer than the answer",
}


def _batched_params(prim: Primitive, f: Callable[..., Array], shapes: Sequence[Any], samples: int) -> dict[str, Any]:
    """Parameters of the primitive in a traced batch: what the engine passes to the rule."""

    def loss_fn(xs: Points) -> Array:
        return nn.squared_error(f(*xs), jnp.zeros_like(f(*xs)))

    graph = trace(loss_fn, tuple(jnp.zeros((samples, *shape)) for shape in shapes))
    nodes = [node for node in graph.nodes if node.primitive is prim]
    if len(nodes) != 1:
        raise ProjectionError(f"jax.vmap does not make one {prim} of {prim}, so no batch can be projected:\n{graph}")
    return dict(nodes[0].params)


def _problems(
    f: Callable[..., Array], key: Array, shapes: Sequence[tuple[int, ...]], samples: int, scale: float
) -> tuple[Points, Array]:
    """Operands and targets: a quarter random, the others with rounded operands, on the graph, with both rounded."""
    keys = iter(jax.random.split(key, len(shapes) + 1))
    kind = jnp.arange(samples) % 4

    def choose(kinds: tuple[int, ...], these: Array, those: Array) -> Array:
        return jnp.where(_like(jnp.isin(kind, jnp.array(kinds)), these), these, those)

    xs = [jax.random.normal(next(keys), (samples, *shape)) for shape in shapes]
    xs = tuple(choose((1, 3), jnp.round(2 * x) / 2, x) for x in xs)
    values = f(*xs)
    target = scale * jax.random.normal(next(keys), values.shape)
    return xs, choose((2,), values, choose((3,), jnp.round(target), target))


def _search(f: Callable[..., Array], key: Array, xs: Points, target: Array, weight: float, answer: Points) -> Array:
    """Squared distance of the nearest point of the graph that random moves find, for every sample."""

    def distance(us: Points) -> Array:
        return _distance(us, f(*us), xs, target, weight)

    def attempt(carry: tuple[Points, Array], key: Array) -> tuple[tuple[Points, Array], None]:
        us, least = carry
        keys = jax.random.split(key)
        # Moves of all sizes up to the distance itself.
        size = jnp.sqrt(least) * 10 ** jax.random.uniform(keys[0], least.shape, minval=-5, maxval=0.5)
        moved = _moved(keys[1], us, size)
        other = distance(moved)
        nearer = other < least
        us = tuple(jnp.where(_like(nearer, u), m, u) for u, m in zip(us, moved, strict=True))
        return (us, jnp.minimum(least, other)), None

    def descend(start: Points) -> Array:
        return jax.lax.scan(attempt, (start, distance(start)), jax.random.split(key, _ROUNDS))[0][1]

    starts = (xs, tuple(map(jnp.zeros_like, xs)), answer)
    return jax.vmap(descend)(jax.tree.map(lambda *points: jnp.stack(points), *starts)).min(0)


def _moved(key: Array, us: Points, size: Array) -> Points:
    """Move about half of the coordinates of every sample by normal numbers of its size."""
    keys = jax.random.split(key, (len(us), 2))
    return tuple(
        u + _like(size, u) * jax.random.normal(k[0], u.shape) * jax.random.bernoulli(k[1], 0.5, u.shape)
        for k, u in zip(keys, us, strict=True)
    )


def _like(a: Array, u: Array) -> Array:
    """One number for every sample, in the rank of ``u``."""
    return a.reshape(-1, *[1] * (u.ndim - 1))


def _distance(us: Points, output: Array, xs: Points, target: Array, weight: float) -> Array:
    """``||u - x||^2 + n ||output - target||^2`` of every sample."""
    squares = [*(jnp.square(u - x) for u, x in zip(us, xs, strict=True)), weight * jnp.square(output - target)]
    return functools.reduce(jnp.add, (s.reshape(len(s), -1).sum(-1) for s in squares))


def _largest(errors: Sequence[Array]) -> Array:
    """Largest absolute entry of every sample."""
    return functools.reduce(jnp.maximum, (jnp.abs(e).reshape(len(e), -1).max(-1) for e in errors))


def _difference(one: Any, other: Any) -> Array:
    return _largest(jax.tree.leaves(jax.tree.map(jnp.subtract, one, other)))
