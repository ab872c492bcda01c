"""Copies of a bilinear node as combinations of past consensus values, for methods that combine linearly.

An output's copies ``(x', w')`` are held as their sum and difference, ``u = x' + w'`` and ``v = x' - w'``, because
everything that happens to them acts on each of the two by itself: a projection (Eq. 31) multiplies u by
``1 / (1 - lambda)`` and v by ``1 / (1 + lambda)``, a consensus (X, W) adds ``X + W`` and ``X - W``. A *number* below
is the pair of factors of u and v, one of each per output: an array of shape ``(2, *output)``. Slots are stacked
along a leading axis and worked through by a scan, so that a program's size does not depend on the window.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from pjax_core import projections
from pjax_core.bilinear import Operands
from pjax_core.copies import Holder, Projected, Values


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
        coefficients: a number per slot, ``(slots, 2, *output)``.
        gram: inner products of the slots, of their sums and of their differences, ``(slots, slots, 2, *output)``.
        new: numbers of what was written since the step began.
    """

    slots: tuple[Array | None, ...]
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

    def start(self) -> HistoryState:
        """State of a network at rest, with as many slots as the window so that its shape is steady."""
        operands = self.spread({})
        own = self._inner(operands, operands, self.dots.product(*operands))
        slots = tuple(jnp.stack([a] * self.window) if self._moves(i) else None for i, a in enumerate(operands))
        coefficients = jnp.zeros((self.window, *own.shape), own.dtype).at[-1].set(1)
        return HistoryState(slots, coefficients, jnp.broadcast_to(own, (self.window, *coefficients.shape)))

    def _moves(self, position: int) -> bool:
        """Whether an operand is not constant."""
        return bool(self.counts[position])

    def write(self, z: HistoryState, values: Values) -> HistoryState:
        """Give every copy the value of its producer; all producers write at once."""
        new = {Written(self.spread(values)): jnp.ones_like(z.coefficients[0])}
        return dataclasses.replace(z, coefficients=jnp.zeros_like(z.coefficients), new=new)

    def _over_terms(
        self, fun: Callable[[Any, Operands, Array], tuple[Any, Any]], carry: Any, z: HistoryState, numbers: Array
    ) -> tuple[Any, Any]:
        """Work ``carry, y = fun(carry, operands, number)`` through the slots and what is new."""
        constants = self.spread({})

        def step(carry: Any, slot: tuple[Sequence[Array | None], Array]) -> tuple[Any, Any]:
            operands = (always if own is None else own for own, always in zip(slot[0], constants, strict=True))
            return fun(carry, tuple(operands), slot[1])

        carry, ys = jax.lax.scan(step, carry, (z.slots, numbers[: self.window]), unroll=min(self.window, 4))
        for term, number in zip(z.new, numbers[self.window :], strict=True):
            carry, y = fun(carry, term.operands, number)
            ys = jax.tree.map(lambda ys, y: _longer(ys, [y]), ys, y)
        return carry, ys

    def _inner(self, new: Operands, old: Operands, product: Array) -> Array:
        """Number (<x + w, x' + w'>, <x - w, x' - w'>) per output; ``product`` is f(old)."""
        dots = self.dots
        norm = sum(dots.norms(new, old))
        if self._moves(0) and self._moves(1):
            cross = dots.product(new[0], old[1]) + dots.product(old[0], new[1])
        else:  # <x, w'> + <w, x'> is f(new) + f(old)
            cross = dots.product(*new) + product
        return jnp.stack([norm + cross, norm - cross])

    def _rows(self, z: HistoryState) -> list[Array]:
        """Inner products of everything new with the slots and everything new."""
        own, new = _diagonal(z.gram), [term.operands for term in z.new]
        products = _longer((own[:, 0] - own[:, 1]) / 4, [self.dots.product(*pair) for pair in new])

        def row(pair: Operands) -> Array:
            return self._over_terms(lambda _, old, f: (None, self._inner(pair, old, f)), None, z, products)[1]

        return [row(pair) for pair in new]

    def _norm(self, z: HistoryState) -> Array:
        """Squared norms of u and v, at least their own rounding."""
        a, new = z.coefficients, list(z.new.values())
        total = jnp.sum(a[:, None] * a[None] * z.gram, (0, 1))
        floor = jnp.sum(a * a * _diagonal(z.gram), 0)
        twice = _longer(2 * a, new)
        for i, row in enumerate(self._rows(z)):
            total += new[i] * jnp.sum(twice * row, 0)
            floor += new[i] * new[i] * row[self.window + i]
        return jnp.maximum(total, float(jnp.finfo(total.dtype).eps) * floor)

    def mean(self, z: HistoryState, position: int, producer: int) -> Array:
        """Average the copies of each element of a producer."""
        dots, living = self.dots, self.living
        once = not self._moves(1 - position)

        def add(carry: tuple[Array, Array], operands: Operands, number: Array) -> tuple[tuple[Array, Array], None]:
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
        (total, d), _ = self._over_terms(add, carry, z, self.coefficients(z))
        if once:
            total += dots.pull(d, self.spread({}))[position]
        return self.means(position, total)[producer]

    def project(self, z: HistoryState, target: Array | None, weight: ArrayLike) -> Projected:
        """Project: multiply by one number per output (Theorem 7)."""
        assert target is not None
        plus, minus = self._norm(z)
        root = projections.dot_root((plus - minus) / 4, [(plus + minus) / 2], target, weight, self.operators)
        factor = jnp.stack([1 / (1 - root), 1 / (1 + root)])
        new = {term: factor * number for term, number in z.new.items()}
        z = dataclasses.replace(z, coefficients=factor[None] * z.coefficients, new=new)
        return target - root / weight, z, root

    def combine(self, terms: Sequence[tuple[float, HistoryState]]) -> HistoryState:
        """Sum of scalars times copies."""
        new: dict[Written, Array] = {}
        for scalar, z in terms:
            new |= {term: scalar * number + new.get(term, 0) for term, number in z.new.items()}
        coefficients = sum(scalar * z.coefficients for scalar, z in terms)
        return dataclasses.replace(terms[0][1], coefficients=coefficients, new=new)

    def coefficients(self, z: HistoryState) -> Array:
        """Numbers of every slot and new term, oldest first."""
        return _longer(z.coefficients, z.new.values())

    def folded(self, z: HistoryState) -> Array:
        """Largest coefficient that settling folds into the next-oldest slot."""
        return jnp.max(jnp.abs(self.coefficients(z)[: len(z.new)]), initial=0)

    def settle(self, z: HistoryState) -> HistoryState:
        """Make slots of what is new, folding what the window cannot hold."""
        if not z.new:
            return z
        drop, coefficients, rows = len(z.new), self.coefficients(z), jnp.stack(self._rows(z))
        gram = jnp.concatenate([z.gram, jnp.swapaxes(rows[:, : self.window], 0, 1)], 1)
        slots = tuple(
            None if a is None else _longer(a, [term.operands[i] for term in z.new])[drop:]
            for i, a in enumerate(z.slots)
        )
        kept = coefficients[drop:].at[0].add(jnp.sum(coefficients[:drop], 0))
        return HistoryState(slots, kept, jnp.concatenate([gram, rows])[drop:, drop:])


def _longer(stacked: Array, new: Iterable[Array]) -> Array:
    """Append along the leading axis."""
    return jnp.concatenate([stacked, *(a[None] for a in new)])


def _diagonal(gram: Array) -> Array:
    return gram.reshape(-1, *gram.shape[2:])[:: len(gram) + 1]
