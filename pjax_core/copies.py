"""Three ways to hold the copies that one constraint keeps of its operands (its incoming edges).

====================  ===============================  ==============================================
class                 holds                            exact for
====================  ===============================  ==============================================
:class:`Edges`        every copy                       every method; the oracle of the other two
:class:`Consensus`    the operands, or after the       alternating and cyclic projections, where all
                      node's projection their means    copies agree whenever the node projects
``History``           the last consensus values, with  methods that combine projections linearly
                      one coefficient pair per output  (Douglas-Rachford); a window makes it cheap;
                                                       see :mod:`pjax_core.history`
====================  ===============================  ==============================================

All have the verbs ``start``, ``write`` (producers make their copies equal), ``mean`` (over the copies of each
element of a producer), ``project``, and, where copies can differ, ``combine`` (linear combinations).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from pjax_core import projections, rules
from pjax_core.bilinear import Dots, projection_factor
from pjax_core.counting import living
from pjax_core.graph import Node
from pjax_core.operators import Operators

Operands = tuple[Array, ...]
Values = Mapping[int, Array]  # of nodes, by number


class Site:
    """A constraint or loss at one batch: what a holder of its copies needs to know.

    Attributes:
        node, operators: how to project.
        constants: the values of its producers that are constant.
        dots: the sums of a bilinear node, else ``None``.
        counts: edges from every element of a producer that is not constant, by operand position; a number where
            all are equal (:mod:`pjax_core.counting`, also for ``alive``).
    """

    def __init__(
        self,
        node: Node,
        operators: Operators,
        producers: Mapping[int, jax.ShapeDtypeStruct],
        constants: Values,
        indices: Sequence[Array],
        alive: Array | None,
        counts: tuple[dict[int, Array | int], ...],
    ) -> None:
        self.node, self.operators, self.constants, self._alive = node, operators, constants, alive
        self._producers, self._indices, self.counts = producers, indices, counts
        self.dots = Dots(node) if node.primitive in rules.bilinear_rules else None

    def spread(self, values: Values, *, partial: bool = False) -> Operands:
        """Operands from the producers' values; ``partial``: zero where a producer's is not given."""
        known = dict(values) if partial else {**self.constants, **values}
        if partial:
            known |= {p: jnp.zeros(a.shape, a.dtype) for p, a in self._producers.items() if p not in values}
        return tuple(o.spread([known[p] for p in o.producers], self._indices) for o in self.node.operands)

    def living(self, coefficient: Array) -> Array:
        """Zero a coefficient per output where nobody reads the output."""
        return living(self.node, coefficient, self._alive)

    def means(self, position: int, copies: Array) -> dict[int, Array]:
        """Average an operand's copies (of a bilinear node, their living sums) by producer; zero where none are."""
        operand = self.node.operands[position]
        copies = copies if self.dots else self.living(copies)
        sums = operand.gather(copies, [self._producers[p] for p in operand.producers], self._indices)
        sum_of = dict(zip(operand.producers, sums, strict=True))
        # A whole number stays one, so that nothing divides by an array.
        at_least_one = {
            p: max(c, 1) if isinstance(c, int) else jnp.maximum(c, 1) for p, c in self.counts[position].items()
        }
        return {p: sum_of[p] / count for p, count in at_least_one.items()}

    def project(self, operands: Operands, target: Array | None, weight: ArrayLike) -> tuple[Operands, Array | None]:
        """Apply the rule of a constraint or loss whose operand elements are one edge each."""
        assert self.node.primitive is not None
        table = rules.loss_rules if self.node.kind == "loss" else rules.projection_rules
        return table[self.node.primitive](operands, target, weight, self.operators, **dict(self.node.params))


