"""Batches of dot products without their edges: sums over copies by linear transposes.

For ``f(x, w) = sum of products`` every output has its own copy of the elements that it reads. Any set of
copies of the form ``x' = a x + d w, w' = a w + d x`` with one pair ``(a, d)`` per output (a consensus, a
projection of it, a reflection, a sum of those) is known by x, w and the pair, and what a solver needs of
it are sums that cost as much as ``f`` itself.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pjax_core import rules
from pjax_core.graph import Node


def projection_factor(root: Array) -> tuple[Array, Array]:
    """Eq. 31: the projection makes of a dot's copies ``a x + d w`` and ``a w + d x``; returns a and d."""
    scale = 1 / (1 - root * root)
    return scale, root * scale


class Dots:
    """The sums of one bilinear node; ``x`` and ``w`` stand for arrays of its two operands' shapes."""

    def __init__(self, node: Node) -> None:
        assert node.primitive is not None
        self._params = dict(node.params)
        self._primitive = node.primitive
        self.rule = rules.bilinear_rules[node.primitive]
        self._shapes = [jax.ShapeDtypeStruct(o.shape, o.dtype) for o in node.operands]
        self._output = node.shape

    def product(self, x: Array, w: Array) -> Array:
        """f(x, w)."""
        return self._primitive.bind(x, w, **self._params)

    def expand(self, x: Array, w: Array) -> tuple[Array, Array]:
        """Return one copy per edge, shape ``output.shape + (terms,)``."""
        return self.rule.expand(x, w, **self._params)

    def contract(self, copies: tuple[Array, Array]) -> tuple[Array, Array]:
        """Sum the edges' copies back to the operands' shapes (the transpose of :meth:`expand`)."""
        return jax.linear_transpose(lambda x, w: self.expand(x, w), *self._shapes)(copies)

    def _with_ones(self, position: int) -> Callable[[Array], Array]:
        """Return ``f(., 1)`` or ``f(1, .)``, of length 1 in the other operand's free axes."""
        other = self._shapes[1 - position].shape
        return lambda a: self.rule.ones(a, position, other, **self._params)

    def norm(self, operands: tuple[Array, Array], others: tuple[Array, Array]) -> Array:
        """Per output <x, x'> + <w, w'>: f(x x', 1) + f(1, w w')."""
        (x, w), (x2, w2) = operands, others
        return self._with_ones(0)(x * x2) + self._with_ones(1)(w * w2)

    def total(self, coefficient: Array, position: int) -> Array:
        """Sum a per-output coefficient over the copies of every element of an operand, f^T(a; 1)."""
        fun = self._with_ones(position)
        thin = jax.eval_shape(fun, self._shapes[position]).shape
        axes = [i for i, (n, m) in enumerate(zip(thin, self._output, strict=True)) if n != m]
        summed = jnp.sum(coefficient, tuple(axes), keepdims=True) if axes else coefficient
        (sums,) = jax.linear_transpose(fun, self._shapes[position])(summed)
        return sums

    def pull(self, coefficient: Array, other: Array, position: int) -> Array:
        """Sum a per-output coefficient times the other operand, f^T(d; other)."""

        def fun(a: Array) -> Array:
            return self.product(*((a, other) if position == 0 else (other, a)))

        (sums,) = jax.linear_transpose(fun, self._shapes[position])(coefficient)
        return sums

    def sums(self, coefficient: tuple[Array, Array], operands: tuple[Array, Array], position: int) -> Array:
        """Sum the copies ``a x + d w`` (position 0) or ``a w + d x`` (1) over the outputs."""
        own, other = operands[position], operands[1 - position]
        a, d = (jnp.broadcast_to(c, self._output).astype(own.dtype) for c in coefficient)
        return own * self.total(a, position) + self.pull(d, other, position)

    @property
    def terms(self) -> int:
        """Number of products that an output sums."""
        return jax.eval_shape(self.expand, *self._shapes)[0].shape[-1]

    def fan_out(self, position: int) -> float:
        """Return the mean number of copies of an element of an operand."""
        copies = jax.eval_shape(self.expand, *self._shapes)[position]
        return copies.size / self._shapes[position].size
