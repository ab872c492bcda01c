"""Copies of a bilinear node as combinations of past consensus values, for methods that combine linearly.

An output's copies ``(x', w')`` are held as their sum and difference, ``u = x' + w'`` and ``v = x' - w'``, because
everything that happens to them acts on each of the two by itself: a projection (Eq. 31) multiplies u by
``1 / (1 - lambda)`` and v by ``1 / (1 + lambda)``, a consensus (X, W) adds ``X + W`` and ``X - W``. A *number* below
is the pair of factors of u and v, one of each per output: an array of shape ``(2, *output)``. Slots are stacked
along a leading axis and worked through by a scan, so that a program's size does not depend on the window.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from pjax_core import projections
from pjax_core.copies import Site, Values

Pair = tuple[Array, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HistoryState:
    """Copies as combinations of past consensus values (slots, oldest first).

    Attributes:
        slots: the consensus values x and w, ``(slots, *operand)``. An operand that is constant is ``None``.
        fixed: the operand that is constant, else ``None``.
        coefficients: a number per slot, ``(slots, 2, *output)``.
        gram: inner products of the slots, of their sums and of their differences, ``(slots, slots, 2, *output)``.
    """

    slots: tuple[Array | None, Array | None]
    fixed: tuple[Array | None, Array | None]
    coefficients: Array
    gram: Array


@dataclasses.dataclass(frozen=True, eq=False)
class _Uniform:
    """Copies that are all equal; compared by identity."""

    operands: Pair


@dataclasses.dataclass(frozen=True)
class _Combination:
    """``factor * past + sum of coefficients * uniform``; numbers or scalars."""

    past: HistoryState | None
    factor: Array | float
    new: Mapping[_Uniform, Array | float]


class History:
    """A bilinear node's copies as combinations of past consensus values: O(window (nodes + parameters)).

    A projection multiplies the copies by a number and a consensus adds a uniform term, so every linear method
    stays within such combinations. Exact while the window holds the whole past; otherwise the oldest
    coefficient is added to the next-oldest slot, an error of |coefficient| times the change of the consensus
    between the two. Either way the state is some set of copies, and its norms are those copies' own: folding
    makes an error, never an impossible state.
    """

    def __init__(self, site: Site, window: int) -> None:
        assert site.dots is not None
        self._site, self._window, self._dots = site, window, site.dots
        self._shape, self._dtype = site.node.shape, site.node.dtype
        x, w = (set(o.producers) <= set(site.constants) for o in site.node.operands)
        self._fixed = (x, w)

    def _full(self, *numbers: Array | float) -> Array:
        """Stack numbers per slot."""
        shape = (2, *self._shape)
        return jnp.stack([jnp.broadcast_to(c, shape).astype(self._dtype) for c in numbers])

    def write(self, z: "HistoryState | _Combination", values: Values) -> _Combination:
        """Give every copy the value of its producer; all producers write at once."""
        del z
        x, w = self._site.spread(values)
        return _Combination(None, 0.0, {_Uniform((x, w)): 1.0})

    def start(self, values: Values, pending: frozenset[int]) -> HistoryState:
        """State of a network at rest, with as many slots as the window so that its shape is steady."""
        del pending
        x, w = pair = self._site.spread(values)
        inner = self._inner((x, w), (x, w), None)
        stacked = [None if fixed else jnp.stack([a] * self._window) for a, fixed in zip(pair, self._fixed, strict=True)]
        return HistoryState(
            (stacked[0], stacked[1]),
            (x if self._fixed[0] else None, w if self._fixed[1] else None),
            self._full(*[0.0] * (self._window - 1), 1.0),
            jnp.broadcast_to(inner, (self._window, self._window, *inner.shape)),
        )

    def _over_slots(
        self, fun: Callable[[Any, Pair, Array], tuple[Any, Any]], carry: Any, past: HistoryState, per_slot: Array
    ) -> Any:
        """Scan ``carry, y = fun(carry, operands, number)`` over the slots, constant operands filled in."""

        def step(carry: Any, slot: tuple[tuple[Array | None, Array | None], Array]) -> tuple[Any, Any]:
            x, w = (f if s is None else s for s, f in zip(slot[0], past.fixed, strict=True))
            assert x is not None
            assert w is not None
            return fun(carry, (x, w), slot[1])

        return jax.lax.scan(step, carry, (past.slots, per_slot), unroll=min(self._window, 4))

    def _inner(self, new: Pair, old: Pair, product: Array | None) -> Array:
        """Number (<x + w, x' + w'>, <x - w, x' - w'>) per output.

        ``product`` is f(old) where it is known; with a constant operand <x, w'> + <w, x'> is f(new) + f(old).
        """
        norm = self._dots.norm(new, old)
        if new is old:
            cross = 2 * self._dots.product(*new)
        elif any(self._fixed) and product is not None:
            cross = self._dots.product(*new) + product
        else:
            cross = self._dots.product(new[0], old[1]) + self._dots.product(old[0], new[1])
        return jnp.stack([norm + cross, norm - cross])

    def _row(self, past: HistoryState, new: Pair) -> Array:
        """Inner products of a new uniform term with every slot, ``(slots, 2, *output)``."""
        diagonal = jnp.moveaxis(jnp.diagonal(past.gram), -1, 0)
        own = (diagonal[:, 0] - diagonal[:, 1]) / 4  # f of the slots
        return self._over_slots(lambda _, old, f: (None, self._inner(new, old, f)), None, past, own)[1]

    @staticmethod
    def _lift(z: HistoryState | _Combination) -> _Combination:
        return z if isinstance(z, _Combination) else _Combination(z, 1.0, {})

    def _norm(self, z: _Combination) -> Array:
        """Squared norms of u and v, at least their own rounding."""
        total = floor = jnp.zeros((2, *self._shape), self._dtype)
        new = [(term.operands, c) for term, c in z.new.items()]
        for i, (operands, c) in enumerate(new):
            for j, (others, e) in enumerate(new[: i + 1]):
                term = c * e * self._inner(operands, others, None)
                total, floor = (total + term, floor + term) if i == j else (total + 2 * term, floor)
        if z.past is not None:
            a = self.coefficients(z)[: self._window]
            total = total + jnp.sum(a[:, None] * a[None] * z.past.gram, (0, 1))
            floor = floor + jnp.sum(a * a * jnp.moveaxis(jnp.diagonal(z.past.gram), -1, 0), 0)
            for operands, c in new:
                total = total + 2 * c * jnp.sum(a * self._row(z.past, operands), 0)
        return jnp.maximum(total, float(jnp.finfo(self._dtype).eps) * floor)

    def mean(self, z: HistoryState | _Combination, position: int, producer: int) -> Array:
        """Average the copies of each element of a producer."""
        z = self._lift(z)

        def add(sums: tuple[Array, Array], operands: Pair, number: Array) -> tuple[tuple[Array, Array], None]:
            # Of an output's own operand (u + v) / 2 and of the other one (u - v) / 2, as (u + v) x + (u - v) w over 2.
            u, v = number
            total, other = sums
            total += operands[position] * self._dots.total(self._site.living((u + v) / 2), position)
            d = self._site.living((u - v) / 2)
            if self._fixed[1 - position]:
                # The other operand is the same in every term: its coefficients add up, one product in all.
                return (total, other + d), None
            return (total + self._dots.pull(d, operands[1 - position], position), other), None

        sums = (jnp.zeros(self._site.node.operands[position].shape, self._dtype), jnp.zeros(self._shape, self._dtype))
        if z.past is not None:
            sums, _ = self._over_slots(add, sums, z.past, self.coefficients(z)[: self._window])
        for term, c in z.new.items():
            sums, _ = add(sums, term.operands, self._full(c)[0])
        total, other = sums
        if self._fixed[1 - position]:
            total += self._dots.pull(other, self._constant(z), position)
        return self._site.means(position, total)[producer]

    def _constant(self, z: _Combination) -> Array:
        """The operand that is constant."""
        pair = z.past.fixed if z.past is not None else next(iter(z.new)).operands
        constant = pair[self._fixed.index(True)]
        assert constant is not None
        return constant

    def project(
        self, z: HistoryState | _Combination, target: Array | None, weight: ArrayLike
    ) -> tuple[Array, _Combination, Array]:
        """Project: multiply by one number per output (Theorem 7). Also return the root."""
        assert target is not None
        z = self._lift(z)
        u, v = self._norm(z)
        root = projections.dot_root((u - v) / 4, (u + v) / 2, target, weight, self._site.operators)
        factor = jnp.stack([1 / (1 - root), 1 / (1 + root)])
        new = {term: factor * c for term, c in z.new.items()}
        return target - root / weight, _Combination(z.past, factor * z.factor, new), root

    def combine(self, terms: Sequence[tuple[float, HistoryState | _Combination]]) -> _Combination:
        """Sum of scalars times copies."""
        past, factor, new = None, 0.0, {}
        for scalar, z in terms:
            z = self._lift(z)
            past = z.past if past is None else past
            factor = factor + scalar * z.factor
            for term, c in z.new.items():
                new[term] = new[term] + scalar * c if term in new else scalar * c
        return _Combination(past, factor, new)

    def coefficients(self, z: _Combination) -> Array:
        """Numbers of every slot and new term, oldest first."""
        assert z.past is not None
        past = z.past.coefficients * (z.factor[None] if isinstance(z.factor, Array) else z.factor)
        return jnp.concatenate([past, self._full(*z.new.values())]) if z.new else past

    def folded(self, z: _Combination) -> Array:
        """Largest coefficient that settling folds into the next-oldest slot."""
        return jnp.max(jnp.abs(self.coefficients(z)[: len(z.new)]), initial=0)

    def settle(self, z: _Combination) -> HistoryState:
        """Turn the step's combination into the next step's past, folding what the window cannot hold."""
        past, new, drop = z.past, [term.operands for term in z.new], len(z.new)
        assert past is not None
        coefficients, gram = self.coefficients(z), past.gram
        for i, operands in enumerate(new):
            earlier = [self._inner(operands, others, None)[None] for others in new[:i]]
            row = jnp.concatenate([self._row(past, operands), *earlier])[None]
            corner = self._inner(operands, operands, None)[None, None]
            gram = jnp.concatenate([gram, row], 0)
            gram = jnp.concatenate([gram, jnp.concatenate([jnp.swapaxes(row, 0, 1), corner], 0)], 1)
        x, w = (
            None if slots is None else jnp.concatenate([slots, *(pair[i][None] for pair in new)])[drop:]
            for i, slots in enumerate(past.slots)
        )
        return HistoryState(
            (x, w),
            past.fixed,
            coefficients[drop:].at[0].add(jnp.sum(coefficients[:drop], 0)),
            gram[drop:, drop:],
        )
