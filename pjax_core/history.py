"""Copies of a bilinear node as combinations of past consensus values, for methods that combine linearly.

An output's copies ``(x', w')`` are held as their sum and difference, ``u = x' + w'`` and ``v = x' - w'``, because
everything that happens to them acts on each of the two by itself: a projection (Eq. 31) multiplies u by
``1 / (1 - lambda)`` and v by ``1 / (1 + lambda)``, a consensus (X, W) adds ``X + W`` and ``X - W``. A *number* below
is the pair of factors of u and v, one of each per output: an array of shape ``(2, *output)``.
"""

import dataclasses
from collections.abc import Mapping, Sequence

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
        slots: the consensus values ``(x, w)``. An operand that is constant is ``None``.
        fixed: the operand that is constant, else ``None``.
        coefficients: a number per slot, ``(2, slots, *output)``.
        gram: inner products of the slots, of their sums and of their differences, ``(2, slots, slots, *output)``.
    """

    slots: tuple[tuple[Array | None, Array | None], ...]
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
        return jnp.stack([jnp.broadcast_to(c, shape).astype(self._dtype) for c in numbers], 1)

    def write(self, z: "HistoryState | _Combination", values: Values) -> _Combination:
        """Give every copy the value of its producer; all producers write at once."""
        del z
        x, w = self._site.spread(values)
        return _Combination(None, 0.0, {_Uniform((x, w)): 1.0})

    def start(self, values: Values, pending: frozenset[int]) -> HistoryState:
        """State of a network at rest, with as many slots as the window so that its shape is steady."""
        del pending
        x, w = self._site.spread(values)
        inner = self._inner((x, w), (x, w), None)
        return HistoryState(
            ((None if self._fixed[0] else x, None if self._fixed[1] else w),) * self._window,
            (x if self._fixed[0] else None, w if self._fixed[1] else None),
            self._full(*[0.0] * (self._window - 1), 1.0),
            jnp.broadcast_to(inner[:, None, None], (2, self._window, self._window, *self._shape)),
        )

    def _slots(self, past: HistoryState) -> list[Pair]:
        """Operands of every slot, constants filled in."""
        filled = []
        for slot in past.slots:
            x, w = (f if s is None else s for s, f in zip(slot, past.fixed, strict=True))
            assert x is not None
            assert w is not None
            filled.append((x, w))
        return filled

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
        """Inner products of a new uniform term with every slot, ``(2, slots, *output)``."""
        own = (past.gram[0] - past.gram[1]) / 4  # f of the slots on the diagonal
        return jnp.stack([self._inner(new, old, own[i, i]) for i, old in enumerate(self._slots(past))], 1)

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
            a, gram = _per_slot(z.factor) * z.past.coefficients, z.past.gram
            total = total + jnp.sum(a[:, :, None] * a[:, None] * gram, (1, 2))
            floor = floor + sum(a[:, i] * a[:, i] * gram[:, i, i] for i in range(self._window))
            for operands, c in new:
                total = total + 2 * c * jnp.sum(a * self._row(z.past, operands), 1)
        return jnp.maximum(total, float(jnp.finfo(self._dtype).eps) * floor)

    def _terms(self, z: _Combination) -> tuple[list[Pair], Array]:
        """Operands of every slot and new term, oldest first, and their coefficients ``(2, terms, *output)``."""
        operands, parts = [term.operands for term in z.new], []
        if z.past is not None:
            operands = self._slots(z.past) + operands
            parts.append(_per_slot(z.factor) * z.past.coefficients)
        if z.new:
            parts.append(self._full(*z.new.values()))
        return operands, jnp.concatenate(parts, 1)

    def mean(self, z: HistoryState | _Combination, position: int, producer: int) -> Array:
        """Average the copies of each element of a producer."""
        operands, (u, v) = self._terms(self._lift(z))
        # Of an output's own operand (u + v) / 2 and of the other one (u - v) / 2, as (u + v) x + (u - v) w over 2.
        own, other = ([self._site.living(c) for c in parts] for parts in ((u + v) / 2, (u - v) / 2))
        sums = [pair[position] * self._dots.total(a, position) for a, pair in zip(own, operands, strict=True)]
        if self._fixed[1 - position]:
            # The other operand is the same in every term: its coefficients add up, one product in all.
            sums.append(self._dots.pull(sum(other[1:], other[0]), operands[0][1 - position], position))
        else:
            sums += [self._dots.pull(d, pair[1 - position], position) for d, pair in zip(other, operands, strict=True)]
        return self._site.means(position, sum(sums[1:], sums[0]))[producer]

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

    def folded(self, z: _Combination) -> Array:
        """Largest coefficient that settling folds into the next-oldest slot."""
        return jnp.max(jnp.abs(self._terms(z)[1][:, : len(z.new)]), initial=0)

    def settle(self, z: _Combination) -> HistoryState:
        """Turn the step's combination into the next step's past, folding what the window cannot hold."""
        past, drop = z.past, len(z.new)
        assert past is not None
        operands, coefficients = self._terms(z)
        gram = past.gram
        for i, term in enumerate(z.new):
            row = self._row(past, term.operands)
            for earlier in list(z.new)[:i]:
                row = jnp.concatenate([row, self._inner(term.operands, earlier.operands, None)[:, None]], 1)
            corner = self._inner(term.operands, term.operands, None)[:, None, None]
            side = jnp.concatenate([row[:, None], corner], 2)
            gram = jnp.concatenate([jnp.concatenate([gram, row[:, :, None]], 2), side], 1)
        return HistoryState(
            tuple((None if self._fixed[0] else x, None if self._fixed[1] else w) for x, w in operands[-self._window :]),
            past.fixed,
            coefficients[:, drop:].at[:, 0].add(jnp.sum(coefficients[:, :drop], 1)),
            gram[:, drop:, drop:],
        )


def _per_slot(number: Array | float) -> Array | float:
    """Add the slots' axis to a number per output."""
    return number[:, None] if isinstance(number, Array) else number
