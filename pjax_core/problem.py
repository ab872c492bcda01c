"""Projections onto sets of nodes: one procedure for every way of holding the copies (Theorems 2 and 3)."""

import copy
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pjax_core.copies import Consensus, Edges, Site
from pjax_core.counting import count_edges
from pjax_core.graph import Graph
from pjax_core.history import History
from pjax_core.operators import Operators

State = dict[int, Any]  # node number of a constraint or loss -> its copies
Holder = Edges | Consensus | History


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Diagnostics:
    """How far an iterate is from feasible.

    Distances are between the nodes' consensus values, one number per scalar node (where copies of a value
    differ, between their means): zero where the distance between the edges is zero.

    Attributes:
        residual: how far one more step moves; zero at a fixed point.
        gap: ``|P_A z - P_B z|``, the distance between the sides (cyclic projections: the longest way to a layer).
        constraint_violation: largest ``|f(u) - y|`` of a constraint, in the constraint's own units.
        target_displacement: root mean square, by constraint (``"number:name"``, as ``print(graph)`` shows it), of how
            far its target has moved from its value in the forward pass; where it vanishes a layer learns nothing.
        roots_at_bracket: share of dot products whose root lies at the ends of (-1, 1) or outside, where Theorem 7
            has no root or an unguarded Newton iteration lost it.
        folded_coefficient: largest coefficient that a window of history folds into the next-oldest slot in one more
            step; 0 without history.
    """

    residual: Array
    gap: Array
    constraint_violation: Array
    target_displacement: dict[str, Array]
    roots_at_bracket: Array
    folded_coefficient: Array


class _Report(NamedTuple):
    """What projections leave for the diagnostics."""

    roots: list[Array]
    folded: list[Array]


