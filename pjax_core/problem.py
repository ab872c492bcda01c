"""Projections onto sets of nodes: one procedure for every way of holding the copies (Theorems 2 and 3)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pjax_core import rules
from pjax_core.bilinear import Dots
from pjax_core.copies import Consensus, Edges, History
from pjax_core.graph import Graph
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
        hold: Callable[[Graph, int], Holder],
    ) -> None:
        """Evaluate the network.

        Args:
            graph: the traced graph.
            arrays: values of its parameters, constants and index arrays.
            operators: how to project.
            hold: ``hold(graph, number)`` makes the holder of a node's copies.
        """
        parameters, constants, self._indices = arrays
        self.graph, self._operators = graph, operators
        self._values, self.loss = graph.forward(parameters, constants, self._indices)
        self._holders = {n: hold(graph, n) for n in graph.numbers("constraint", "loss")}
        self._counts: dict[tuple[int, int, int], Array | float] = {}
        for number in self._holders:
            self._count_edges(number)

    def _count_edges(self, number: int) -> None:
        """Number of edges from every element of a producer to an operand of this node."""
        node = self.graph.nodes[number]
        dots = Dots(node) if node.primitive in rules.bilinear_rules else None
        for position, operand in enumerate(node.operands):
            copies = dots.counts(position) if dots else 1
            avals = [self.graph.nodes[p].aval for p in operand.producers]
            full = jnp.full(operand.shape, copies, operand.dtype)
            if operand.reads_indices:
                counts: list[Any] = operand.gather(full, avals, self._indices)
            elif operand.copies:
                with jax.ensure_compile_time_eval():
                    full = jnp.full(operand.shape, copies, operand.dtype)
                    counts = [_uniform(c) for c in operand.gather(full, avals, self._indices)]
            else:
                counts = [copies]
            for producer, count in zip(operand.producers, counts, strict=True):
                self._counts[number, position, producer] = count

    def _edges_from(self, number: int) -> Array | float:
        """Count the outgoing edges of every element of a node."""
        counts = [self._counts[(*reader, number)] for reader in self.graph.consumers[number]]
        return sum(counts[1:], counts[0])

    def consensus(self, number: int, z: State) -> Array:
        """Average the copies of a node's value over its outgoing edges (Eq. 10; Theorem 3, step 1).

        With ``consensus="consumers"`` the mean over the consumers of the mean over each one's copies. An
        element without an edge keeps the value it started from.
        """
        graph, per_consumer = self.graph, self._operators.consensus == "consumers"
        total: Any = 0.0
        weight: Any = 0.0
        for reader, position in graph.consumers[number]:
            operand = graph.nodes[reader].operands[position]
            avals = [graph.nodes[p].aval for p in operand.producers]
            gathered = operand.gather(self._holders[reader].sums(z[reader], position), avals, self._indices)
            sums = gathered[operand.producers.index(number)]
            count = self._counts[reader, position, number]
            if per_consumer:
                total = total + sums / _at_least_one(count)
                weight = weight + _is_positive(count)
            else:
                total, weight = total + sums, weight + count
        if isinstance(weight, Array):
            return jnp.where(weight > 0, total / _at_least_one(weight), self._values[number])
        return total / weight

    def project(self, numbers: Iterable[int], z: State) -> State:
        """Project onto the constraints of nodes no two of which share an edge.

        Parameters make their copies equal, constants restore theirs, constraints and losses project what
        they read and the mean of what reads them; then all of them write their outgoing edges.
        """
        graph = self.graph
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
                weight = 1 if loss or not self._operators.weighted else self._edges_from(number)
                output, z[number] = self._holders[number].project(z[number], target, weight)
                if output is not None:
                    values[number] = output
        for reader in dict.fromkeys(r for n in values for r, _ in graph.consumers[n]):
            z[reader] = self._write(reader, z[reader], values)
        return z

    def _write(self, reader: int, copies: Any, values: Mapping[int, Array]) -> Any:
        """Give a node's copies the new values of its producers."""
        holder, node = self._holders[reader], self.graph.nodes[reader]
        complete = all(p in values for p in node.producers())
        if complete and not isinstance(holder, Consensus):
            return holder.uniform(self.graph.operands_of(reader, values, self._indices))
        for position, operand in enumerate(node.operands):
            written = frozenset(p for p in operand.producers if p in values)
            if not written:
                continue
            part = self._part(operand, written, values)
            if isinstance(holder, Consensus):
                copies = holder.write(copies, position, written, part)
            elif isinstance(holder, Edges):
                ones = {p: jnp.ones_like(values[p]) for p in written}
                mask = self._part(operand, written, ones)
                copies = holder.overwrite(copies, position, mask, part)
            else:
                raise AssertionError("a two-sided method writes all operands of a node at once")
        return copies

    def _part(self, operand: Any, written: frozenset[int], values: Mapping[int, Array]) -> Array:
        """Spread some producers' values; zero where the operand copies others."""
        full = [
            values[p] if p in written else jnp.zeros(self.graph.nodes[p].shape, self.graph.nodes[p].dtype)
            for p in operand.producers
        ]
        return operand.spread(full, self._indices)

    def start(self, cycle: Sequence[Sequence[int]]) -> State:
        """Copies of the forward pass, ready for the first of a cycle of projections.

        Args:
            cycle: the sets of nodes that the method projects onto, in order.
        """
        layer = {number: i for i, numbers in enumerate(cycle) for number in numbers}
        z: State = {}
        for number, holder in self._holders.items():
            operands = self.graph.operands_of(number, self._values, self._indices)
            if isinstance(holder, Consensus):
                node = self.graph.nodes[number]
                pending = tuple(frozenset(p for p in o.producers if layer[p] < layer[number]) for o in node.operands)
                written = tuple(
                    self._part(o, frozenset(o.producers) - late, self._values)
                    for o, late in zip(node.operands, pending, strict=True)
                )
                z[number] = holder.start(written, operands, pending)
            elif isinstance(holder, History):
                z[number] = holder.start(operands)
            else:
                z[number] = holder.uniform(operands)
        return z

    def combine(self, *terms: tuple[float, State]) -> State:
        """Linear combination of states, node by node."""
        return {
            n: holder.combine([(c, z[n]) for c, z in terms])  # type: ignore[union-attr]
            for n, holder in self._holders.items()
        }

    def settle(self, z: State) -> State:
        """Make a state ready for the next step."""
        return {n: holder.settle(z[n]) for n, holder in self._holders.items()}  # type: ignore[union-attr]

    def readout(self, z: State) -> list[Array]:
        """Consensus of every parameter's edges (Algorithm 1, line 9); unread parameters as they were."""
        return [
            self.consensus(n, z) if self.graph.consumers[n] else self._values[n]
            for n in self.graph.numbers("parameter")
        ]


def _uniform(count: Array) -> Array | float:
    """Collapse a known array of equal counts to a number, so that compiled code holds no array for it."""
    known = np.rint(np.asarray(count))
    return float(known.flat[0]) if known.size and np.all(known == known.flat[0]) else jnp.asarray(known)


def _at_least_one(count: Any) -> Any:
    return jnp.maximum(count, 1) if isinstance(count, Array) else max(count, 1.0)


def _is_positive(count: Any) -> Any:
    return (count > 0).astype(count.dtype) if isinstance(count, Array) else float(count > 0)
