"""Projections onto sets of nodes: one procedure for every way of holding the copies (Theorems 2 and 3)."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from pjax_core.copies import Consensus, Edges, Site
from pjax_core.graph import Graph
from pjax_core.history import History
from pjax_core.operators import Operators

State = dict[int, Any]  # node number of a constraint or loss -> its copies
Holder = Edges | Consensus | History


class Problem:
    """A graph at one batch: the feasibility problem that a projection method solves.

    Lives inside one trace of the compiled solver; holds no state of its own between steps.
    """

    def __init__(
        self,
        graph: Graph,
        arrays: tuple[Sequence[Array], Sequence[Array], Sequence[Array]],
        operators: Operators,
        hold: Callable[[Site], Holder],
    ) -> None:
        """Evaluate the network.

        Args:
            graph: the traced graph.
            arrays: values of its parameters, constants and index arrays.
            operators: how to project.
            hold: makes the holder of a node's copies.
        """
        self.graph, self._operators = graph, operators
        self._values, self.loss = graph.forward(*arrays)
        self._sites: dict[int, Site] = {}
        # Consumers first: which outputs count depends on who reads them.
        for number in reversed(graph.numbers("constraint", "loss")):
            producers = {p: graph.nodes[p] for p in graph.nodes[number].producers()}
            self._sites[number] = Site(
                graph.nodes[number],
                operators,
                {p: node.aval for p, node in producers.items()},
                {p: self._values[p] for p, node in producers.items() if node.kind == "constant"},
                arrays[2],
                None if graph.nodes[number].kind == "loss" else _mask(self._fan_out(number)),
            )
        self.holders = {number: hold(site) for number, site in self._sites.items()}

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
        return mean if isinstance(weight, int) else jnp.where(weight > 0, mean, self._values[number])

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
                output, z[number] = self.holders[number].project(z[number], target, weight)
                if output is not None:
                    values[number] = output
        for reader in dict.fromkeys(r for n in values for r, _ in graph.consumers[n]):
            written = {p: values[p] for p in graph.nodes[reader].producers() if p in values}
            z[reader] = self.holders[reader].write(z[reader], written)
        return z

    def _fan_out(self, number: int) -> Array | int:
        """Count the outgoing edges of every element of a node."""
        with jax.ensure_compile_time_eval():
            return sum(self._sites[reader].counts[i][number] for reader, i in self.graph.consumers[number])

    def start(self, cycle: Sequence[Sequence[int]]) -> State:
        """Copies of the forward pass, ready for the first of a cycle of projections.

        Args:
            cycle: the sets of nodes that the method projects onto, in order.
        """
        layer = {number: i for i, numbers in enumerate(cycle) for number in numbers}
        z: State = {}
        for number, holder in self.holders.items():
            producers = self.graph.nodes[number].producers()
            # At the start of a cycle those that project before the node have yet to read what it left.
            pending = frozenset(p for p in producers if layer[p] < layer[number])
            z[number] = holder.start(self._values, pending)
        return z

    def combine(self, *terms: tuple[float, State]) -> State:
        """Linear combination of states, node by node."""
        return {
            n: holder.combine([(c, z[n]) for c, z in terms])  # type: ignore[union-attr]
            for n, holder in self.holders.items()
        }

    def settle(self, z: State) -> State:
        """Make a state ready for the next step."""
        return {n: holder.settle(z[n]) for n, holder in self.holders.items()}  # type: ignore[union-attr]

    def readout(self, z: State) -> list[Array]:
        """Consensus of every parameter's edges (Algorithm 1, line 9); unread parameters as they were."""
        return [
            self.consensus(n, z) if self.graph.consumers[n] else self._values[n]
            for n in self.graph.numbers("parameter")
        ]


def _mask(readers: Array | int) -> Array | None:
    """1 where an element has readers, else 0; ``None`` where all are known to have some."""
    if isinstance(readers, int) or (not isinstance(readers, Tracer) and np.all(np.asarray(readers) > 0)):
        return None
    with jax.ensure_compile_time_eval():
        return (readers > 0).astype(readers.dtype)
