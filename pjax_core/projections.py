"""The projections of Appendix C as pure functions of arrays.

Conventions. Every function works element-wise over leading axes and returns arrays of the shapes it was
given. ``target`` is the point y0 of the output, ``weight`` the factor n >= 1 of its distance (Theorem 3,
step 2; 1 is the plain projection): all solve

    argmin  ||u - x0||^2 + n ||f(u) - y0||^2

and return ``u`` with the output ``f(u)``. Exact up to rounding unless the docstring says otherwise.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from pjax_core.operators import Operators

Operands = Sequence[Array]  # of one shape
Projected = tuple[tuple[Array, ...], Array]  # operands and output
Point = tuple[Array, Array]  # one operand and the output


def displace_linear(
    fun: Callable[..., Array], operands: Operands, distance: Array, weight: ArrayLike = 1
) -> tuple[tuple[Array, ...], Array]:
    """How far the projection onto the graph of a linear function moves (Theorem 5; Theorem 4 for the identity).

    Args:
        fun: linear, and each element of its operands is part of one element of the output: a sum or mean over axes,
            of several arrays, with signs or factors.
        operands: where it is; only their shapes and types matter.
        distance: from ``fun(*operands)`` to the target.
        weight: see the module.

    Returns:
        How far the operands move, and what is left of the distance. A small one has all its digits.
    """
    transpose = jax.linear_transpose(fun, *operands)
    squares = fun(*transpose(jnp.ones_like(distance)))  # of the coefficients, their sum by output
    step = distance / (squares + 1 / weight)
    return transpose(step), step / weight


def project_sum_relu(operands: Operands, target: Array, weight: ArrayLike = 1, *, exact: bool = True) -> Projected:
    """Project onto the graph of ``max(0, sum_i x_i)`` (Theorem 6).

    Args:
        operands: n arrays of one shape.
        target, weight: see the module. The output is that of the projected operands: zero to rounding at the kink.
        exact: ``False`` reproduces the published choice of candidate, which takes the distance of the
            sloped part to its whole hyperplane wherever ``target != 0``. It misses the nearest point on
            about a third of the points with a negative target.
    """
    total = sum(operands[1:], operands[0])
    shift, _ = shift_sum_relu(len(operands), total, target, target - total, weight, exact)
    projected = tuple(x + shift for x in operands)
    return projected, jax.nn.relu(sum(projected[1:], projected[0]))


def shift_sum_relu(
    size: int, total: Array, target: Array, distance: Array, weight: ArrayLike, exact: bool
) -> tuple[Array, Array]:
    """How far each of ``size`` operands moves, and whether their sum ends above zero.

    Args:
        size: how many operands.
        total: their sum.
        target, weight, exact: see :func:`project_sum_relu`.
        distance: target - total.
    """
    slope = size + 1 / weight
    on_slope = size * target + total / weight >= 0  # the hyperplane's nearest point; else the kink's, Eq. 28, line 2
    kink_distance = total**2 / size + weight * target**2
    plane = on_slope if exact else target != 0
    slope_distance = jnp.where(plane, distance**2 / slope, kink_distance)
    flat = jnp.maximum(total, 0) ** 2 / size + weight * target**2 < slope_distance
    on_slope &= ~flat
    # The last operation is a quotient, which CPU's compiler makes once for all that read it.
    way = jnp.where(on_slope, distance, -jnp.where(flat, jnp.maximum(total, 0), total))
    return way / jnp.where(on_slope, slope, size), on_slope


def sums(arrays: Sequence[Array], axes: Sequence[int]) -> list[Array]:
    """Sum arrays of one shape over axes, all in one pass, so that none of them is made.

    XLA's compiler for processors would make a lone array first, and sum it block by block. The blocks, which keep the
    rounding small, are made here: the last axis is summed in pieces of up to 32.
    """
    *rest, last = sorted(axis % arrays[0].ndim for axis in axes)
    size = arrays[0].shape[last]
    piece = max(d for d in range(1, 33) if size % d == 0)
    zeros = [jnp.zeros((), a.dtype) for a in arrays]

    def add(a: Sequence[Array], b: Sequence[Array]) -> list[Array]:
        return [*map(jnp.add, a, b)]

    pieces = [a.reshape(*a.shape[:last], size // piece, piece, *a.shape[last + 1 :]) for a in arrays]
    return lax.reduce(lax.reduce(pieces, zeros, add, [last + 1]), zeros, add, [*rest, last])


def project_max(x: Array, target: Array, weight: ArrayLike = 1, *, axes: tuple[int, ...]) -> Point:
    """Project onto the graph of ``max(x, axes)`` (Theorem 8), without a sort.

    A target above the maximum draws the largest entry (the first of equals) to their weighted mean. Below,
    the output is the root of ``sum_i max(x_i - y, 0) = weight (y - target)`` and the entries above it move
    to it. Exact: Newton on this convex piecewise-linear function ascends from a lower bound, so the entries
    above ``y`` only become fewer, and it has arrived when their number stays. A step is one pass over x.

    Args:
        x: any shape with at least one entry along ``axes``.
        target, weight: its shape without ``axes``; see the module.
        axes: the axes of the maximum.
    """
    reduced = {axis % x.ndim for axis in axes}
    top = jnp.max(x, axes)
    start = (top + weight * target) / (1 + weight)  # the root if the largest entry is alone above it

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        _, count, before = carry
        return jnp.any(count < before)

    def ascend(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        y, before, _ = carry
        excess = jnp.maximum(x - jnp.expand_dims(y, axes), 0)
        total, count = sums([excess, (excess > 0).astype(jnp.int32)], axes)
        step = (total - weight * (y - target)) / (count + weight)
        # Rounding must not let the output fall; above the maximum nothing is left to do.
        return jnp.where(target < top, y + jnp.maximum(step, 0), y), count, before

    unknown = jnp.full(top.shape, math.prod(x.shape[axis] for axis in reduced) + 1, jnp.int32)  # two steps at least
    y = lax.while_loop(unfinished, ascend, (start, unknown, unknown + 1))[0]
    wide = jnp.expand_dims(y, axes)
    raised = _first(x == jnp.expand_dims(top, axes), axes) & jnp.expand_dims(target > top, axes)
    return jnp.where(raised, wide, jnp.minimum(x, wide)), y


def _first(chosen: Array, axes: Sequence[int]) -> Array:
    """Whether an entry is the first along axes that is chosen.

    Along the last and then along the others: the compiler for processors would reduce all at once with long strides.
    """
    *rest, last = sorted(axis % chosen.ndim for axis in axes)

    def position(kept: Sequence[int]) -> Array:
        return jnp.arange(math.prod(chosen.shape[axis] for axis in kept)).reshape(
            [size if axis in kept else 1 for axis, size in enumerate(chosen.shape)]
        )

    inner, outer = position([last]), position(rest)
    first = jnp.min(jnp.where(chosen, inner, inner.size), last, keepdims=True)
    block = jnp.min(jnp.where(first < inner.size, outer, outer.size), rest, keepdims=True)
    return (inner == first) & (outer == block)


def project_maximum(x: Array, w: Array, target: Array, weight: ArrayLike = 1) -> tuple[Array, Array, Array]:
    """Project onto the graph of ``maximum(x, w)`` element-wise: Theorem 8 for two entries, in closed form."""
    top = jnp.maximum(x, w)
    # With one or both entries at the output; both is right exactly where it is the larger.
    y = jnp.maximum((top + weight * target) / (1 + weight), (x + w + weight * target) / (2 + weight))
    raised = target > top
    return jnp.where(raised & (x >= w), y, jnp.minimum(x, y)), jnp.where(raised & (x < w), y, jnp.minimum(w, y)), y


def _nearest(x: Array, target: Array, weight: ArrayLike, candidates: Sequence[Point]) -> Point:
    """Choose the nearest of some points ``(u, y)``, the first of equals."""
    (u, y), *others = candidates
    least = (u - x) ** 2 + weight * (y - target) ** 2
    for other_u, other_y in others:
        distance = (other_u - x) ** 2 + weight * (other_y - target) ** 2
        nearer = distance < least
        u, y = jnp.where(nearer, other_u, u), jnp.where(nearer, other_y, y)
        least = jnp.minimum(least, distance)
    return u, y


def level_gap(*, levels: int, scale: float) -> float:
    """Distance between neighbouring ones of ``levels`` equidistant points from -scale to scale."""
    return 2 * scale / (levels - 1)


def quantize(x: Array, *, levels: int, scale: float) -> Array:
    """Nearest of ``levels`` equidistant points from -scale to scale; midpoints go down (Theorem 9).

    Args:
        x: any shape.
        levels: number of points, at least 2.
        scale: the largest point, positive.
    """
    if levels < 2 or not scale > 0:
        raise ValueError(f"quantize to levels={levels} with scale={scale}: at least 2 levels and a positive scale")
    gap = level_gap(levels=levels, scale=scale)
    return jnp.clip(jnp.ceil((x + scale) / gap - 0.5), 0, levels - 1) * gap - scale


def project_quantize(
    x: Array, target: Array, weight: ArrayLike = 1, *, levels: int, scale: float, margin: float = 0.0
) -> Point:
    """Project onto the closure of the graph of :func:`quantize` (Theorem 9).

    The graph itself has no nearest point when the best interval is entered through its open end. The
    answer is then on that end: its output is the level above the value of :func:`quantize` there.

    Exact with few candidates instead of k: x's own level costs least movement of x; among the levels above
    (below), whose near ends lie equally far below (above) them, the distance is a parabola in the level.

    Args:
        x: any shape.
        target, weight: its shape; see the module.
        levels, scale: see :func:`quantize`.
        margin: ``step_margin`` of the operators. The outermost levels keep it whole, those between at most half.
    """
    gap = level_gap(levels=levels, scale=scale)
    centre, half = x + weight * target, gap / 2
    inside = min(margin * gap, half)

    def candidate(near: Array) -> Point:
        y = quantize(near, levels=levels, scale=scale)
        # Between levels, and at the ends: there the other side is open.
        top, bottom = y > scale - half, y < -scale + half
        low = jnp.where(bottom, -jnp.inf, y - half + jnp.where(top, margin * gap, inside))
        high = jnp.where(top, jnp.inf, y + half - jnp.where(bottom, margin * gap, inside))
        return jnp.clip(x, low, high), y

    vertices = [(centre + side * (half - inside)) / (1 + weight) for side in (1, -1)]
    nears = [x, *vertices]
    if margin > 0.5 and levels > 2:  # The ends are farther in than the parabola says, which holds for the others.
        nears = [x, *(jnp.clip(v, -scale + gap, scale - gap) for v in vertices)]
    ends = [jnp.full_like(x, side * scale) for side in (1, -1)] if margin > 0.5 else []
    return _nearest(x, target, weight, [candidate(near) for near in (*nears, *ends)])


def project_sign(x: Array, target: Array, weight: ArrayLike = 1, *, margin: float = 0.0) -> Point:
    """Project onto the closure of the graph of ``sign``: two half-lines that end at x = 0, and the origin.

    At ``x = 0`` the output can be -1 or 1 although ``sign(0) = 0``. Exact.

    Args:
        x: any shape.
        target, weight: its shape; see the module.
        margin: ``step_margin`` of the operators; the lines are two apart. The origin keeps none.
    """
    one, zero, end = jnp.ones_like(x), jnp.zeros_like(x), 2 * margin
    origin = [] if margin else [(zero, zero)]
    return _nearest(x, target, weight, [(jnp.maximum(x, end), one), (jnp.minimum(x, -end), -one), *origin])


def sum_and_difference(terms: Sequence[Array]) -> tuple[Array, Array]:
    """Squared norms of the sum and the difference of vectors from p and what adds up to q, see :func:`dot_root`."""
    product, *norms = terms
    # Beginning with the largest array: a sum of thin ones would be one more of its size.
    return sum(norms, 2 * product), sum(norms, -2 * product)


def dot_root(
    norms: Callable[[Any], tuple[Array, Array]],
    terms: Any,
    target: Array,
    weight: ArrayLike,
    operators: Operators,
    displaced: bool = False,
) -> Array:
    """Solve Eq. 32 for lambda: ``((1 + l^2) p + l q) / (1 - l^2)^2 + l / weight = target``.

    Here p is the inner product of the two vectors and q the sum of both squared norms. The left side increases on
    (-1, 1) because ``q >= 2 |p|``, so the root is unique when it exists. It does unless the two vectors are equal up
    to sign, which Theorem 7 excludes; for those, and a target out of reach, the exact root stops just inside the
    bracket and the output is not on the graph.

    Args:
        norms: ``norms(terms)`` returns the squared norms of the vectors' sum and difference, ``q + 2 p`` and
            ``q - 2 p``. Called wherever they are used, so that they take no memory.
        terms: a pytree of arrays.
        target, weight: see the module.
        operators: ``dot_newton_steps`` chooses between the bracketed, converged root and a fixed number
            of unguarded Newton steps from 0 (approximate; it can leave (-1, 1) for large targets).
        displaced: whether ``target`` is how far it is from p. The root of a small one has all its digits.
    """

    def newton(root: Array, plus: Array, minus: Array) -> Array:
        """One Newton step on ``plus / (4 (1 - l)^2) - minus / (4 (1 + l)^2) + l / weight - target``.

        Residual and slope are scaled by ``(1 - l^2)^3``. It multiplies by 1 / slope because the CPU's compiler ends a
        pass at a quotient that is read twice.
        """
        a, b = 1 - root, 1 + root
        square, slack = a * a, a * b
        if displaced:  # less p, what is left is a multiple of the root, all of one sign
            dots = root * (plus * (1 + a) * b * b + minus * (1 + b) * square)
        else:
            dots = plus * b * b - minus * square
        residual = dots / 4 + (root / weight - target) * slack * slack
        slope = (plus * b * b * b + minus * square * a) / 2 + slack * slack * slack / weight
        return residual * slack * (1 / slope)

    # A step below eps^(2/3) (1 - l^2) leaves a quadratic error below eps: more steps would only round. In a
    # trained network nearly every root is there after three, of which the first, from 0, needs no evaluation; one
    # pass takes them and marks the others, because what leaves a pass costs more than what it computes.
    tolerance = float(jnp.finfo(target.dtype).eps) ** (2 / 3)

    def norms_at(root: Array) -> tuple[Array, Array]:
        """Both norms, made anew: what does not depend on the root the compiler would make before a loop, and hold."""
        zero = root - root

        def here(a: Array) -> Array:
            return a + jnp.broadcast_to(zero, a.shape) if a.shape[a.ndim - zero.ndim :] == zero.shape else a

        return norms(jax.tree.map(here, terms))

    def steps(count: int, plus: Array, minus: Array) -> tuple[Array, Array]:
        distance = target if displaced else target - (plus - minus) / 4
        root = distance * (1 / ((plus + minus) / 2 + 1 / weight))
        step = root
        for _ in range(count - 1):
            step = newton(root, plus, minus)
            root = root - step
        return root, step

    def guarded(found: Array) -> Array:
        """Newton from the one inflection point ascends or descends to the root, but for a step past the pole."""
        inside = 1 - float(jnp.finfo(target.dtype).epsneg)

        def positive(root: Array) -> list[Array]:
            return [jnp.maximum(norm, 0) for norm in norms_at(root)]

        plus, minus = positive(found)
        ratio = jnp.sqrt(jnp.sqrt(minus / plus))  # ((1 + l) / (1 - l))^4 is minus / plus there
        inflection = jnp.clip(jnp.nan_to_num(1 - 2 / (1 + ratio)), -inside, inside)

        def refine(root: Array) -> Array:
            # Never more than half of the way to a pole, whence it comes back.
            root = jnp.clip(root - newton(root, *positive(root)), (root - 1) / 2, (root + 1) / 2)
            return jnp.clip(root, -inside, inside)

        # What tells whether to go on reads the iterate anew: beside it, it would be made of all that the iterate is.
        def unfinished(carry: tuple[Array, Array]) -> Array:
            root, count = carry
            moved = jnp.abs(refine(root) - root)  # near a pole by no less than rounding
            return jnp.any(moved > tolerance * (1 - root * root) + (1 - inside)) & (count < 100)

        start = jnp.where(found == lost, inflection, found), jnp.zeros((), jnp.int32)
        root, _ = lax.while_loop(unfinished, lambda carry: (refine(carry[0]), carry[1] + 1), start)
        return refine(root)

    fixed = operators.dot_newton_steps
    if fixed is not None and fixed < 3:
        return steps(fixed, *norms(terms))[0]
    root, step = steps(3, *norms(terms))
    lost = 2  # no root
    found = jnp.where(jnp.abs(step) <= tolerance * (1 - root * root), root, lost)

    def again(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        found, _ = carry
        return guarded(found) if fixed is None else steps(fixed, *norms_at(found))[0], jnp.array(False)

    # At most once. A conditional would copy what is found already, and batched it would do both.
    return lax.while_loop(lambda carry: carry[1], again, (found, jnp.any(found == lost)))[0]


def project_dot(
    x: Array, w: Array, target: Array, weight: ArrayLike, operators: Operators
) -> tuple[Array, Array, Array, Array]:
    """Project onto the graph of ``sum(x * w, -1)`` (Theorem 7). Returns x, w, the output and the root.

    Args:
        x, w: arrays of one shape ``(..., n)``.
        target, weight: shape ``(...)``; see the module.
        operators: see :func:`dot_root`.
    """
    terms = [jnp.sum(x * w, -1), jnp.sum(x * x + w * w, -1)]
    root = dot_root(sum_and_difference, terms, target, weight, operators)
    lam = root[..., None]
    scale = 1 / (1 - lam * lam)
    return (x + lam * w) * scale, (w + lam * x) * scale, target - root / weight, root


def project_margin(x: Array, labels: Array, *, margin: float) -> Array:
    """Project each logit onto ``(-inf, 0]`` where its label is <= 0, else ``[margin, inf)`` (Theorem 10)."""
    return jnp.where(labels <= 0, jnp.minimum(x, 0), jnp.maximum(x, margin))


def prox_cross_entropy(x: Array, labels: Array, operators: Operators) -> Array:
    """argmin_u  lambda * CE(u, labels) + 1/2 ||u - x||^2 (Theorem 11), see :func:`displace_cross_entropy`."""
    return x + displace_cross_entropy(x, labels, operators)


def displace_cross_entropy(x: Array, labels: Array, operators: Operators) -> Array:
    """How far :func:`prox_cross_entropy` moves, ``lambda (labels - softmax(u))``, lambda = ``prox_lambda``.

    Args:
        x: logits ``(..., classes)``.
        labels: one-hot (or any distribution), same shape.
        operators: ``prox_sweeps`` chooses between Newton on Eq. 49, run to rounding (O(classes) a step), and a
            fixed number of sweeps of Eq. 49 from ``x`` (approximate: no contraction at lambda = 5, where it can end
            in a 2-cycle). Newton's has the digits of the logits also where it is small.
    """
    lam = operators.prox_lambda
    if operators.prox_sweeps is not None:
        move = jnp.zeros_like(x)
        for _ in range(operators.prox_sweeps):
            move = lam * (labels - jax.nn.softmax(x + move))
        return move

    # With w = lam softmax(u), so that u = pulled - w: log w + w = pulled + log lam - L, and L is such that sum w = lam.
    # Newton in log w and L; no entry of w is above lam. The start is half of a sweep.
    eps, top = float(jnp.finfo(x.dtype).eps), math.log(lam)
    # Logits far below the largest have w = 0, whatever they are: as they are, they would drown the others in rounding.
    x = jnp.maximum(x - jnp.max(x, -1, keepdims=True, initial=-jnp.inf), -1000 - 2 * lam)
    pulled = x + lam * labels
    # A residual below eps^(1/2) leaves a quadratic error below eps; none gets below the rounding of its terms.
    tolerance = eps**0.5 + 4 * eps * (lam + jnp.max(jnp.abs(x), -1, keepdims=True, initial=0))

    def refine(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        log_w, _, count = carry
        w = jnp.exp(log_w)
        share, gap = w / (1 + w), pulled + top - log_w - w
        level = (jnp.sum(w + share * gap, -1, keepdims=True) - lam) / jnp.sum(share, -1, keepdims=True)
        residual = gap - level
        return jnp.minimum(log_w + residual / (1 + w), top), jnp.any(jnp.abs(residual) > tolerance), count + 1

    start = top + jax.nn.log_softmax((x + pulled - lam * jax.nn.softmax(x)) / 2)
    carry = start, jnp.array(True), jnp.zeros((), jnp.int32)
    log_w, *_ = lax.while_loop(lambda carry: carry[1] & (carry[2] < 100), refine, carry)
    move = lam * labels - jnp.exp(log_w)
    # The sum of all is known: so is the label's, which is the difference of two equal numbers where the loss is small.
    label = jax.nn.one_hot(jnp.argmax(labels, -1), x.shape[-1], dtype=bool)
    others = jnp.sum(jnp.where(label, 0, move), -1, keepdims=True)
    return jnp.where(label, lam * (jnp.sum(labels, -1, keepdims=True) - 1) - others, move)


def prox_squared_error(x: Array, targets: Array, operators: Operators) -> Array:
    """argmin_u  lambda ||u - targets||^2 + 1/2 ||u - x||^2, see :func:`displace_squared_error`."""
    return x + displace_squared_error(x, targets, operators)


def displace_squared_error(x: Array, targets: Array, operators: Operators) -> Array:
    """How far :func:`prox_squared_error` moves, lambda = ``prox_lambda``: closed form, exact.

    Args:
        x: outputs, any shape.
        targets: same shape.
        operators: for ``prox_lambda`` alone; the same in both presets.
    """
    pull = 2 * operators.prox_lambda
    return pull / (1 + pull) * (targets - x)
