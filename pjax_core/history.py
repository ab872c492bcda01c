"""Copies of a bilinear node as combinations of past consensus values, for methods that combine linearly.

An output's copies ``(x', w')`` are held as their sum and difference, ``u = x' + w'`` and ``v = x' - w'``, because
everything that happens to them acts on each of the two by itself: a projection (Eq. 31) multiplies u by
``1 / (1 - lambda)`` and v by ``1 / (1 + lambda)``, a consensus (X, W) adds ``X + W`` and ``X - W``. A *number* below
is the pair of factors of u and v, one of each per output: an array of shape ``(2, *output)``. Slots are stacked
along a leading axis and worked through by a scan, so that a program's size does not depend on the window.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from pjax_core import projections
from pjax_core.bilinear import Pair
from pjax_core.copies import Holder, Projected, Values


@dataclasses.dataclass(frozen=True, eq=False)
class Written:
    """A consensus that all copies of a node were given; compared by identity."""

    operands: Pair


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HistoryState:
    """Copies as combinations of consensus values: of the past (slots, oldest first) and of the step so far.

    Attributes:
        slots: the consensus values x and w, ``(slots, *operand)``; ``None`` for an operand that is constant.
        coefficients: a number per slot, ``(slots, 2, *output)``.
        gram: inner products of the slots, of their sums and of their differences, ``(slots, slots, 2, *output)``.
        new: numbers of what was written since the step began.
    """

    slots: tuple[Array | None, Array | None]
    coefficients: Array
    gram: Array
    new: dict[Written, Array] = dataclasses.field(default_factory=dict)


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

    @property
    def _constant(self) -> list[bool]:
        """Whether each operand is constant."""
        return [not producers for producers in self.counts]

    def start(self) -> HistoryState:
        """State of a network at rest, with as many slots as the window so that its shape is steady."""
        x, w = self.spread({})
        inner = self._inner((x, w), (x, w), self.dots.product(x, w))
        x, w = (
            None if constant else jnp.stack([a] * self.window)
            for a, constant in zip((x, w), self._constant, strict=True)
        )
        coefficients = jnp.zeros((self.window, *inner.shape), inner.dtype).at[-1].set(1)
        return HistoryState((x, w), coefficients, jnp.broadcast_to(inner, (self.window, *coefficients.shape)))

    def write(self, z: HistoryState, values: Values) -> HistoryState:
        """Give every copy the value of its producer; all producers write at once."""
        x, w = self.spread(values)
        one = jnp.ones_like(z.coefficients[0])
        return dataclasses.replace(z, coefficients=jnp.zeros_like(z.coefficients), new={Written((x, w)): one})

    def _over_slots(
        self, fun: Callable[[Any, Pair, Array], tuple[Any, Any]], carry: Any, z: HistoryState, per_slot: Array
    ) -> tuple[Any, Any]:
        """Scan ``carry, y = fun(carry, operands, number)`` over the slots."""

        def step(carry: Any, slot: tuple[Sequence[Array | None], Array]) -> tuple[Any, Any]:
            x, w = (always if own is None else own for own, always in zip(slot[0], constants, strict=True))
            return fun(carry, (x, w), slot[1])

        constants = self.spread({})
        return jax.lax.scan(step, carry, (z.slots, per_slot), unroll=min(self.window, 4))

    def _inner(self, new: Pair, old: Pair, product: Array) -> Array:
        """Number (<x + w, x' + w'>, <x - w, x' - w'>) per output; ``product`` is f(old)."""
        dots = self.dots
        norm = dots.norm(new, old)
        if any(self._constant):  # then <x, w'> + <w, x'> is f(new) + f(old)
            cross = dots.product(*new) + product
        else:
            cross = dots.product(new[0], old[1]) + dots.product(old[0], new[1])
        return jnp.stack([norm + cross, norm - cross])

    def _rows(self, z: HistoryState) -> list[Array]:
        """Inner products of every new term with the slots, the new terms before it and itself."""
        own = _diagonal(z.gram)
        products = (own[:, 0] - own[:, 1]) / 4  # f of the slots
        terms, rows = [term.operands for term in z.new], []
        for i, new in enumerate(terms):
            past = self._over_slots(lambda _, old, f, new=new: (None, self._inner(new, old, f)), None, z, products)[1]
            others = [self._inner(new, old, self.dots.product(*old)) for old in terms[: i + 1]]
            rows.append(jnp.concatenate([past, jnp.stack(others)]))
        return rows

    def _norm(self, z: HistoryState) -> Array:
        """Squared norms of u and v, at least their own rounding."""
        a = z.coefficients
        total = jnp.sum(a[:, None] * a[None] * z.gram, (0, 1))
        floor = jnp.sum(a * a * _diagonal(z.gram), 0)
        for number, row in zip(z.new.values(), self._rows(z), strict=True):
            total = total + number * (2 * jnp.sum(a * row[:-1], 0) + number * row[-1])
            floor = floor + number * number * row[-1]
            a = jnp.concatenate([a, number[None]])
        return jnp.maximum(total, float(jnp.finfo(total.dtype).eps) * floor)

    def mean(self, z: HistoryState, position: int, producer: int) -> Array:
        """Average the copies of each element of a producer."""
        dots, living = self.dots, self.living
        once = self._constant[1 - position]

        def add(carry: Pair, operands: Pair, number: Array) -> tuple[Pair, None]:
            # Of an output's own operand (u + v) / 2 and of the other one (u - v) / 2, as (u + v) x + (u - v) w over 2.
            (total, d), (u, v) = carry, number
            total += operands[position] * dots.total(living((u + v) / 2))[position]
            d += living((u - v) / 2)
            if once:
                # The other operand is the same in every term: its coefficients add up, one product in all.
                return (total, d), None
            return (total + dots.pull(d, operands)[position], jnp.zeros_like(d)), None

        operand = self.node.operands[position]
        carry = (jnp.zeros(operand.shape, operand.dtype), jnp.zeros_like(z.coefficients[0, 0]))
        carry, _ = self._over_slots(add, carry, z, z.coefficients)
        for term, number in z.new.items():
            carry, _ = add(carry, term.operands, number)
        total, d = carry
        if once:
            x, w = self.spread({})
            total += dots.pull(d, (x, w))[position]
        return self.means(position, total)[producer]

    def project(self, z: HistoryState, target: Array | None, weight: ArrayLike) -> Projected:
        """Project: multiply by one number per output (Theorem 7)."""
        assert target is not None
        u, v = self._norm(z)
        root = projections.dot_root((u - v) / 4, (u + v) / 2, target, weight, self.operators)
        factor = jnp.stack([1 / (1 - root), 1 / (1 + root)])
        new = {term: factor * c for term, c in z.new.items()}
        return target - root / weight, dataclasses.replace(z, coefficients=factor * z.coefficients, new=new), root

    def combine(self, terms: Sequence[tuple[float, HistoryState]]) -> HistoryState:
        """Sum of scalars times copies."""
        new: dict[Written, Array] = {}
        for scalar, z in terms:
            for term, number in z.new.items():
                new[term] = scalar * number + new.get(term, 0)
        coefficients = sum(scalar * z.coefficients for scalar, z in terms)
        return dataclasses.replace(terms[0][1], coefficients=coefficients, new=new)

    def coefficients(self, z: HistoryState) -> Array:
        """Numbers of every slot and new term, oldest first."""
        return jnp.concatenate([z.coefficients, *(number[None] for number in z.new.values())])

    def folded(self, z: HistoryState) -> Array:
        """Largest coefficient that settling folds into the next-oldest slot."""
        return jnp.max(jnp.abs(self.coefficients(z)[: len(z.new)]), initial=0)

    def settle(self, z: HistoryState) -> HistoryState:
        """Make slots of what is new, folding what the window cannot hold."""
        drop, coefficients, gram = len(z.new), self.coefficients(z), z.gram
        for row in self._rows(z):
            gram = jnp.concatenate([jnp.concatenate([gram, row[:-1, None]], 1), row[None]])
        x, w = (
            None if slots is None else jnp.concatenate([slots, *(term.operands[i][None] for term in z.new)])[drop:]
            for i, slots in enumerate(z.slots)
        )
        kept = coefficients[drop:].at[0].add(jnp.sum(coefficients[:drop], 0))
        return HistoryState((x, w), kept, gram[drop:, drop:])


def _diagonal(gram: Array) -> Array:
    return gram.reshape(-1, *gram.shape[2:])[:: len(gram) + 1]
