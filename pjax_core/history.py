"""Copies of a bilinear node as combinations of past consensus values, for methods that combine linearly.

An output's copies ``(x', w')`` are held as their sum and difference, ``u = x' + w'`` and ``v = x' - w'``, because
everything that happens to them acts on each of the two by itself: a projection (Eq. 31) multiplies u by
``1 / (1 - lambda)`` and v by ``1 / (1 + lambda)``, a consensus (X, W) adds ``X + W`` and ``X - W``. A *number* below
is the pair of factors of u and v, one of each per output. Slots are stacked along a leading axis and worked through
by a scan, so that a program's size does not depend on the window.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from pjax_core import projections
from pjax_core.bilinear import Operands
from pjax_core.copies import Holder, Projected, Values, after

FEW = 4
"""Slots that a loop takes at once; up to as many hold their inner products by row: less memory, larger programs."""


class Number(NamedTuple):
    """Factors of u and v, one of each per output, and perhaps a *pair* ``(a, d)``: ``x' = a x + d w, w' = a w + d x``.

    Either follows from the other, and what is not used is not computed.
    """

    u: Array
    v: Array
    known: tuple[Array, Array] | None = None

    def pair(self) -> tuple[Array, Array]:
        """Return a and d."""
        return self.known or ((self.u + self.v) / 2, (self.u - self.v) / 2)

    def times(self, scale: float) -> "Number":
        """Times a number that is known while tracing; 0 makes zeros, of whatever there was."""
        if scale == 1:
            return self
        u, v = (scale * a if scale else jnp.zeros_like(a) for a in self[:2])
        return Number(u, v)

    def projected(self, root: Array) -> "Number":
        """After a projection (Eq. 31)."""
        return Number(self.u / (1 - root), self.v / (1 + root))

    def reflected(self, root: Array) -> "Number":
        """After twice the way of a projection: a pair of quotients, because CPU's compiler makes and holds these."""
        square, (a, d) = root * root, self.pair()
        a, d = (((1 + square) * own + 2 * root * other) / (1 - square) for own, other in ((a, d), (d, a)))
        return Number(a + d, a - d, (a, d))

    def way(self, root: Array) -> "Number":
        """From what was reflected, the way of the projection, half of the reflection's."""
        return Number(root / (1 + root) * self.u, -root / (1 - root) * self.v)


class Inner(NamedTuple):
    """Inner products of two consensus values (x, w) and (x', w') per output.

    ``x`` and ``w``: ``<x, x'>`` and ``<w, w'>``, of length 1 where they repeat. ``cross``: ``<x, w'> + <w, x'>``.
    """

    x: Array
    w: Array
    cross: Array

    def both(self) -> tuple[Array, Array]:
        """Return ``<x + w, x' + w'>`` and ``<x - w, x' - w'>``."""
        return self.cross + self.x + self.w, self.x - self.cross + self.w


@dataclasses.dataclass(frozen=True, eq=False)
class Written:
    """A consensus that all copies of a node were given; compared by identity."""

    operands: Operands


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class HistoryState:
    """Copies as combinations of consensus values: of the past (slots, oldest first) and of the step so far.

    Attributes:
        slots: the consensus values x and w, ``(slots, *operand)``; ``None`` for an operand that is constant. Of
            copies held whole u and v, ``(*output, terms)``.
        coefficients: the slots' numbers, ``(slots, *output)`` each or broadcast to it, but for ``scale``.
        scale: a factor of all coefficients; 0 after all copies were written, whatever the coefficients were.
        gram: inner products of every slot with those up to it, ``(1 to slots, *output)`` each; of more than ``FEW``
            slots in one array ``(slots, slots, *output)``, above whose diagonal nothing counts. ``None`` where they
            are computed when needed.
        new: numbers of what was written since the step began.
        origin: what this is the projection of, its reflection and half of the way there, as nothing else was done.
    """

    slots: tuple[Array | None, ...]
    coefficients: Number
    gram: list[Inner] | None
    scale: float = dataclasses.field(default=1.0, metadata={"static": True})
    new: dict[Written, Number] = dataclasses.field(default_factory=dict)
    origin: "tuple[HistoryState, HistoryState, HistoryState] | None" = None

    def number(self) -> Number:
        """Factors of u and v in the slots."""
        return self.coefficients.times(self.scale)

    def mapped(self, fun: Callable[[Number, Array], Number], root: Array) -> "HistoryState":
        """Copies with other numbers, a function of each number and of the roots."""
        numbers = {term: fun(number, root) for term, number in self.new.items()}
        return dataclasses.replace(self, coefficients=fun(self.coefficients, root[None]), new=numbers, origin=None)


