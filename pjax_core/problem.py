"""Projections onto sets of nodes: one procedure for every way of holding the copies (Theorems 2 and 3)."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from pjax_core.copies import Consensus, Edges, Values, at_least_one
from pjax_core.counting import count_edges
from pjax_core.graph import Graph
from pjax_core.history import History
from pjax_core.jaxprs import at_once
from pjax_core.whole import Whole

if TYPE_CHECKING:
    from pjax_core.optim import ProjectionMethod

State = dict[int, Any]  # node number of a constraint or loss -> its copies
AnyHolder = Edges | Consensus | History | Whole


class Report(NamedTuple):
    """What the projections of a step leave for the diagnostics."""

    roots: list[Array]
    folded: list[Array]


class Problem:
    """A graph at one batch: the feasibility problem that a projection method solves.

    Lives inside one trace of the compiled solver; holds no state of its own between steps.
    """

    def __init__(self, graph: Graph, values: Values, indices: Sequence[Array], method: "ProjectionMethod") -> None:
        """Count the edges and choose how each node's copies are held.

        Args:
            graph: the traced graph.
            values: of its nodes, by number, in the forward pass.
            indices: its index arrays.
            method: what solves it.
        """
        self.graph, self.values, self.method = graph, values, method
        self.report: Report | None = None
        self.holders: dict[int, AnyHolder] = {}
        masks, counts = count_edges(graph, indices)
        for n in graph.numbers("constraint", "loss"):
            node, hold = graph.nodes[n], method.hold(graph, n)
            read = {p: values[p] for p in node.producers()}
            self.holders[n] = hold(node, method.operators, read, indices, masks.get(n), counts[n])

    def _counts(self, number: int) -> list[Array | int]:
        """Outgoing edges of every element of a node, by consumer."""
        return [self.holders[n].counts[i][number] for n, i in self.graph.consumers[number]]

    def consensus(self, number: int, z: State, done: Array | None = None) -> Array:
        """Average the copies of a node's value over its outgoing edges (Eq. 10; Theorem 3, step 1).

        With ``consensus="consumers"`` the mean over the consumers of the mean over each one's copies. A constant
        and an element without an edge keep the values they started from. Means that are made of a history
        wait for ``done`` (:func:`pjax_core.copies.after`).
        """
        if self.graph.nodes[number].kind == "constant":
            return self.values[number]
        means = [self.holders[n].mean(z[n], i, number, done) for n, i in self.graph.consumers[number]]
        counts = self._counts(number)
        with at_once(*counts):
            if self.method.operators.consensus == "consumers":
                counts = [(count > 0) * 1 for count in counts]
            total = sum(counts)
            shares = [count / at_least_one(total) for count in counts]
        mean = sum(own * share for own, share in zip(means, shares, strict=True))
        if not isinstance(total, Tracer) and np.all(np.asarray(total) > 0):
            return jnp.asarray(mean)  # the values of the forward pass, needed nowhere, are not kept
        return jnp.where(total > 0, mean, self.values[number])

    def project(self, numbers: Collection[int], z: State) -> State:
        """Project onto the constraints of nodes no two of which share an edge.

        Parameters make their copies equal, constants restore theirs, constraints and losses project what
        they read and the mean of what reads them; then all of them write their outgoing edges.
        """
        graph = self.graph
        assert not any(p in numbers for n in numbers for p in graph.nodes[n].producers()), "nodes share an edge"
        z = dict(z)
        values: dict[int, Array] = {}
        averaged: Array | None = None  # what the next consensus waits for
        projected: Array | None = None  # and the next projection
        for number in numbers:
            value = None if graph.nodes[number].kind == "loss" else self.consensus(number, z, averaged)
            if graph.nodes[number].kind not in ("constant", "loss"):
                averaged = value
            if number in self.holders:
                holder = self.holders[number]
                weight = at_least_one(sum(self._counts(number))) if self.method.operators.weighted else 1
                copies, target = holder.in_turn(z[number], value, projected)
                value, z[number], root = holder.project(copies, target, weight)
                projected = holder.last(z[number], projected)
                if root is not None and self.report:
                    self.report.roots.append(root)
            if value is not None:
                values[number] = value
        for reader in dict.fromkeys(r for n in values for r, _ in graph.consumers[n]):
            z[reader] = self.holders[reader].write(z[reader], values)
        return z

    def start(self) -> State:
        """Copies of the forward pass."""
        return {n: holder.start() for n, holder in self.holders.items()}

    def combine(self, *terms: tuple[float, State]) -> State:
        """Linear combination of states, node by node."""
        return {n: holder.combine([(c, z[n]) for c, z in terms if c]) for n, holder in self.holders.items()}

    def settle(self, z: State) -> State:
        """Make a state ready for the next step."""
        if self.report:
            self.report.folded.extend(h.folded(z[n]) for n, h in self.holders.items() if isinstance(h, History))
        # Copies held whole first, and edges after them: whole ones are made of values made of the edges' old copies.
        settled: State = {}
        done: Array | None = None
        for n in sorted(self.holders, key=lambda n: not isinstance(self.holders[n], Whole)):
            settled[n] = self.holders[n].settle(z[n], done)
            if isinstance(self.holders[n], Whole):
                done = settled[n].slots[0]
        return settled

    def consensus_values(self, z: State) -> dict[int, Array]:
        """Consensus of every node but the losses."""
        return {n: self.consensus(n, z) for n in self.graph.numbers("parameter", "constant", "constraint")}

    def distance(self, first: State, second: State) -> Array:
        """Euclidean distance of the nodes' consensus values."""
        a, b = self.consensus_values(first), self.consensus_values(second)
        return jnp.sqrt(sum((jnp.sum(jnp.square(a[n] - b[n])) for n in a), jnp.zeros(())))

    def readout(self, z: State) -> list[Array]:
        """Consensus of every parameter's edges (Algorithm 1, line 9); unread parameters as they were."""
        found: dict[int, Array] = {}
        for n in self.graph.numbers("parameter"):
            found |= self.members(n, self.consensus(n, z))
        return [found[origin] for origin in sorted(found)]

    def members(self, number: int, value: Array) -> dict[int, Array]:
        """Values of the nodes that a stack is made of, by origin."""
        origins = self.graph.nodes[number].origins
        return dict(zip(origins, value, strict=True)) if len(origins) > 1 else dict.fromkeys(origins, value)
