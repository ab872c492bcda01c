"""The rule tables: which primitive is a constraint, which a copy, and how a constraint is projected.

One primitive is one paragraph: the function, its projection, its registration. All rules of
``projection_rules`` have one signature,

    rule(operands, target, weight, operators, **params) -> (projected operands, output)

with ``operands`` a tuple of arrays whose elements are one edge each, ``target`` the mean over the edges
that leave the output, ``weight`` the factor of its distance (see :mod:`pjax_core.projections`),
``operators`` the :class:`~pjax_core.operators.Operators`, and ``params`` the primitive's own. A loss has
no outgoing edges: its ``target`` is ``None`` and so is the output it returns. Bilinear primitives share
one rule (:class:`Bilinear`) because each of their operand elements is many edges.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.extend.core import primitives as jax_primitives
from jax.interpreters import ad, batching, mlir
from jax.typing import ArrayLike

from pjax_core import projections
from pjax_core.operators import Operators

Operands = tuple[Array, ...]
Projected = tuple[Operands, Array | None]
Rule = Callable[..., Projected]


@dataclasses.dataclass(frozen=True)
class Bilinear:
    """A primitive ``f(x, w)`` whose every output is a sum of products ``x_i w_j``: a batch of dots.

    Attributes:
        expand: ``expand(x, w, **params) -> (x', w')``, the copies that the products are made of, shape
            ``output.shape + (terms,)``: ``f(x, w) = sum(x' * w', -1)``. Copies only.
        ones: ``ones(a, position, other_shape, **params)``: ``f(a, 1)`` (position 0) or ``f(1, a)`` (1), of
            length 1 in the output axes that only the other operand has (its free axes). A sum of rows,
            where a product with a matrix of ones would cost as much as ``f``. Linear in ``a``.
        product: ``product(x, w, **params)``: ``f`` in another form whose transposes compile to less; or ``None``.
        contract: ``contract(copies, position, shapes, **params)``: the transpose of ``expand`` for one operand, from
            the shapes of both, in a form that compiles to less than JAX's; or ``None``.
    """

    expand: Callable[..., tuple[Array, Array]]
    ones: Callable[..., Array]
    product: Callable[..., Array] | None = None
    contract: Callable[..., Array] | None = None


projection_rules: dict[Primitive, Rule] = {}
loss_rules: dict[Primitive, Rule] = {}
bilinear_rules: dict[Primitive, Bilinear] = {}
copy_rules: dict[Primitive, tuple[int, ...] | None] = {}
decompositions: dict[Primitive, Callable[..., Callable[..., Any] | str | None]] = {}
elementwise: set[Primitive] = set()  # primitives that repeat scalars and axes of length 1 by themselves


def _register(table: dict[Primitive, Any], prim: Primitive, rule: Any) -> None:
    if any(prim in known for known in (projection_rules, loss_rules, bilinear_rules, copy_rules)):
        raise ValueError(f"primitive {prim} has a rule already; a second one is refused")
    table[prim] = rule


def defproj(prim: Primitive, rule: Rule) -> None:
    """Register the projection of a constraint (see the module for the signature)."""
    _register(projection_rules, prim, rule)


def defelementwise(prim: Primitive, rule: "Rule | Bilinear") -> None:
    """Register a constraint on equal positions of its operands; smaller operands are copied to fit."""
    _register(bilinear_rules if isinstance(rule, Bilinear) else projection_rules, prim, rule)
    elementwise.add(prim)


def defloss(prim: Primitive, rule: Rule) -> None:
    """Register a target node: its rule projects the operands or applies the loss's proximal operator.

    ``target`` is ``None`` for it.
    """
    _register(loss_rules, prim, rule)


def defbilinear(prim: Primitive, rule: Bilinear) -> None:
    """Register a sum-of-products primitive; the generic rule (Theorem 7) does the rest."""
    _register(bilinear_rules, prim, rule)


def defshape(prim: Primitive, data: tuple[int, ...] | None = None) -> None:
    """Register a copy: a primitive that moves values and changes none.

    Args:
        prim: of one result, linear, with 0/1 coefficients, in its data operands, and transposable by JAX.
        data: positions of the operands that carry values; the rest are indices. ``None``: all.
    """
    if prim.multiple_results:
        raise ValueError(f"copy {prim} has several results; make them one by one: pjax.defcomp(primitive, fun)")
    _register(copy_rules, prim, data)


def defcomp(prim: Primitive, fun: Callable[..., Callable[..., Any] | str | None]) -> None:
    """Register a primitive that simpler ones replace.

    Args:
        prim: the primitive.
        fun: ``fun(*avals, **params)``, with the operands' shapes and dtypes, returns a function of the operands to
            trace in its place, ``None`` where the primitive is simple enough to have a rule, or a text that
            says why there is none and what to do.
    """
    if prim in decompositions:
        raise ValueError(f"primitive {prim} has a decomposition already; a second one is refused")
    decompositions[prim] = fun


def defprimitive(name: str, fun: Callable[..., Array]) -> Primitive:
    """Make a JAX primitive of an array function that works element-wise over leading axes.

    All operands have one rank or, for a trailing-axis function, agree on the leading axes; ``jax.vmap``
    adds an axis in front. Differentiation, where the function has it, is the function's own.
    """
    prim = Primitive(name)
    prim.def_impl(fun)

    def abstract(*avals: Any, **params: Any) -> ShapedArray:
        out = jax.eval_shape(functools.partial(fun, **params), *avals)
        return ShapedArray(out.shape, out.dtype)

    def jvp(primals: Any, tangents: Any, **params: Any) -> tuple[Array, Array]:
        tangents = tuple(map(ad.instantiate_zeros, tangents))
        return jax.jvp(functools.partial(fun, **params), primals, tangents)

    def batch(args: Any, dims: Any, **params: Any) -> tuple[Array, int]:
        size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
        args = [batching.bdim_at_front(a, d, size) for a, d in zip(args, dims, strict=True)]
        return prim.bind(*args, **params), 0

    prim.def_abstract_eval(abstract)
    mlir.register_lowering(prim, mlir.lower_fun(fun, multiple_results=False))
    ad.primitive_jvps[prim] = jvp
    batching.primitive_batchers[prim] = batch
    return prim


def rule_of(prim: Primitive) -> Rule:
    """The projection of a constraint that is not bilinear, or of a loss."""
    return projection_rules.get(prim) or loss_rules[prim]


def _of(project: Callable[..., Operands]) -> Rule:
    """Make the rule of ``project(*operands, target, weight, **params) -> (*projected, output)``."""

    def rule(operands: Operands, target: Array, weight: ArrayLike, _: Operators, **params: Any) -> Projected:
        *projected, output = project(*operands, target, weight, **params)
        return tuple(projected), output

    return rule


@dataclasses.dataclass(frozen=True)
class Linear:
    """The rule of a function that is linear in its operands but the last ``constants``, which stay as they are."""

    fun: Callable[..., Array]
    constants: int = 0

    def displace(
        self, operands: Operands, distance: Array, weight: ArrayLike, _: Operators, **params: Any
    ) -> tuple[Operands, Array]:
        """How far the operands move for a target so far from the output, and what is left of that."""
        count = len(operands) - self.constants
        moving, fixed = operands[:count], operands[count:]
        moves, left = projections.displace_linear(lambda *xs: self.fun(*xs, *fixed, **params), moving, distance, weight)
        return (*moves, *map(jnp.zeros_like, fixed)), left

    def __call__(self, operands: Operands, target: Array, *args: Any, **params: Any) -> Projected:
        """Project."""
        moves, left = self.displace(operands, target - self.fun(*operands, **params), *args, **params)
        return tuple(x + move for x, move in zip(operands, moves, strict=True)), target - left


# Identity (Theorem 4). Inserted on odd cycles to make the graph bipartite.

identity_p = defprimitive("identity", lambda x: x)
defproj(identity_p, Linear(lambda x: x))

# Sums (Theorem 5): of two arrays, with signs, and over axes.

defelementwise(jax_primitives.add_p, Linear(lambda x, w: x + w))
defelementwise(jax_primitives.sub_p, Linear(lambda x, w: x - w))
defelementwise(jax_primitives.neg_p, Linear(lambda x: -x))
defproj(jax_primitives.reduce_sum_p, Linear(lambda x, *, axes, **_: jnp.sum(x, axes)))

# Mean (Theorem 5). The trace makes it of a sum and its division by its size; axes count from the last, so
# that a batch axis in front changes none.

mean_p = defprimitive("mean", lambda x, *, axes: jnp.mean(x, axes))
defproj(mean_p, Linear(lambda x, *, axes: jnp.mean(x, axes)))

# Multiplication by a constant. The trace makes it of `mul` and `div`; the constant is not moved.

scale_p = defprimitive("scale", lambda x, factor: x * factor)
defelementwise(scale_p, Linear(lambda x, factor: x * factor, constants=1))

# ReLU of a sum (Theorem 6). The trace makes it of `max(., 0)` and the additions that feed it.

sum_relu_p = defprimitive("sum_relu", lambda *xs: jax.nn.relu(sum(xs[1:], xs[0])))
defproj(sum_relu_p, lambda xs, y, n, ops: projections.project_sum_relu(xs, y, n, exact=ops.exact_sum_relu))

# Maximum (Theorem 8): over axes, and of two arrays. A constant among the two is an operand like any other:
# its copies move, and the constant's own node restores them.


def _project_max(x: Array, target: Array, weight: ArrayLike, *, axes: tuple[int, ...], **_: Any) -> Operands:
    return projections.project_max(x, target, weight, axes=axes)


defproj(jax_primitives.reduce_max_p, _of(_project_max))
defelementwise(jax_primitives.max_p, _of(projections.project_maximum))

# Steps: quantisation (Theorem 9) and the sign. Their derivatives are zero; their projections are not.


def _step(project: Callable[..., projections.Point]) -> Rule:
    """Make the rule of ``project(x, target, weight, margin=, **params)``."""

    def rule(operands: Operands, target: Array, weight: ArrayLike, operators: Operators, **params: Any) -> Projected:
        x, output = project(*operands, target, weight, margin=operators.step_margin, **params)
        return (x,), output

    return rule


quantize_p = defprimitive("quantize", projections.quantize)
defproj(quantize_p, _step(projections.project_quantize))
defproj(jax_primitives.sign_p, _step(projections.project_sign))

# Dot products (Theorem 7): every bilinear primitive.


def _arrange(a: Array, position: int, other_rank: int, dimension_numbers: Any) -> Array:
    """Transpose an operand to axes (batch, free of x, free of w, terms), of length 1 where only the other has them."""
    contracted, batch = (axes[position] for axes in dimension_numbers)
    free = [i for i in range(a.ndim) if i not in (*contracted, *batch)]
    others = [1] * (other_rank - len(contracted) - len(batch))
    batch_shape, free_shape, terms = ([a.shape[i] for i in axes] for axes in (batch, free, contracted))
    shape = [*free_shape, *others] if position == 0 else [*others, *free_shape]
    return a.transpose([*batch, *free, *contracted]).reshape(*batch_shape, *shape, math.prod(terms))


def _expand_dot_general(x: Array, w: Array, *, dimension_numbers: Any, **_: Any) -> tuple[Array, Array]:
    arranged = _arrange(x, 0, w.ndim, dimension_numbers), _arrange(w, 1, x.ndim, dimension_numbers)
    x, w = jnp.broadcast_arrays(*arranged)
    return x, w


def _contract_dot_general(
    copies: Array, position: int, shapes: Sequence[tuple[int, ...]], *, dimension_numbers: Any, **_: Any
) -> Array:
    """Sum the copies, in parts that are added first: XLA's compiler for processors makes all that it sums."""
    operand = jax.ShapeDtypeStruct(shapes[position], copies.dtype)

    def arrange(a: Array) -> Array:
        return _arrange(a, position, len(shapes[1 - position]), dimension_numbers)

    once = jax.eval_shape(arrange, operand).shape
    repeated = [axis for axis, size in enumerate(once) if size != copies.shape[axis]]
    for axis in repeated:
        before, size, after = copies.shape[:axis], copies.shape[axis], copies.shape[axis + 1 :]
        parts = max(parts for parts in range(1, 5) if size % parts == 0)
        if size > 32:  # fewer are summed as they are made; neighbours, which are on one device
            pieces = copies.reshape(*before, size // parts, parts, *after)
            first, *others = (lax.index_in_dim(pieces, i, axis + 1, False) for i in range(parts))
            copies = sum(others, first)
    return jax.linear_transpose(arrange, operand)(jnp.sum(copies, repeated, keepdims=True))[0]


def _ones_dot_general(
    a: Array, position: int, other_shape: tuple[int, ...], *, dimension_numbers: Any, **_: Any
) -> Array:
    return jnp.sum(_arrange(a, position, len(other_shape), dimension_numbers), -1)


def _flat_dot_general(x: Array, w: Array, *, dimension_numbers: Any, **params: Any) -> Array:
    """The product of two matrices, whose transposes are products of matrices: of more axes XLA transposes copies."""
    contracted, (batch, _) = dimension_numbers
    if batch:
        return lax.dot_general(x, w, dimension_numbers, **params)

    def matrix(a: Array, axes: tuple[int, ...]) -> tuple[Array, int, list[int]]:
        free = [i for i in range(a.ndim) if i not in axes]
        terms, size = (math.prod(a.shape[i] for i in group) for group in (axes, free))
        shape = [a.shape[i] for i in free]
        if [*axes, *free] == [*range(a.ndim)]:
            return a.reshape(terms, size), 0, shape
        return a.transpose([*free, *axes]).reshape(size, terms), 1, shape

    (x, x_axis, x_shape), (w, w_axis, w_shape) = map(matrix, (x, w), contracted)
    return lax.dot_general(x, w, (((x_axis,), (w_axis,)), ((), ())), **params).reshape(*x_shape, *w_shape)


defbilinear(
    jax_primitives.dot_general_p,
    Bilinear(_expand_dot_general, _ones_dot_general, _flat_dot_general, _contract_dot_general),
)


defelementwise(jax_primitives.mul_p, Bilinear(lambda x, w, **_: (x[..., None], w[..., None]), lambda a, *_, **__: a))

# Losses: proximal operators of cross-entropy (Theorem 11) and squared error, the margin constraint (Theorem 10).


def _with_labels(apply: Callable[..., Array]) -> Rule:
    """Make the rule of ``apply(x, labels, operators, **params)``; the labels stay as they are."""

    def rule(operands: Operands, _target: None, _weight: ArrayLike, operators: Operators, **params: Any) -> Projected:
        x, labels = operands
        return (apply(x, labels, operators, **params), labels), None

    return rule


def _margin_value(x: Array, labels: Array, *, margin: float) -> Array:
    return jnp.sum(jnp.abs(x - projections.project_margin(x, labels, margin=margin)), -1)


cross_entropy_p = defprimitive("cross_entropy", lambda x, y: jax.nn.logsumexp(x, axis=-1) - jnp.sum(y * x, -1))
defloss(cross_entropy_p, _with_labels(projections.prox_cross_entropy))

margin_p = defprimitive("margin", _margin_value)
defloss(margin_p, _with_labels(lambda x, labels, _, *, margin: projections.project_margin(x, labels, margin=margin)))

squared_error_p = defprimitive("squared_error", lambda x, targets: jnp.sum(jnp.square(x - targets), -1))
defloss(squared_error_p, _with_labels(projections.prox_squared_error))

# Copies. A new one is one line: its transpose is JAX's. What has several results is made of those that have one.

for _prim in (
    jax_primitives.broadcast_in_dim_p,
    jax_primitives.concatenate_p,
    jax_primitives.copy_p,
    jax_primitives.pad_p,
    jax_primitives.reshape_p,
    jax_primitives.rev_p,
    jax_primitives.slice_p,
    jax_primitives.squeeze_p,
    jax_primitives.transpose_p,
    lax.stack_p,
    lax.tile_p,
):
    defshape(_prim)


def _split(operand: ShapedArray, *, sizes: tuple[int, ...], axis: int) -> Callable[[Array], list[Array]]:
    ends = [*itertools.accumulate(sizes)]
    return lambda x: [lax.slice_in_dim(x, end - size, end, axis=axis) for size, end in zip(sizes, ends, strict=True)]


defcomp(lax.split_p, _split)
defshape(jax_primitives.gather_p, data=(0,))
defshape(jax_primitives.dynamic_slice_p, data=(0,))
