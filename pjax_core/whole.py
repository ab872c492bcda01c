"""All copies of a bilinear node, times one number per output while a step goes on."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pjax_core import projections
from pjax_core.bilinear import Operands
from pjax_core.history import Combined, HistoryState, Number


@dataclasses.dataclass(frozen=True, eq=False)
class Whole(Combined):
    """All copies of a bilinear node, every u and v, and numbers per output for what a step does: O(edges).

    Exact up to rounding of the larger of x and w. The edges are read for norms and means, and written when they are
    settled, each where it lies: as x and w, both made of both, they would be held twice for that.
    """

    def start(self) -> HistoryState:
        """State of a network at rest."""
        return self._times_one(self._both(self.spread({})))

    def _times_one(self, slots: Operands) -> HistoryState:
        """Copies that are these u and v; their number takes no array of the outputs' size."""
        one = jnp.ones((1,) * (1 + len(self.node.shape)), self.node.dtype)
        return HistoryState(slots, Number(one, one), None)

    def _both(self, operands: Operands) -> Operands:
        """Return u and v of a consensus, ``(*output, terms)``."""
        x, w = self.dots.expand(*operands)
        return x + w, x - w

    def _edges(self, z: HistoryState) -> Operands:
        """Return every u and v, ``(*output, terms)``."""
        parts = [(number[:2], self._both(term.operands)) for term, number in z.new.items()]
        if z.scale:
            u, v = z.number()[:2]
            assert z.slots[0] is not None
            assert z.slots[1] is not None
            parts.append(((u[0], v[0]), (z.slots[0], z.slots[1])))
        scaled = [[a[..., None] * copies for a, copies in zip(*part, strict=True)] for part in parts]
        u, v = (functools.reduce(jnp.add, terms) for terms in zip(*scaled, strict=True))
        return u, v

    def terms(self, z: HistoryState) -> tuple[Callable[[Any], tuple[Array, Array]], Any]:
        """Squared norms of u and v, as :func:`projections.dot_root` takes them."""
        u, v = self._edges(z)
        return tuple, projections.sums([u * u, v * v], (-1,))

    def mean(self, z: HistoryState, position: int, producer: int, done: Array | None = None) -> Array:
        """Average the copies of each element of a producer."""
        del done  # the means of all producers are parts of one sum
        u, v = (jax.vmap(self.living, -1, -1)(copies) for copies in self._edges(z))
        return self.means(position, self.dots.contract(((u + v) / 2, (u - v) / 2))[position])[producer]

    def settle(self, z: HistoryState, done: Array | None = None) -> HistoryState:
        """Make what is new part of the copies."""
        del done  # others wait for it
        return self._times_one(self._edges(z))