class Edges:
    """Every copy of every operand: a tuple of arrays, O(edges) memory."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def start(self, values: Values, pending: frozenset[int]) -> Operands:
        """Give every copy the value of its producer."""
        del pending
        return self._expand(self._site.spread(values))

    def _expand(self, operands: Operands) -> Operands:
        return self._site.dots.expand(*operands) if self._site.dots else operands

    def write(self, z: Operands, values: Values) -> Operands:
        """Replace the copies of the given producers."""
        site = self._site
        if all(p in values for p in site.node.producers()):
            return self._expand(site.spread(values))
        ones = {p: jnp.ones_like(v) for p, v in values.items()}
        masks, news = (self._expand(site.spread(known, partial=True)) for known in (ones, values))
        return tuple(jnp.where(m > 0, new, old) for m, new, old in zip(masks, news, z, strict=True))

    def mean(self, z: Operands, position: int, producer: int) -> Array:
        """Average the copies of each element of a producer."""
        dots = self._site.dots
        if dots is None:
            sums = z[position]
        else:
            alive = self._site.living(jnp.ones(z[0].shape[:-1], z[0].dtype))[..., None]
            sums = dots.contract((z[0] * alive, z[1] * alive))[position]
        return self._site.means(position, sums)[producer]

    def project(
        self, z: Operands, target: Array | None, weight: ArrayLike
    ) -> tuple[Array | None, Operands, Array | None]:
        """Project the copies and the output's target onto the node's graph; also return a dot's root."""
        if self._site.dots is None or target is None:
            projected, output = self._site.project(z, target, weight)
            return output, projected, None
        x, w, output, root = projections.project_dot(z[0], z[1], target, weight, self._site.operators)
        return output, (x, w), root

    def combine(self, terms: Sequence[tuple[float, Operands]]) -> Operands:
        """Sum of scalars times copies."""
        scaled = [jax.tree.map(lambda a, c=c: c * a, z) for c, z in terms]
        return jax.tree.map(lambda *arrays: sum(arrays[1:], arrays[0]), *scaled)

    def settle(self, z: Operands) -> Operands:
        """Make the state ready for the next step: nothing to do."""
        return z


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ConsensusState:
    """What is live of a node's copies.

    Attributes:
        values: of the producers that projected since the node did (constants are not kept).
        means: over the copies that the node's projection left, by operand position, of the producers that
            have not projected since.
    """

    values: dict[int, Array]
    means: tuple[dict[int, Array], ...]


class Consensus:
    """Copies that agree whenever their node projects: O(nodes + parameters) memory.

    Exact for methods that project every node once a cycle: between two projections of a node each of its
    producers projects exactly once and makes its copies equal.
    """

    def __init__(self, site: Site) -> None:
        self._site = site

    def _readers(self, position: int) -> list[int]:
        """Producers that will read the means; constants restore their copies without."""
        return [p for p in self._site.node.operands[position].producers if p not in self._site.constants]

    def start(self, values: Values, pending: frozenset[int]) -> ConsensusState:
        """State of a network at rest, in the middle of a cycle: ``pending`` have yet to read the means."""
        site = self._site
        positions = range(len(site.node.operands))
        return ConsensusState(
            {p: values[p] for p in site.node.producers() if p not in pending and p not in site.constants},
            tuple({p: values[p] for p in self._readers(i) if p in pending} for i in positions),
        )

    def write(self, z: ConsensusState, values: Values) -> ConsensusState:
        """Note the values of the producers that projected; their means are dead."""
        new = {p: values[p] for p in self._site.node.producers() if p in values and p not in self._site.constants}
        left = tuple({p: m for p, m in means.items() if p not in values} for means in z.means)
        return ConsensusState({**z.values, **new}, left)

    def mean(self, z: ConsensusState, position: int, producer: int) -> Array:
        """Average the copies of each element of a producer."""
        means = z.means[position]
        return means[producer] if producer in means else z.values[producer]

    def project(
        self, z: ConsensusState, target: Array | None, weight: ArrayLike
    ) -> tuple[Array | None, ConsensusState, Array | None]:
        """Project; the copies that come out are kept as means. Also return a dot's root."""
        site, root = self._site, None
        operands = site.spread(z.values)
        if site.dots is None or target is None:
            sums, output = site.project(operands, target, weight)
        else:
            x, w = operands
            q = site.dots.norm((x, w), (x, w))
            root = projections.dot_root(site.dots.product(x, w), q, target, weight, site.operators)
            a, d = (site.living(c) for c in projection_factor(root))
            sums = [site.dots.sums((a, d), (x, w), i) for i in (0, 1)]
            output = target - root / weight
        found = (site.means(i, copies) for i, copies in enumerate(sums))
        means = tuple({p: g[p] for p in self._readers(i)} for i, g in enumerate(found))
        return output, ConsensusState({}, means), root
