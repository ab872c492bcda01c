"""The constraint graph: what a trace produces and what the solvers read.

A *node* is a batch of the paper's scalar nodes: a parameter, a constant, a constraint (hidden function
node) or a loss (target node). Its value is one array. An *operand* is an input of a constraint or loss:
a program of copies ("spread", the linear 0/1 map S restricted to that input) from the values of other
nodes, its producers. No inverse of a copy is written anywhere: the sums over copies are
``jax.linear_transpose`` of the program.
"""

import dataclasses
import functools
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Primitive

Kind = Literal["parameter", "constant", "constraint", "loss"]
Source = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class Copy:
    """One copy equation. An input is a :data:`Source`, ``("producer" | "copy" | "index", position)``.

    ``producer``: position in the operand's producers. ``copy``: position among the results of the
    operand's earlier copies. ``index``: position among the trace's index arrays.
    """

    primitive: Primitive
    params: tuple[tuple[str, Any], ...]
    inputs: tuple[Source, ...]


@dataclasses.dataclass(frozen=True)
class Operand:
    """What a constraint reads: copies of the values of ``producers`` (node numbers, none twice).

    Without ``copies`` it is the value of its one producer itself.
    """

    producers: tuple[int, ...]
    copies: tuple[Copy, ...]
    shape: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def of(cls, source: Source, aval: Any, made: Sequence[Copy]) -> "Operand":
        """Collect the copies between producers and a value of some shape and dtype, in order.

        Args:
            source: what the value is; here ``("producer", node number)`` or ``("copy", position)``.
            aval: its shape and dtype.
            made: all copies, whose inputs are such sources.
        """
        producers: dict[int, Source] = {}
        copies: list[Copy] = []
        done: dict[int, Source] = {}  # by position

        def visit(source: Source) -> Source:
            kind, number = source
            if kind == "producer":
                return producers.setdefault(number, (kind, len(producers)))
            if kind == "copy" and number not in done:
                copies.append(dataclasses.replace(made[number], inputs=tuple(map(visit, made[number].inputs))))
                done[number] = kind, len(done)
            return done[number] if kind == "copy" else source

        visit(source)
        return cls(tuple(producers), tuple(copies), aval.shape, aval.dtype)

    def spread(self, values: Mapping[int, Array], indices: Sequence[Array]) -> Array:
        """Apply S: from the values of nodes, by number, to the operand."""
        producers, results = [values[p] for p in self.producers], list[Array]()
        sources = {"producer": producers, "copy": results, "index": indices}
        for copy in self.copies:
            inputs = [sources[kind][position] for kind, position in copy.inputs]
            results.append(copy.primitive.bind(*inputs, **dict(copy.params)))
        return results[-1] if self.copies else producers[0]

    def gather(self, copies: Array, values: Mapping[int, Any], indices: Sequence[Array]) -> dict[int, Array]:
        """Apply the transpose of S: the sums of the operand's copies, by producer and in its shape."""
        if not self.copies:
            return dict.fromkeys(self.producers, copies)
        own = {p: values[p] for p in self.producers}
        return jax.linear_transpose(lambda xs: self.spread(xs, indices), own)(copies)[0]

    @property
    def indexed(self) -> set[int]:
        """Producers some of whose copies are taken by an index array, which is known only when the graph runs."""
        found: set[int] = set()
        below: list[set[int]] = []  # producers that a result is made of
        for copy in self.copies:
            values = [source for source in copy.inputs if source[0] != "index"]
            made_of = set[int]().union(*(below[i] if kind == "copy" else {self.producers[i]} for kind, i in values))
            if len(values) < len(copy.inputs):
                found |= made_of
            below.append(made_of)
        return found


