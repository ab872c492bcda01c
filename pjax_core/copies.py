"""Ways to hold the copies that one constraint keeps of its operands (its incoming edges).

====================  ===============================  ==============================================
class                 holds                            exact for
====================  ===============================  ==============================================
:class:`Edges`        every copy                       every method; the oracle of the others
:class:`Consensus`    the values that the node reads,  alternating and cyclic projections, where all
                      or the means that it left        copies agree whenever the node projects
``History``           the last consensus values, with  methods that combine projections linearly
                      one coefficient pair per output  (Douglas-Rachford); a window makes it cheap;
                                                       see :mod:`pjax_core.history`
``Whole``             every copy, times one such pair  the same, up to rounding; cheaper where an
                                                       element has few copies
====================  ===============================  ==============================================

All have the verbs ``start`` (the copies of the forward pass), ``write`` (producers make their copies equal),
``mean`` (over the copies of each element of a producer, perhaps after something else is done), ``project``, and those
of :class:`Holder`.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import primitives
from jax.typing import ArrayLike

from pjax_core import projections, rules
from pjax_core.bilinear import Dots, Operands, projection_factor
from pjax_core.counting import living
from pjax_core.graph import Node
from pjax_core.operators import Operators

Values = Mapping[int, Array]  # of nodes, by number
Projected = tuple[Array | None, Any, Array | None]  # a node's output, its copies, the roots of its dot products


def at_least_one(count: Array | int) -> Array | int:
    """Make a count a divisor; a whole number stays one, so that nothing divides by an array."""
    return max(count, 1) if isinstance(count, int) else jnp.maximum(count, 1)


def after(done: Array | None, x: Array) -> Array:
    """Return x, so that on a processor nothing that reads the result is computed before ``done``.

    XLA's compiler for processors begins everything as soon as it can, and then holds the temporaries of all nodes of a
    set together. ``lax.optimization_barrier`` is gone before it orders, so the order is made one of data: by a choice
    whose outcome it does not see (a test of memory tells when it does).
    """
    if done is None or not done.size:
        return x

    def wait(done: Array, x: Array) -> Array:
        first = done.ravel()[0]
        never = jnp.isnan(first) & (first == 0)
        return jnp.where(never, 0, x)

    return lax.platform_dependent(done, x, cpu=wait, default=lambda _, x: x)


@dataclasses.dataclass(frozen=True, eq=False)
class Holder:
    """A constraint or loss at one batch, and a way to hold its copies.

    Attributes:
        node, operators: how to project.
        values: of its producers in the forward pass; constants keep theirs.
        indices: the index arrays of its operands.
        counts: edges from every element of a producer that is not constant, by operand position; a number where
            all are equal (:mod:`pjax_core.counting`, also for ``alive``).
    """

    node: Node
    operators: Operators
    values: Values
    indices: Sequence[Array]
    alive: Array | None
    counts: tuple[dict[int, Array | int], ...]

    @property
    def bilinear(self) -> bool:
        """Whether an element of an operand is many edges, those of :attr:`dots`."""
        return self.node.primitive in rules.bilinear_rules

    @property
    def dots(self) -> Dots:
        """The sums of a bilinear node."""
        return Dots(self.node)

    def spread(self, values: Values) -> Operands:
        """Operands from the producers' values, from those of the forward pass where none is given."""
        return self.node.read({**self.values, **values}, self.indices)

    def living(self, coefficient: Array) -> Array:
        """Zero a coefficient per output where nobody reads the output."""
        return living(self.node, coefficient, self.alive)

    def means(self, position: int, sums: Array) -> dict[int, Array]:
        """Average an operand's living copies, from their sums, by producer; zero where none are."""
        found = self.node.operands[position].gather(sums, self.values, self.indices)
        return {p: found[p] / at_least_one(count) for p, count in self.counts[position].items()}

    def apply(self, operands: Operands, target: Array | None, weight: ArrayLike) -> Projected:
        """Project operands whose elements are one edge each by the primitive's rule."""
        assert self.node.primitive is not None
        rule = rules.rule_of(self.node.primitive)
        projected, output = rule(operands, target, weight, self.operators, **dict(self.node.params))
        return output, projected, None

    def in_turn(self, z: Any, target: Array | None, done: Array | None) -> tuple[Any, Array | None]:
        """Let the projection wait for :meth:`last` of the node before, where that saves memory and costs no time."""
        del done
        return z, target

    def last(self, z: Any, done: Array | None) -> Array | None:
        """Of a projection what the next node is to wait for; by default what this one waited for."""
        del z
        return done

    def combine(self, terms: Sequence[tuple[float, Any]]) -> Any:
        """Sum of scalars times copies."""
        scaled = [jax.tree.map(lambda a, c=c: c * a, z) for c, z in terms]
        return jax.tree.map(lambda *arrays: sum(arrays[1:], arrays[0]), *scaled)

    def settle(self, z: Any, done: Array | None = None) -> Any:
        """Make the copies ready for the next step, perhaps after something else is done."""
        return jax.tree.map(functools.partial(after, done), z)