class Combined(Holder):
    """A bilinear node's copies, the same combination of several arrays of copies for all of an output's.

    A projection multiplies the copies by a number and a consensus replaces them, so every linear method stays within
    such combinations.
    """

    def write(self, z: HistoryState, values: Values) -> HistoryState:
        """Give every copy the value of its producer; all producers write at once."""
        one = jnp.ones(self.node.shape, self.node.dtype)
        new = {Written(self.spread(values)): Number(one, one)}
        return dataclasses.replace(z, scale=0.0, new=new, origin=None)

    def terms(self, z: HistoryState) -> tuple[Callable[[Any], tuple[Array, Array]], Any]:
        """Squared norms of u and v, as :func:`projections.dot_root` takes them."""
        raise NotImplementedError

    def project(self, z: HistoryState, target: Array | None, weight: ArrayLike) -> Projected:
        """Project: multiply by one number per output (Theorem 7)."""
        assert target is not None
        root = projections.dot_root(*self.terms(z), target, weight, self.operators)
        reflected = z.mapped(Number.reflected, root)
        origin = z, reflected, reflected.mapped(Number.way, root)
        x = dataclasses.replace(z.mapped(Number.projected, root), origin=origin)
        return target - root / weight, x, root

    def combine(self, terms: Sequence[tuple[float, HistoryState]]) -> HistoryState:
        """Sum of scalars times copies.

        A projection and what was projected are the reflection less one and two ways: nothing has to hold all of them.
        """
        made_of: dict[HistoryState, list[tuple[float, HistoryState]]] = {}
        for _, x in terms:
            if x.origin and any(x.origin[0] is z for _, z in terms):
                before, reflected, way = x.origin
                made_of |= {x: [(1, reflected), (-1, way)], before: [(1, reflected), (-2, way)]}
        shares: dict[HistoryState, float] = {}
        for scalar, z in terms:
            for factor, part in made_of.get(z, [(1, z)]):
                shares[part] = shares.get(part, 0) + scalar * factor

        def total(numbers: Iterable[tuple[float, Number]]) -> Number:
            scaled = [[scalar * factor for factor in (n.u, n.v, *n.pair())] for scalar, n in numbers]
            u, v, a, d = (functools.reduce(jnp.add, factors) for factors in zip(*scaled, strict=True))
            return Number(u, v, (a, d))

        moved = [(scalar, z) for z, scalar in shares.items() if scalar]
        written = dict.fromkeys(term for _, z in moved for term in z.new)
        new = {term: total((scalar, z.new[term]) for scalar, z in moved if term in z.new) for term in written}
        past = [(scalar * z.scale, z.coefficients) for scalar, z in moved if z.scale]
        # A lone state's are not multiplied: they would be made and held for the roots that have not converged.
        scale, coefficients = (
            (1.0, total(past)) if len(past) > 1 else past[0] if past else (0.0, terms[0][1].coefficients)
        )
        return dataclasses.replace(terms[0][1], coefficients=coefficients, scale=scale, new=new, origin=None)