@dataclasses.dataclass(frozen=True)
class Node:
    """A batch of scalar nodes with one array as value (a loss's value is the loss per sample).

    ``origins``: where the forward pass has the value (:class:`pjax_core.trace.Program`), of a stack its members'
    values; none for constants and for inserted identities.
    """

    kind: Kind
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    primitive: Primitive | None = None
    params: tuple[tuple[str, Any], ...] = ()
    operands: tuple[Operand, ...] = ()
    origins: tuple[int, ...] = ()

    @property
    def aval(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the value."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype)

    def producers(self) -> list[int]:
        """Nodes that this one reads, each once, in order of appearance."""
        return list(dict.fromkeys(p for operand in self.operands for p in operand.producers))

    def reading(self, number_of: Mapping[int, int]) -> "Node":
        """Read other producers in place of these."""
        operands = (dataclasses.replace(o, producers=tuple(number_of[p] for p in o.producers)) for o in self.operands)
        return dataclasses.replace(self, operands=tuple(operands))

    def read(self, values: Mapping[int, Array], indices: Sequence[Array]) -> tuple[Array, ...]:
        """Operands from the values of nodes, by number."""
        return tuple(operand.spread(values, indices) for operand in self.operands)

    def evaluate(self, operands: Sequence[Array]) -> Array:
        """Value of the primitive, ``f(operands)``."""
        assert self.primitive is not None
        return self.primitive.bind(*operands, **dict(self.params))


@dataclasses.dataclass(frozen=True)
class Graph:
    """Nodes in an order in which each comes after those that it reads at the same step of a recurrence.

    Hashable and free of arrays: two traces of the same computation compare equal, so a compiled solver
    is found again.

    Attributes:
        nodes: the nodes; everything else refers to them by position.
        identities: numbers of the nodes that were inserted to make the graph bipartite (Theorem 4).
        proven: whether no fewer identities would do; if not, the search for them stopped at its limit.
    """

    nodes: tuple[Node, ...]
    identities: tuple[int, ...] = ()
    proven: bool = True

    def numbers(self, *kinds: Kind) -> list[int]:
        """Numbers of the nodes of these kinds, in order."""
        return [i for i, node in enumerate(self.nodes) if node.kind in kinds]

    @functools.cached_property
    def recurrent(self) -> bool:
        """Whether a node reads itself or a later node."""
        return any(p >= n for n, node in enumerate(self.nodes) for p in node.producers())

    @functools.cached_property
    def indexes_constraints(self) -> bool:
        """Whether an index array takes copies of a constraint's output, so that which of it is read is known late."""
        return any(self.nodes[p].kind == "constraint" for node in self.nodes for o in node.operands for p in o.indexed)

    @functools.cached_property
    def consumers(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For every node the (consumer, operand position) pairs that read it."""
        found: list[list[tuple[int, int]]] = [[] for _ in self.nodes]
        for number, node in enumerate(self.nodes):
            for position, operand in enumerate(node.operands):
                for producer in operand.producers:
                    found[producer].append((number, position))
        return tuple(map(tuple, found))

    @functools.cached_property
    def neighbours(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For every node the (neighbour, producer of the edge between them) pairs."""
        reads = [[(p, p) for p in node.producers()] for node in self.nodes]
        readers = [[(reader, n) for reader, _ in consumers] for n, consumers in enumerate(self.consumers)]
        return tuple(tuple(dict.fromkeys([*own, *others])) for own, others in zip(reads, readers, strict=True))

    @functools.cached_property
    def sides(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The bipartition (Theorem 2): side A, which holds the first loss, and side B."""
        distance = distances(self)
        for number, node in enumerate(self.nodes):
            if any(distance[p] == distance[number] for p in node.producers()):
                raise ValueError(f"node {number}, {node.name}, is on an odd cycle; make_bipartite inserts identities")
        a, b = ([n for n in range(len(self.nodes)) if distance[n] % 2 == side] for side in (0, 1))
        return tuple(a), tuple(b)

    @functools.cached_property
    def layers(self) -> tuple[tuple[int, ...], ...]:
        """Nodes by distance in a backward breadth-first search from the losses (cyclic projections).

        A loss on side B counts as one step away, so that a layer is part of a side: no two nodes share an edge.
        So does what no loss depends on; on side A it counts as a loss.
        """
        side_of = {n: side for side in (0, 1) for n in self.sides[side]}
        distance = {n: side for n, side in side_of.items() if self.nodes[n].kind == "loss"}
        queue = deque(distance)
        while queue:
            number = queue.popleft()
            for producer in self.nodes[number].producers():
                if producer not in distance:
                    distance[producer] = distance[number] + 1
                    queue.append(producer)
        distance = side_of | distance
        return tuple(tuple(sorted(n for n in distance if distance[n] == far)) for far in sorted({*distance.values()}))

    def values(self, traced: Sequence[Array], constants: Sequence[Array], indices: Sequence[Array]) -> dict[int, Array]:
        """Values of the nodes by number from those of the forward pass."""
        values = dict(zip(self.numbers("constant"), constants, strict=True))
        for i, node in enumerate(self.nodes):
            if node.origins:
                members = [traced[origin] for origin in node.origins]
                values[i] = members[0] if len(members) == 1 else jnp.stack(members)
        for i in self.identities:
            values[i] = self.nodes[i].evaluate(self.nodes[i].read(values, indices))
        return values


def distances(graph: Graph, cut: Collection[int] = ()) -> dict[int, int]:
    """Find how far every node is from the first loss of its connected component, or from its last node.

    Even and odd distances two-colour a component, unless it holds an odd cycle: then both ends of some edge are
    equally far. An edge out of a producer in ``cut`` is taken only where there is no other way on.
    """
    distance: dict[int, int] = {}
    for start in [*graph.numbers("loss"), *reversed(range(len(graph.nodes)))]:
        queue, later = deque([(start, 0)]), deque[tuple[int, int]]()
        while queue or later:
            number, far = (queue or later).popleft()
            if number not in distance:
                distance[number] = far
                for neighbour, producer in graph.neighbours[number]:
                    (later if producer in cut else queue).append((neighbour, far + 1))
    return distance
