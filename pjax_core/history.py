"""Copies of a bilinear node as combinations of past consensus values, for methods that combine linearly."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from pjax_core import projections
from pjax_core.bilinear import Split, projection_factor, split_product, split_sum
from pjax_core.copies import Site, Values

Pair = tuple[Array, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HistoryState:
    """Copies as combinations of past consensus values (slots, oldest first).

    Attributes:
        slots: the consensus values ``(x, w)``. An operand that is constant is ``None``.
        fixed: the operand that is constant, else ``None``.
        coefficients: split-complex, arrays ``(slots, *output)``.
        gram: split-complex inner products of the slots, arrays ``(slots, slots, *output)``.
    """

    slots: tuple[tuple[Array | None, Array | None], ...]
    fixed: tuple[Array | None, Array | None]
    coefficients: Pair
    gram: Pair


@dataclasses.dataclass(frozen=True, eq=False)
class _Uniform:
    """Copies that are all equal; compared by identity."""

    operands: Pair


@dataclasses.dataclass(frozen=True)
class _Combination:
    """``factor * past + sum of coefficients * uniform``, split-complex numbers per output."""

    past: HistoryState | None
    factor: Split
    new: dict[_Uniform, Split]


class History:
    """A bilinear node's copies as combinations of past consensus values: O(window (nodes + parameters)).

    A projection multiplies the copies by a split-complex number per output
    (:func:`~pjax_core.bilinear.projection_factor`) and a consensus adds a uniform term, so every linear
    method stays within such combinations. Exact while the window holds the whole past; otherwise the
    oldest coefficient is added to the next-oldest slot, an error of |coefficient| times the change of the
    consensus between the two. Either way the state is some set of copies, and its inner products are
    those copies' own: folding makes an error, never an impossible state.
    """

    def __init__(self, site: Site, window: int) -> None:
        assert site.dots is not None
        self._site, self._window, self._dots = site, window, site.dots
        self._shape, self._dtype = site.node.shape, site.node.dtype
        x, w = (set(o.producers) <= set(site.constants) for o in site.node.operands)
        self._fixed = (x, w)

    def _full(self, number: Split) -> Pair:
        a, d = (jnp.broadcast_to(c, self._shape).astype(self._dtype) for c in number)
        return a, d

    def write(self, z: "HistoryState | _Combination", values: Values) -> _Combination:
        """Give every copy the value of its producer; a two-sided method writes all producers at once."""
        del z
        x, w = self._site.spread(values)
        return _Combination(None, (0.0, 0.0), {_Uniform((x, w)): (1.0, 0.0)})

    def start(self, values: Values, pending: frozenset[int]) -> HistoryState:
        """State of a network at rest, with as many slots as the window so that its shape is steady."""
        del pending
        x, w = self._site.spread(values)
        inner = self._inner((x, w), (x, w), None)
        weights = jnp.zeros((self._window, *self._shape), self._dtype)
        a, d = (jnp.broadcast_to(c, (self._window, self._window, *self._shape)) for c in self._full(inner))
        return HistoryState(
            ((None if self._fixed[0] else x, None if self._fixed[1] else w),) * self._window,
            (x if self._fixed[0] else None, w if self._fixed[1] else None),
            (weights.at[-1].set(1), weights),
            (a, d),
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

    def _inner(self, new: Pair, old: Pair, product: Array | None) -> Split:
        """Per output (<x, x'> + <w, w'>, <x, w'> + <w, x'>), split-complex bilinear in both.

        ``product`` is f(old) where it is known; with a constant operand the second sum is f(new) + f(old).
        """
        norm = self._dots.norm(new, old)
        if new is old:
            return norm, 2 * self._dots.product(*new)
        if any(self._fixed) and product is not None:
            return norm, self._dots.product(*new) + product
        return norm, self._dots.product(new[0], old[1]) + self._dots.product(old[0], new[1])

    def _row(self, past: HistoryState, new: Pair) -> Pair:
        """Inner products of a new uniform term with every slot, arrays ``(slots, *output)``."""
        rows = [self._full(self._inner(new, old, past.gram[1][i, i] / 2)) for i, old in enumerate(self._slots(past))]
        return jnp.stack([q for q, _ in rows]), jnp.stack([c for _, c in rows])

    @staticmethod
    def _lift(z: HistoryState | _Combination) -> _Combination:
        return z if isinstance(z, _Combination) else _Combination(z, (1.0, 0.0), {})

    def _norm(self, z: _Combination) -> Split:
        """Inner product of a combination with itself."""
        total: Split = (0.0, 0.0)
        new = [(term.operands, c) for term, c in z.new.items()]
        for i, (operands, c) in enumerate(new):
            for j, (others, e) in enumerate(new[: i + 1]):
                inner = self._inner(operands, others, None)
                both = split_product(split_product(c, e), inner)
                total = split_sum(total, both if i == j else (2 * both[0], 2 * both[1]))
        if z.past is None:
            return total
        (a, d), (q, c) = z.past.coefficients, z.past.gram
        pairs = split_product(split_product((a[:, None], d[:, None]), (a[None], d[None])), (q, c))
        square = (jnp.sum(pairs[0], (0, 1)), jnp.sum(pairs[1], (0, 1)))
        total = split_sum(total, split_product(split_product(z.factor, z.factor), square))
        for operands, coefficient in new:
            cross = split_product((a, d), self._row(z.past, operands))
            inner = (2 * jnp.sum(cross[0], 0), 2 * jnp.sum(cross[1], 0))
            total = split_sum(total, split_product(split_product(z.factor, coefficient), inner))
        return total

    def _terms(self, z: _Combination) -> tuple[list[Pair], Pair]:
        """Operands of every slot and new term, oldest first, and their stacked coefficients."""
        operands = [term.operands for term in z.new]
        parts = [jnp.stack([self._full(c)[i] for c in z.new.values()]) if z.new else None for i in (0, 1)]
        if z.past is not None:
            operands = self._slots(z.past) + operands
            old = split_product(_per_slot(z.factor), z.past.coefficients)
            parts = [jnp.asarray(o) if n is None else jnp.concatenate([o, n]) for o, n in zip(old, parts, strict=True)]
        a, d = parts
        assert a is not None
        assert d is not None
        return operands, (a, d)

    def mean(self, z: HistoryState | _Combination, position: int, producer: int) -> Array:
        """Average the copies of each element of a producer."""
        operands, coefficients = self._terms(self._lift(z))
        a, d = ([self._site.living(c) for c in stack] for stack in coefficients)
        own = [pair[position] * self._dots.total(a[i], position) for i, pair in enumerate(operands)]
        if self._fixed[1 - position]:
            # The other operand is the same in every term: its coefficients add up, one product in all.
            pulled = [self._dots.pull(sum(d[1:], d[0]), operands[0][1 - position], position)]
        else:
            pulled = [self._dots.pull(d[i], pair[1 - position], position) for i, pair in enumerate(operands)]
        return self._site.means(position, sum(own[1:] + pulled, own[0]))[producer]

    def project(
        self, z: HistoryState | _Combination, target: Array | None, weight: ArrayLike
    ) -> tuple[Array, _Combination, Array]:
        """Project: multiply by one split-complex number per output (Theorem 7). Also return the root."""
        assert target is not None
        z = self._lift(z)
        q, twice_p = self._full(self._norm(z))
        root = projections.dot_root(twice_p / 2, q, target, weight, self._site.operators)
        factor = projection_factor(root)
        new = {term: split_product(factor, c) for term, c in z.new.items()}
        return target - root / weight, _Combination(z.past, split_product(factor, z.factor), new), root

    def combine(self, terms: Sequence[tuple[float, HistoryState | _Combination]]) -> _Combination:
        """Sum of scalars times copies."""
        past, factor, new = None, (0.0, 0.0), {}
        for scalar, z in terms:
            z = self._lift(z)
            past = z.past if past is None else past
            factor = split_sum(factor, split_product((scalar, 0.0), z.factor))
            for term, c in z.new.items():
                scaled = split_product((scalar, 0.0), c)
                new[term] = split_sum(new[term], scaled) if term in new else scaled
        return _Combination(past, factor, new)

    def folded(self, z: _Combination) -> Array:
        """Largest coefficient that settling folds into the next-oldest slot."""
        _, coefficients = self._terms(z)
        return jnp.max(jnp.abs(jnp.stack(coefficients)[:, : len(z.new)]), initial=0)

    def settle(self, z: _Combination) -> HistoryState:
        """Turn the step's combination into the next step's past, folding what the window cannot hold."""
        past = z.past
        assert past is not None
        operands, (a, d) = self._terms(z)
        drop = len(z.new)
        a, d = (c[drop:].at[0].add(jnp.sum(c[:drop], 0)) for c in (a, d))
        q, c = past.gram
        for i, term in enumerate(z.new):
            row_q, row_c = self._row(past, term.operands)
            for earlier in list(z.new)[:i]:
                inner = self._full(self._inner(term.operands, earlier.operands, None))
                row_q, row_c = (jnp.concatenate([r, n[None]]) for r, n in zip((row_q, row_c), inner, strict=True))
            inner = self._full(self._inner(term.operands, term.operands, None))
            q, c = (_bordered(m, r, n) for m, r, n in zip((q, c), (row_q, row_c), inner, strict=True))
        return HistoryState(
            tuple((None if self._fixed[0] else x, None if self._fixed[1] else w) for x, w in operands[-self._window :]),
            past.fixed,
            (a, d),
            (q[drop:, drop:], c[drop:, drop:]),
        )


def _per_slot(number: Split) -> Split:
    """Add the slots' axis to a number per output."""
    a, d = (c[None] if isinstance(c, Array) else c for c in number)
    return a, d


def _bordered(matrix: Array, row: Array, corner: Array) -> Array:
    """Append a row and the equal column to a symmetric matrix (of arrays)."""
    wide = jnp.concatenate([matrix, row[:, None]], 1)
    return jnp.concatenate([wide, jnp.concatenate([row, corner[None]])[None]])