@dataclasses.dataclass(frozen=True, eq=False)
class History(Combined):
    """A bilinear node's copies as combinations of past consensus values: O(window (nodes + parameters)).

    Exact while the window holds the whole past; otherwise the oldest coefficient is added to the next-oldest slot,
    an error of |coefficient| times the change of the consensus between the two. Either way the state is some set of
    copies, and its norms are those copies' own: folding makes an error, never an impossible state.

    Attributes:
        window: number of slots.
        gram: whether inner products of the slots are held. A node that projects before anything is written needs
            those of a lone slot once a step, when they cost as much as they did when the slot was written.
    """

    window: int
    gram: bool = True

    def start(self) -> HistoryState:
        """State of a network at rest, with as many slots as the window so that its shape is steady."""
        operands = self.spread({})
        slots = tuple(jnp.stack([a] * self.window) if self._moves(i) else None for i, a in enumerate(operands))
        newest = (np.arange(self.window) == self.window - 1).reshape(-1, *(1,) * len(self.node.shape))
        one = jnp.broadcast_to(jnp.asarray(newest, self.node.dtype), (self.window, *self.node.shape))
        return HistoryState(slots, Number(one, one), self._alike(operands) if self.gram else None)

    def _alike(self, operands: Operands) -> list[Inner]:
        """Inner products of slots that all hold these."""
        own = self._inner(operands, operands, self.dots.product(*operands))
        rows = [(n,) for n in range(1, self.window + 1)] if self.window <= FEW else [(self.window, self.window)]
        return [jax.tree.map(lambda a, row=row: jnp.broadcast_to(a, (*row, *a.shape)), own) for row in rows]

    def _gram(self, z: HistoryState) -> list[Inner]:
        """Inner products of the slots; where they are not held there is one slot."""
        slot = (always if own is None else own[0] for own, always in zip(z.slots, self.spread({}), strict=True))
        return z.gram or self._alike(tuple(slot))

    def _moves(self, position: int) -> bool:
        """Whether an operand is not constant."""
        return bool(self.counts[position])

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

        carry, stacked = jax.lax.scan(step, carry, (z.slots, slots), unroll=min(self.window, FEW))
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

    def _rows(self, z: HistoryState) -> list[Inner]:
        """Inner products of everything new with the slots and what is new up to it, as in the Gram matrix."""
        new = [term.operands for term in z.new]
        gram = [row.cross for row in self._gram(z)]
        own = jnp.stack([row[-1] for row in gram]) if self.window <= FEW else _diagonal(gram[0])
        products = own / 2, [self.dots.product(*pair) for pair in new]

        def row(j: int) -> Inner:
            _, old, others = self._over_terms(
                lambda _, other, f: (None, self._inner(new[j], other, f)), None, z, *products
            )
            return jax.tree.map(lambda a, *later: _longer(a, later), old, *others[: j + 1])

        return [*map(row, range(len(new)))]

    def mean(self, z: HistoryState, position: int, producer: int, done: Array | None = None) -> Array:
        """Average the copies of each element of a producer."""
        dots, living = self.dots, self.living
        once = not self._moves(1 - position)

        def add(carry: Any, operands: Operands, pair: tuple[Array, Array]) -> tuple[Any, None]:
            (total, d), (own, other) = carry, pair
            total += operands[position] * dots.total(living(own))[position]
            d += living(other)
            if once:
                # The other operand is the same in every term: its coefficients add up, one product in all.
                return (total, d), None
            return (total + dots.pull(after(done, d), operands)[position], jnp.zeros_like(d)), None

        operand = self.node.operands[position]
        carry = (jnp.zeros(operand.shape, operand.dtype), jnp.zeros(self.node.shape, self.node.dtype))
        (total, d), *_ = self._over_terms(add, carry, z, z.number().pair(), [n.pair() for n in z.new.values()])
        if once:
            total += dots.pull(after(done, d), self.spread({}))[position]
        return self.means(position, total)[producer]

    def terms(self, z: HistoryState) -> tuple[Callable[[Any], tuple[Array, Array]], Any]:
        """Squared norms of u and v, as :func:`projections.dot_root` takes them."""
        norms = functools.partial(_norms, z.scale)
        terms = z.coefficients, list(z.new.values()), self._gram(z), self._rows(z)
        return (tuple, norms(terms)) if self.window > 1 else (norms, terms)  # sums over more slots are worth holding

    def coefficients(self, z: HistoryState) -> list[Array]:
        """Factors of u and of v in every slot and new term, oldest first."""
        return [_longer(z.number()[:2][i], [number[:2][i] for number in z.new.values()]) for i in (0, 1)]

    def folded(self, z: HistoryState) -> Array:
        """Largest coefficient that settling folds into the next-oldest slot."""
        return jnp.max(jnp.abs(jnp.stack(self.coefficients(z))[:, : len(z.new)]), initial=0)

    def settle(self, z: HistoryState, done: Array | None = None) -> HistoryState:
        """Make slots of what is new, folding what the window cannot hold."""
        del done  # it waits for its own consensus
        if not z.new:
            return dataclasses.replace(z, coefficients=Number(*z.number()[:2]), scale=1.0, origin=None)
        drop = len(z.new)
        new = zip(*(term.operands for term in z.new), strict=True)
        slots = tuple(None if a is None else _slid(a, x) for a, x in zip(z.slots, new, strict=True))
        # What the coefficients are made of is what the last consensus is made of, too, and goes with it.
        moving = [operand for i, operand in enumerate([*z.new][-1].operands) if self._moves(i)]
        last = min(moving, key=lambda operand: operand.size)
        numbers = z.number(), *z.new.values()
        u, v = (after(last, _folded(past, new)) for past, *new in zip(*(n[:2] for n in numbers), strict=True))
        if z.gram is None:
            return HistoryState(slots, Number(u, v), None)
        # With a number made of the roots, which read what else is in these rows: it would be held beside them.
        rows = jax.tree.map(functools.partial(after, numbers[0].v), self._rows(z))
        if self.window > FEW:
            return HistoryState(slots, Number(u, v), [jax.tree.map(_slid_both, *z.gram, *rows)])
        gram = [jax.tree.map(lambda a: a[drop:], row) for row in (*z.gram[drop:], *rows)]
        return HistoryState(slots, Number(u, v), gram)


