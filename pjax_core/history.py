"""Copies of a bilinear node as combinations of past consensus values, for methods that combine linearly.

An output's copies ``(x', w')`` are held as their sum and difference, ``u = x' + w'`` and ``v = x' - w'``, because
everything that happens to them acts on each of the two by itself: a projection (Eq. 31) multiplies u by
``1 / (1 - lambda)`` and v by ``1 / (1 + lambda)``, a consensus (X, W) adds ``X + W`` and ``X - W``. A *number* below
is the pair of factors of u and v, one of each per output. Slots are stacked along a leading axis and worked through
by a scan, so that a program's size does not depend on the window.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from pjax_core import projections
from pjax_core.bilinear import Operands
from pjax_core.copies import Holder, Projected, Values

Number = tuple[Array, Array]


class Inner(NamedTuple):
    """Inner products of two consensus values (x, w) and (x', w') per output.

    ``x`` and ``w``: ``<x, x'>`` and ``<w, w'>``, of length 1 where they repeat. ``cross``: ``<x, w'> + <w, x'>``.
    """

    x: Array
    w: Array
    cross: Array

    def both(self) -> Number:
        """Return ``<x + w, x' + w'>`` and ``<x - w, x' - w'>``."""
        norm = self.x + self.w
        return norm + self.cross, norm - self.cross


@dataclasses.dataclass(frozen=True, eq=False)
class Written:
    """A consensus that all copies of a node were given; compared by identity."""

    operands: Operands


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HistoryState:
    """Copies as combinations of consensus values: of the past (slots, oldest first) and of the step so far.

    Attributes:
        slots: the consensus values x and w, ``(slots, *operand)``; ``None`` for an operand that is constant.
        coefficients: the slots' numbers, ``(slots, *output)`` each.
        gram: inner products of the slots, ``(slots, slots, *output)``.
        new: numbers of what was written since the step began.
    """

    slots: tuple[Array | None, ...]
    coefficients: Number
    gram: Inner
    new: dict[Written, Number] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class History(Holder):
    """A bilinear node's copies as combinations of past consensus values: O(window (nodes + parameters)).

    A projection multiplies the copies by a number and a consensus replaces them, so every linear method
    stays within such combinations. Exact while the window holds the whole past; otherwise the oldest
    coefficient is added to the next-oldest slot, an error of |coefficient| times the change of the consensus
    between the two. Either way the state is some set of copies, and its norms are those copies' own: folding
    makes an error, never an impossible state.
    """

    window: int

    def start(self) -> HistoryState:
        """State of a network at rest, with as many slots as the window so that its shape is steady."""
        operands = self.spread({})
        own = self._inner(operands, operands, self.dots.product(*operands))
        slots = tuple(jnp.stack([a] * self.window) if self._moves(i) else None for i, a in enumerate(operands))
        newest = (np.arange(self.window) == self.window - 1).reshape(-1, *(1,) * len(self.node.shape))
        one = jnp.broadcast_to(jnp.asarray(newest, self.node.dtype), (self.window, *self.node.shape))
        gram = jax.tree.map(lambda a: jnp.broadcast_to(a, (self.window, self.window, *a.shape)), own)
        return HistoryState(slots, (one, one), gram)

    def _moves(self, position: int) -> bool:
        """Whether an operand is not constant."""
        return bool(self.counts[position])

    def write(self, z: HistoryState, values: Values) -> HistoryState:
        """Give every copy the value of its producer; all producers write at once."""
        one = jnp.ones(self.node.shape, self.node.dtype)
        zeros = jax.tree.map(jnp.zeros_like, z.coefficients)
        return dataclasses.replace(z, coefficients=zeros, new={Written(self.spread(values)): (one, one)})

    def _over_terms(
        self, fun: Callable[[Any, Operands, Any], tuple[Any, Any]], carry: Any, z: HistoryState, slots: Any, new: Any
    ) -> tuple[Any, Any, list[Any]]:
        """Work ``carry, y = fun(carry, operands, a)`` through the slots and what is new, with an a for each.

        Returns the carry, the y of the slots, stacked, and those of what is new.
        """
        constants = self.spread({})

        def step(carry: Any, slot: tuple[Sequence[Array | None], Any]) -> tuple[Any, Any]:
            operands = (always if own is None else own for own, always in zip(slot[0], constants, strict=True))
            return fun(carry, tuple(operands), slot[1])

        carry, stacked = jax.lax.scan(step, carry, (z.slots, slots), unroll=min(self.window, 4))
        ys = []
        for term, a in zip(z.new, new, strict=True):
            carry, y = fun(carry, term.operands, a)
            ys.append(y)
        return carry, stacked, ys

    def _inner(self, new: Operands, old: Operands, product: Array) -> Inner:
        """Inner products per output; ``product`` is f(old)."""
        dots = self.dots
        if self._moves(0) and self._moves(1):
            cross = dots.product(new[0], old[1]) + dots.product(old[0], new[1])
        else:  # <x, w'> + <w, x'> is f(new) + f(old)
            cross = dots.product(*new) + product
        x, w = dots.norms(new, old)
        return Inner(x, w, cross)

    def _rows(self, z: HistoryState) -> list[tuple[Inner, list[Inner]]]:
        """Inner products of everything new with the slots, stacked, and with everything new."""
        new = [term.operands for term in z.new]
        products = _diagonal(z.gram.cross) / 2, [self.dots.product(*pair) for pair in new]

        def row(pair: Operands) -> tuple[Inner, list[Inner]]:
            return self._over_terms(lambda _, old, f: (None, self._inner(pair, old, f)), None, z, *products)[1:]

        return [row(pair) for pair in new]

    def _norm(self, z: HistoryState) -> Number:
        """Squared norms of u and v, at least their own rounding."""
        rows = self._rows(z)

        def norm(i: int) -> Array:
            a, new, gram = z.coefficients[i], [number[i] for number in z.new.values()], z.gram.both()[i]
            total = jnp.sum(a[:, None] * a[None] * gram, (0, 1))
            floor = jnp.sum(a * a * _diagonal(gram), 0)
            for j, (old, others) in enumerate(rows):
                total += 2 * new[j] * jnp.sum(a * old.both()[i], 0)
                total += new[j] * sum(b * other.both()[i] for b, other in zip(new, others, strict=True))
                floor += new[j] * new[j] * others[j].both()[i]
            return jnp.maximum(total, float(jnp.finfo(total.dtype).eps) * floor)

        return norm(0), norm(1)

    def mean(self, z: HistoryState, position: int, producer: int) -> Array:
        """Average the copies of each element of a producer."""
        dots, living = self.dots, self.living
        once = not self._moves(1 - position)

        def add(carry: tuple[Array, Array], operands: Operands, number: Number) -> tuple[tuple[Array, Array], None]:
            # Of an output's own operand (u + v) / 2 and of the other one (u - v) / 2, as (u + v) x + (u - v) w over 2.
            (total, d), (u, v) = carry, number
            total += operands[position] * dots.total(living((u + v) / 2))[position]
            d += living((u - v) / 2)
            if once:
                # The other operand is the same in every term: its coefficients add up, one product in all.
                return (total, d), None
            return (total + dots.pull(d, operands)[position], jnp.zeros_like(d)), None

        operand = self.node.operands[position]
        carry = (jnp.zeros(operand.shape, operand.dtype), jnp.zeros(self.node.shape, self.node.dtype))
        (total, d), *_ = self._over_terms(add, carry, z, z.coefficients, z.new.values())
        if once:
            total += dots.pull(d, self.spread({}))[position]
        return self.means(position, total)[producer]

    def project(self, z: HistoryState, target: Array | None, weight: ArrayLike) -> Projected:
        """Project: multiply by one number per output (Theorem 7)."""
        assert target is not None
        plus, minus = self._norm(z)
        root = projections.dot_root((plus - minus) / 4, [(plus + minus) / 2], target, weight, self.operators)

        def scaled(number: Number, root: Array) -> Number:
            return number[0] / (1 - root), number[1] / (1 + root)

        new = {term: scaled(number, root) for term, number in z.new.items()}
        z = dataclasses.replace(z, coefficients=scaled(z.coefficients, root[None]), new=new)
        return target - root / weight, z, root

    def combine(self, terms: Sequence[tuple[float, HistoryState]]) -> HistoryState:
        """Sum of scalars times copies."""
        new: dict[Written, Number] = {}
        for scalar, z in terms:
            for term, number in z.new.items():
                known = new.get(term, (0, 0))
                new[term] = known[0] + scalar * number[0], known[1] + scalar * number[1]
        u, v = (sum(scalar * z.coefficients[i] for scalar, z in terms) for i in (0, 1))
        return dataclasses.replace(terms[0][1], coefficients=(u, v), new=new)

    def coefficients(self, z: HistoryState) -> list[Array]:
        """Factors of u and of v in every slot and new term, oldest first."""
        return [_longer(z.coefficients[i], [number[i] for number in z.new.values()]) for i in (0, 1)]

    def folded(self, z: HistoryState) -> Array:
        """Largest coefficient that settling folds into the next-oldest slot."""
        return jnp.max(jnp.abs(jnp.stack(self.coefficients(z))[:, : len(z.new)]), initial=0)

    def settle(self, z: HistoryState) -> HistoryState:
        """Make slots of what is new, folding what the window cannot hold."""
        if not z.new:
            return z
        drop = len(z.new)
        slots = tuple(
            None if a is None else _longer(a, [term.operands[i] for term in z.new])[drop:]
            for i, a in enumerate(z.slots)
        )
        u, v = (a[drop:].at[0].add(jnp.sum(a[:drop], 0)) for a in self.coefficients(z))

        def larger(gram: Array, *rows: Array) -> Array:
            added = jnp.stack(rows)
            gram = jnp.concatenate([gram, jnp.swapaxes(added[:, : self.window], 0, 1)], 1)
            return jnp.concatenate([gram, added])[drop:, drop:]

        rows = [jax.tree.map(lambda a, *new: _longer(a, new), old, *others) for old, others in self._rows(z)]
        return HistoryState(slots, (u, v), jax.tree.map(larger, z.gram, *rows))


def _longer(stacked: Array, new: Sequence[Array]) -> Array:
    """Append along the leading axis."""
    return jnp.concatenate([stacked, *(a[None] for a in new)])


def _diagonal(gram: Array) -> Array:
    return gram.reshape(-1, *gram.shape[2:])[:: len(gram) + 1]
