"""Certify a projection rule: is its answer the nearest point of the primitive's graph?"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Primitive
from jax.flatten_util import ravel_pytree

from pjax.rules import displace, displacement_rules
from pjax_core import rules
from pjax_core.operators import EXACT, Operators

_Function = Callable[..., Any]

_WEIGHTS = (1.0, 7.5)
_NUDGE = 1e-9  # how far from the answer f may take the value of the output, see check_projection
_ROUNDS = 100  # of the search for a nearer point, from each start
_FAILURES = {
    "off_graph": "the output is not the primitive's value of the answer",
    "idempotence": "an answer, projected again, moves",
    "batching": "the rule of a batch is not the batch of the rule",
    "excess": "a point of the graph is nearer than the answer",
    "displacement": "the rule of displacements is not the difference of projections",
}


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
    displacement: float  # between the answer and where the rule of displacements leads, if there is one


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
    samples, and a random search from the input, the origin and the answer finds no nearer point. The rule of
    displacements, where there is one, leads as near, and to the graph (not tried with a ``step_margin``, with which
    steps move otherwise).

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
    value = functools.partial(prim.bind, **params or {})

    def project(params: dict[str, Any], xs: Sequence[Array], target: Array, weight: Any) -> Any:
        answer = rules.projection_rules[prim](xs, target, weight, operators, **params)
        asked, given = ([f"{a.dtype}{list(a.shape)}" for a in jax.tree.leaves(tree)] for tree in ((xs, target), answer))
        if asked != given:
            raise ProjectionError(f"the rule of {prim} returns {given} for operands and a target {asked}")
        return answer

    worst = dict.fromkeys(_FAILURES, 0.0)
    with jax.enable_x64(True):
        sizes = jnp.repeat(jnp.array(scales), samples)
        keys = jax.random.split(jax.random.key(0) if key is None else key, (len(_WEIGHTS), sizes.size))
        known = prim in displacement_rules and not operators.step_margin
        displaced = functools.partial(_displaced, prim, params or {}, operators) if known else None
        trial = functools.partial(_trial, value, functools.partial(project, params or {}), displaced, shapes)
        trials = jax.jit(jax.vmap(trial, in_axes=(0, 0, None)))
        whole = jax.jit(functools.partial(project, _batched_params(prim, value, shapes)))
        for number, weight in enumerate(_WEIGHTS):
            problem, answer, distances, errors = trials(keys[number], sizes, weight)
            errors["batching"] = jax.vmap(_difference)(whole(*problem, weight), answer)
            for name, failure in _FAILURES.items():
                error = np.nan_to_num(errors[name] / (1 + sizes), nan=np.inf)
                i, worst[name] = int(error.argmax()), max(worst[name], float(error.max()))
                if worst[name] > tolerance:
                    best, nearest = (float(d[i]) ** 0.5 for d in distances)
                    (xs, target), (us, output) = jax.tree.map(lambda a, i=i: a[i].tolist(), (problem, answer))
                    raise ProjectionError(
                        f"the rule of {prim} at target scale {sizes[i]:g} and weight {weight:g}: {failure} ({name} "
                        f"{error[i]:.2g} x (1 + scale), tolerance {tolerance:g}; distance of the answer {best:.4g}, of "
                        f"the nearest point found {nearest:.4g}). Operands {[*xs]}, target {target}, answer "
                        f"{[*us]}, output {output}"
                    )
    return ProjectionReport(str(prim), len(_WEIGHTS) * sizes.size, **worst)


def _batched_params(prim: Primitive, value: _Function, shapes: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """Parameters of the primitive in a batch: what the engine passes to the rule."""
    jaxpr = jax.make_jaxpr(jax.vmap(value))(*(jnp.zeros((2, *shape)) for shape in shapes))
    found = [eqn.params for eqn in jaxpr.eqns if eqn.primitive is prim]
    if len(found) != 1:
        raise ProjectionError(f"jax.vmap does not make one {prim} of {prim}, so no batch can be projected:\n{jaxpr}")
    return found[0]


def _displaced(
    prim: Primitive, params: dict[str, Any], operators: Operators, xs: tuple[Array, ...], target: Array, weight: Array
) -> tuple[Array, Array | None]:
    """Where the rule of displacements leads, flat, and the output there if it says so."""
    moves, left = displace(prim, params, xs, target - prim.bind(*xs, **params), weight, operators)
    moved = jax.tree.map(jnp.add, xs, tuple(moves))
    return ravel_pytree(moved)[0], None if left is None else target - left


def _trial(
    value: _Function,
    project: _Function,
    displaced: _Function | None,
    shapes: Sequence[tuple[int, ...]],
    key: Array,
    scale: Array,
    weight: Array,
) -> tuple[Any, Any, tuple[Array, Array], dict[str, Array]]:
    """One random problem, its answer, the squared distances of that and of the nearest point found, and the errors.

    A quarter of the problems each are random, have rounded operands, lie on the graph already, have all rounded.
    """
    keys = jax.random.split(key, 5)
    kind = jax.random.randint(keys[0], (), 0, 4)
    start, unravel = ravel_pytree(tuple(jnp.zeros(shape) for shape in shapes))
    start = jax.random.normal(keys[1], start.shape)
    start = jnp.where(kind % 2 == 1, jnp.round(2 * start) / 2, start)

    def f(point: Array) -> Array:
        return value(*unravel(point))

    target = scale * jax.random.normal(keys[2], f(start).shape)
    target = jnp.select([kind == 2, kind == 3], [f(start), jnp.round(target)], target)
    us, output = project(unravel(start), target, weight)
    found, _ = ravel_pytree(us)

    def distance(point: Array, output: Array) -> Array:
        return jnp.sum(jnp.square(point - start)) + weight * jnp.sum(jnp.square(output - target))

    def attempt(point: Array, key: Array) -> tuple[Array, Array]:
        keys, least = jax.random.split(key, 3), distance(point, f(point))
        # Moves of all sizes up to the distance itself, of about half of the coordinates.
        size = jnp.sqrt(least) * 10 ** jax.random.uniform(keys[0], minval=-5, maxval=0.5)
        moved = point + size * jax.random.normal(keys[1], point.shape) * jax.random.bernoulli(keys[2], 0.5, point.shape)
        return jnp.where(distance(moved, f(moved)) < least, moved, point), least

    search = functools.partial(jax.lax.scan, attempt, xs=jax.random.split(keys[3], _ROUNDS))
    _, distances = jax.vmap(search)(jnp.stack([start, jnp.zeros_like(start), found]))
    best, nearest = distance(found, output), jnp.min(distances)

    def off_graph(point: Array, output: Array) -> Array:
        # Elements of an output are taken one by one: each may lie at its own side of a jump.
        beside = point[None] + _NUDGE * jax.random.normal(keys[4], (32, start.size)).at[0].set(0)
        return jnp.abs(jax.vmap(f)(beside) - output[None]).min(0).max()

    moved, there = displaced(unravel(start), target, weight) if displaced else (found, output)
    there = output if there is None else there
    # Of two nearest points the displacement may take the other.
    gap = jnp.abs(jnp.sqrt(distance(moved, there)) - jnp.sqrt(best))
    errors = {
        "off_graph": off_graph(found, output),
        "displacement": jnp.maximum(off_graph(moved, there), gap),
        "idempotence": _difference(project(us, output, weight), (us, output)),
        "excess": jnp.sqrt(jnp.maximum(best - nearest, 0)),
    }
    return (unravel(start), target), (us, output), (best, nearest), errors


def _difference(one: Any, other: Any) -> Array:
    """Largest difference of two pytrees' numbers."""
    return jnp.abs(ravel_pytree(one)[0] - ravel_pytree(other)[0]).max()