class Problem:
    """A graph at one batch: the feasibility problem that a projection method solves.

    Lives inside one trace of the compiled solver; holds no state of its own between steps.
    """

    def __init__(
        self,
        graph: Graph,
        values: dict[int, Array],
        indices: Sequence[Array],
        operators: Operators,
        cycle: Sequence[Sequence[int]],
        hold: Callable[[Site, bool], Holder],
    ) -> None:
        """Count the edges.

        Args:
            graph: the traced graph.
            values: of its nodes, by number, in the forward pass.
            indices: its index arrays.
            operators: how to project.
            cycle: the sets of nodes that the method projects onto, in order.
            hold: makes the holder of a node's copies; told whether all its producers are in one set.
        """
        self.graph, self._operators, self._values = graph, operators, values
        masks, counts = count_edges(graph, indices)
        self._sites: dict[int, Site] = {}
        for number in graph.numbers("constraint", "loss"):
            producers = {p: graph.nodes[p] for p in graph.nodes[number].producers()}
            self._sites[number] = Site(
                graph.nodes[number],
                operators,
                {p: node.aval for p, node in producers.items()},
                {p: values[p] for p, node in producers.items() if node.kind == "constant"},
                indices,
                masks.get(number),
                counts[number],
            )
        self._layer = {number: i for i, numbers in enumerate(cycle) for number in numbers}
        self._report: _Report | None = None
        self.holders: dict[int, Holder] = {}
        for number, site in self._sites.items():
            layers = {self._layer[p] for p in graph.nodes[number].producers() if p not in site.constants}
            self.holders[number] = hold(site, len(layers) <= 1)

    def consensus(self, number: int, z: State) -> Array:
        """Average the copies of a node's value over its outgoing edges (Eq. 10; Theorem 3, step 1).

        With ``consensus="consumers"`` the mean over the consumers of the mean over each one's copies. An
        element without an edge keeps the value it started from.
        """
        readers = [
            (self.holders[n].mean(z[n], i, number), self._sites[n].counts[i][number])
            for n, i in self.graph.consumers[number]
        ]
        if self._operators.consensus == "consumers":
            readers = [(mean, (count > 0) * 1) for mean, count in readers]
        weight = sum(count for _, count in readers)
        if len(readers) == 1:
            mean = readers[0][0]
        else:
            mean = sum(mean * count for mean, count in readers) / jnp.maximum(weight, 1)
        return mean if isinstance(weight, int) and weight else jnp.where(weight > 0, mean, self._values[number])

    def project(self, numbers: Collection[int], z: State) -> State:
        """Project onto the constraints of nodes no two of which share an edge.

        Parameters make their copies equal, constants restore theirs, constraints and losses project what
        they read and the mean of what reads them; then all of them write their outgoing edges.
        """
        graph = self.graph
        assert not any(p in numbers for n in numbers for p in graph.nodes[n].producers()), "nodes share an edge"
        z = dict(z)
        values: dict[int, Array] = {}
        for number in numbers:
            kind = graph.nodes[number].kind
            if kind == "constant":
                values[number] = self._values[number]
            elif kind == "parameter":
                if graph.consumers[number]:
                    values[number] = self.consensus(number, z)
            else:
                loss = kind == "loss"
                target = None if loss else self.consensus(number, z)
                weight = 1 if loss or not self._operators.weighted else jnp.maximum(self._fan_out(number), 1)
                output, z[number], root = self.holders[number].project(z[number], target, weight)
                if root is not None and self._report:
                    self._report.roots.append(root)
                if output is not None:
                    values[number] = output
        for reader in dict.fromkeys(r for n in values for r, _ in graph.consumers[n]):
            written = {p: values[p] for p in graph.nodes[reader].producers() if p in values}
            z[reader] = self.holders[reader].write(z[reader], written)
        return z

    def _fan_out(self, number: int) -> Array | int:
        """Count the outgoing edges of every element of a node."""
        return sum(self._sites[reader].counts[i][number] for reader, i in self.graph.consumers[number])

    def start(self) -> State:
        """Copies of the forward pass, ready for the first of a cycle of projections."""
        z: State = {}
        for number, holder in self.holders.items():
            producers = self.graph.nodes[number].producers()
            # At the start of a cycle those that project before the node have yet to read what it left.
            pending = frozenset(p for p in producers if self._layer[p] < self._layer[number])
            z[number] = holder.start(self._values, pending)
        return z

    def combine(self, *terms: tuple[float, State]) -> State:
        """Linear combination of states, node by node."""
        used = [(c, z) for c, z in terms if c]
        return {
            n: holder.combine([(c, z[n]) for c, z in used])  # type: ignore[union-attr]
            for n, holder in self.holders.items()
        }

    def settle(self, z: State) -> State:
        """Make a state ready for the next step."""
        if self._report:
            self._report.folded.extend(h.folded(z[n]) for n, h in self.holders.items() if isinstance(h, History))
        return {n: holder.settle(z[n]) for n, holder in self.holders.items()}  # type: ignore[union-attr]

    def _consensus_values(self, z: State) -> dict[int, Array]:
        """Consensus of every node that others read; constants as they are."""
        read = [n for n in self.graph.numbers("parameter", "constraint") if self.graph.consumers[n]]
        constants = {n: self._values[n] for n in self.graph.numbers("constant")}
        return {**constants, **{n: self.consensus(n, z) for n in read}}

    def distance(self, first: State, second: State) -> Array:
        """Euclidean distance of the nodes' consensus values."""
        a, b = self._consensus_values(first), self._consensus_values(second)
        return jnp.sqrt(sum((jnp.sum(jnp.square(a[n] - b[n])) for n in a), jnp.zeros(())))

    def diagnose(
        self,
        z: State,
        step: Callable[["Problem", State], State],
        gap: Callable[["Problem", State], Array],
        names: Mapping[int, str],
    ) -> Diagnostics:
        """Measure an iterate of a method; ``names`` of nodes by origin."""
        observed = copy.copy(self)
        observed._report = report = _Report([], [])
        residual = self.distance(step(observed, z), z)
        values = self._consensus_values(z)
        violation, displacement = [jnp.zeros(())], {}
        for n in self.graph.numbers("constraint"):
            node = self.graph.nodes[n]
            error = jnp.abs(node.evaluate(self._sites[n].spread(values)) - values[n])
            violation.append(jnp.max(self._sites[n].living(error), initial=0))
            moved = self._sites[n].living(jnp.square(values[n] - self._values[n]))
            for origin, member in self._members(n, jnp.broadcast_to(moved, node.shape)).items():
                displacement[names[origin]] = jnp.sqrt(jnp.mean(member))
        limits = [1 - 4 * float(jnp.finfo(root.dtype).eps) for root in report.roots]
        lost = [jnp.sum(~(jnp.abs(root) < limit)) for root, limit in zip(report.roots, limits, strict=True)]
        count = max(sum(root.size for root in report.roots), 1)
        return Diagnostics(
            residual,
            gap(self, z),
            jnp.max(jnp.stack(violation)),
            displacement,
            sum(lost, jnp.zeros(())) / count,
            jnp.max(jnp.stack([jnp.zeros(()), *report.folded])),
        )

    def readout(self, z: State) -> list[Array]:
        """Consensus of every parameter's edges (Algorithm 1, line 9); unread parameters as they were."""
        found: dict[int, Array] = {}
        for n in self.graph.numbers("parameter"):
            value = self.consensus(n, z) if self.graph.consumers[n] else self._values[n]
            found |= self._members(n, value)
        return [found[origin] for origin in sorted(found)]

    def _members(self, number: int, value: Array) -> dict[int, Array]:
        """Values of the nodes that a stack is made of, by origin."""
        origins = self.graph.nodes[number].origins
        return dict(zip(origins, value, strict=True)) if len(origins) > 1 else dict.fromkeys(origins, value)
