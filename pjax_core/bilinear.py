"""Batches of dot products without their edges: sums over copies by linear transposes.

For ``f(x, w) = sum of products`` every output has its own copy of the elements that it reads. Any set of
copies of the form ``x' = a x + d w, w' = a w + d x`` with one pair ``(a, d)`` per output (a consensus, a
projection of it, a reflection, a sum of those) is known by x, w and the pair, and what a solver needs of
it are sums that cost as much as ``f`` itself.
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jax import Array

from pjax_core import rules
from pjax_core.graph import Node

Operands = tuple[Array, ...]


def projection_factor(root: Array) -> tuple[Array, Array]:
    """Eq. 31: the projection makes of a dot's copies ``a x + d w`` and ``a w + d x``; returns a and d."""
    scale = 1 / (1 - root * root)
    return scale, root * scale


class Dots:
    """The sums of one bilinear node; ``x`` and ``w`` stand for arrays of its two operands' shapes."""

    def __init__(self, node: Node) -> None:
        assert node.primitive is not None
        self._node, self._rule, self._params = node, rules.bilinear_rules[node.primitive], dict(node.params)
        self._shapes = [jax.ShapeDtypeStruct(o.shape, o.dtype) for o in node.operands]

    def product(self, x: Array, w: Array) -> Array:
        """f(x, w)."""
        return self._rule.product(x, w, **self._params) if self._rule.product else self._node.evaluate((x, w))

    def expand(self, x: Array, w: Array) -> Operands:
        """Return one copy per edge, shape ``output.shape + (terms,)``."""
        return self._rule.expand(x, w, **self._params)

    def contract(self, copies: Operands) -> Operands:
        """Sum the edges' copies back to the operands' shapes (the transpose of :meth:`expand`)."""
        if self._rule.contract:
            shapes = [a.shape for a in self._shapes]
            x, w = (self._rule.contract(a, i, shapes, **self._params) for i, a in enumerate(copies))
            return x, w
        return jax.linear_transpose(self.expand, *self._shapes)(copies)

    def norms(self, operands: Operands, others: Operands) -> Operands:
        """Per output <x, x'> and <w, w'>: f(x x', 1) and f(1, w w'), of length 1 where they repeat."""
        (x, w), (x2, w2) = operands, others
        return self._ones(x * x2, 0), self._ones(w * w2, 1)

    def _ones(self, a: Array, position: int) -> Array:
        return self._rule.ones(a, position, self._shapes[1 - position].shape, **self._params)

    def _plain(self, x: Array, w: Array) -> Array:
        """f(x, 1) + f(1, w): per output the sum of the copies."""
        return jnp.broadcast_to(self._ones(x, 0) + self._ones(w, 1), self._node.shape)

    def total(self, coefficient: Array) -> Operands:
        """Sum a per-output coefficient over the copies of every element: f^T(a; 1) for x and for w."""
        return jax.linear_transpose(self._plain, *self._shapes)(coefficient)

    def pull(self, coefficient: Array, operands: Operands) -> Operands:
        """Sum a per-output coefficient times the other operand: f^T(d; w) for x and f^T(d; x) for w."""
        return jax.vjp(self.product, *operands)[1](coefficient)

    def sums(
        self, a: Array, d: Array, operands: Operands, after: Callable[[Array, Array], Array] | None = None
    ) -> Operands:
        """Sum the copies ``a x + d w`` and ``a w + d x`` over the outputs.

        With ``after(done, x)``, which returns x and waits for ``done``, x's sums are made before w's.
        """
        total, pull = self.total(a), self.pull(d, operands)
        if after:
            total = total[0], after(pull[0], total[1])
        return tuple(own * t + p for own, t, p in zip(operands, total, pull, strict=True))

    def fan_out(self, positions: Iterable[int]) -> float:
        """The least of the mean numbers of copies of an element of some operands (0: x, 1: w)."""
        copies, _ = jax.eval_shape(self.expand, *self._shapes)
        return min(copies.size / self._shapes[i].size for i in positions)