class Edges(Holder):
    """Every copy of every operand: a tuple of arrays, O(edges) memory."""

    def start(self) -> Operands:
        """Give every copy the value of its producer."""
        return self._copies({})

    def _copies(self, values: Values) -> Operands:
        operands = self.spread(values)
        return self.dots.expand(*operands) if self.bilinear else operands

    def write(self, z: Operands, values: Values) -> Operands:
        """Replace the copies of the given producers."""
        copies = self._copies(values)
        if all(p in values for p in self.values):
            return copies
        written = self._copies({p: jnp.full_like(v, p in values) for p, v in self.values.items()})
        return tuple(jnp.where(w > 0, new, old) for w, new, old in zip(written, copies, z, strict=True))

    def mean(self, z: Operands, position: int, producer: int, done: Array | None = None) -> Array:
        """Average the copies of each element of a producer."""
        del done
        if self.bilinear:
            alive = tuple(jax.vmap(self.living, -1, -1)(copies) for copies in z)
            sums = self.dots.contract(alive)[position]
        else:
            sums = self.living(z[position])
        return self.means(position, sums)[producer]

    def project(self, z: Operands, target: Array | None, weight: ArrayLike) -> Projected:
        """Project the copies and the output's target onto the node's graph."""
        if not self.bilinear:
            return self.apply(z, target, weight)
        assert target is not None
        x, w, output, root = projections.project_dot(z[0], z[1], target, weight, self.operators)
        return output, (x, w), root


Means = dict[tuple[int, int], Array]  # by operand position and producer
# What makes a part of an array, no element of it twice.
_SELECTIONS = {primitives.slice_p, primitives.squeeze_p, primitives.reshape_p, primitives.transpose_p}


class Consensus(Holder):
    """Copies that agree whenever their node projects, by their means: O(nodes + parameters) memory.

    Exact for methods that project every node once a cycle: between two projections of a node each of its
    producers reads the mean of its copies once and makes them equal. Constants restore theirs and are not kept.
    Of a producer of which an operand is a *part*, at most half of its elements and each once, those alone are kept.
    """

    @functools.cached_property
    def _parts(self) -> set[int]:
        """Positions of the operands that are parts of their one producer."""
        parts: set[int] = set()
        for i, operand in enumerate(self.node.operands):
            selected = {copy.primitive for copy in operand.copies} <= _SELECTIONS
            if selected and self.counts[i] and 2 * math.prod(operand.shape) <= self.values[operand.producers[0]].size:
                parts.add(i)
        return parts

    def _held(self, position: int, value: Array) -> Array:
        """What is kept of a producer's value."""
        operand = self.node.operands[position]
        return operand.spread({operand.producers[0]: value}, self.indices) if position in self._parts else value

    def start(self) -> Means:
        """Means of a network at rest: the values themselves."""
        return {(i, p): self._held(i, self.values[p]) for i, producers in enumerate(self.counts) for p in producers}

    def write(self, z: Means, values: Values) -> Means:
        """Note the values of the producers that projected: they are the means now."""
        return {(i, p): self._held(i, values[p]) if p in values else before for (i, p), before in z.items()}

    def mean(self, z: Means, position: int, producer: int, done: Array | None = None) -> Array:
        """Average the copies of each element of a producer."""
        del done
        held = z[position, producer]
        if position not in self._parts:
            return held
        return self.node.operands[position].gather(held, self.values, self.indices)[producer]

    def _averaged(self, position: int, sums: Array) -> dict[int, Array]:
        """Average an operand's living copies, from their sums, as the means are kept."""
        if position not in self._parts:
            return self.means(position, sums)
        ((producer, count),) = self.counts[position].items()
        if not isinstance(count, int):
            count = self._held(position, jnp.broadcast_to(count, self.values[producer].shape))
        return {producer: sums / at_least_one(count)}

    def _few(self, z: Means) -> tuple[int, int] | None:
        """Whose means are few beside the outputs (an eighth): the weights' of a convolution or a recurrence."""
        least = min(z, key=lambda key: z[key].size, default=None)
        few = self.bilinear and least and 8 * z[least].size <= math.prod(self.node.shape)
        return least if few else None

    def in_turn(self, z: Any, target: Array | None, done: Array | None) -> tuple[Any, Array | None]:
        """Wait where a product reads few weights: they are copied for it, a target is made for it anyway."""
        few = self._few(z)
        if few is None or target is None:
            return z, target
        return {**z, few: after(done, z[few])}, after(done, target)

    def last(self, z: Any, done: Array | None) -> Array | None:
        """The weights, whose means are sums over all outputs."""
        few = self._few(z)
        return done if few is None else z[few]

    def project(self, z: Means, target: Array | None, weight: ArrayLike) -> Projected:
        """Project; the copies that come out are kept as means."""
        values = {**self.values, **{p: value for (i, p), value in z.items() if i not in self._parts}}
        operands = tuple(
            z[i, operand.producers[0]] if i in self._parts else operand.spread(values, self.indices)
            for i, operand in enumerate(self.node.operands)
        )
        if self.bilinear:
            assert target is not None
            terms = [self.dots.product(*operands), *self.dots.norms(operands, operands)]
            root = projections.dot_root(projections.sum_and_difference, terms, target, weight, self.operators)
            a, d = (self.living(c) for c in projection_factor(root))
            # Where w is written in the place where it lies, which its own size makes worth it, x's sums read it before.
            in_place = all(self.counts) and self._few(z) is None
            sums = self.dots.sums(a, d, operands, after if in_place else None)
            output = target - root / weight
        else:
            output, projected, root = self.apply(operands, target, weight)
            sums = tuple(map(self.living, projected))
        return output, {(i, p): mean for i, s in enumerate(sums) for p, mean in self._averaged(i, s).items()}, root