def _norms(scale: float, terms: tuple[Number, list[Number], list[Inner], list[Inner]]) -> tuple[Array, Array]:
    """Squared norms of u and v, at least their own rounding, from all numbers and inner products."""
    coefficients, numbers, gram, rows = terms
    past = coefficients.times(scale)

    def norm(i: int) -> Array:
        a = _longer(past[:2][i], [number[:2][i] for number in numbers])
        total = floor = jnp.zeros(a.shape[1:], a.dtype)
        held = [row.both()[i] for row in (*gram, *rows)]
        if len(held) < len(a):
            square, *held = held
            old, diagonal = a[: len(square)], _diagonal(square)
            floor = jnp.sum(old * old * diagonal, 0)
            # Twice what is below the diagonal, and nothing above it.
            times = np.tri(len(old), dtype=a.dtype) + np.tri(len(old), k=-1, dtype=a.dtype)
            times = times.reshape(*times.shape, *(1 for _ in total.shape))
            total = jnp.sum(times * old[:, None] * old[None] * square, (0, 1))
        for j, inner in enumerate(held, len(a) - len(held)):
            own = a[j] * a[j] * inner[j]
            floor += own
            total += own + 2 * a[j] * jnp.sum(a[:j] * inner[:j], 0)
        return jnp.maximum(total, float(jnp.finfo(total.dtype).eps) * floor)

    return norm(0), norm(1)


def _diagonal(square: Array) -> Array:
    return square.reshape(-1, *square.shape[2:])[:: len(square) + 1]


def _slid_both(square: Array, *rows: Array) -> Array:
    """Append rows below and drop as many slots at the beginning of both axes; above the diagonal there may be zeros."""
    drop, others = len(rows), [(0, 0)] * (square.ndim - 2)
    old = jnp.pad(square[drop:, drop:], [(0, 0), (0, drop), *others])
    new = [jnp.pad(row[drop:], [(0, len(square) + drop - len(row)), *others])[None] for row in rows]
    return jnp.concatenate([old, *new])


def _longer(stacked: Array, new: Sequence[Array]) -> Array:
    """Append along the leading axis."""
    return jnp.concatenate([stacked, *(a[None] for a in new)])


def _slid(stacked: Array, new: Sequence[Array]) -> Array:
    """Append along the leading axis and drop as many at its beginning."""
    return jnp.concatenate([stacked[len(new) :], *(a[None] for a in new[-len(stacked) :])])


def _folded(stacked: Array, new: Sequence[Array]) -> Array:
    """The same, but what is dropped is added to the first that stays."""
    spare = max(len(new) - len(stacked) + 1, 0)
    first = sum([*stacked[: len(new) + 1], *new[:spare]][1:], stacked[0])
    return jnp.concatenate([first[None], stacked[len(new) + 1 :], *(a[None] for a in new[spare:])])
