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
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Primitive

from pjax_core import rules

Kind = Literal["parameter", "constant", "constraint", "loss"]


@dataclasses.dataclass(frozen=True)
class Copy:
    """One copy equation. An input is ``("producer" | "copy" | "index", position)``.

    ``producer``: position in the operand's producers. ``copy``: position among the results of the
    operand's earlier copies. ``index``: position among the trace's index arrays.
    """

    primitive: Primitive
    params: tuple[tuple[str, Any], ...]
    inputs: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class Operand:
    """What a constraint reads: copies of the values of ``producers`` (node numbers, none twice).

    Without ``copies`` it is the value of its one producer itself.
    """

    producers: tuple[int, ...]
    copies: tuple[Copy, ...]
    shape: tuple[int, ...]
    dtype: np.dtype

    def spread(self, values: Sequence[Array], indices: Sequence[Array]) -> Array:
        """Apply S: from the producers' values, in order, to the operand."""
        results: list[Array] = []
        sources = {"producer": values, "copy": results, "index": indices}
        for copy in self.copies:
            inputs = [sources[kind][position] for kind, position in copy.inputs]
            out = copy.primitive.bind(*inputs, **dict(copy.params))
            results.extend(out if copy.primitive.multiple_results else [out])
        return results[-1] if self.copies else values[0]

    def gather(self, copies: Array, values: Sequence[jax.ShapeDtypeStruct], indices: Sequence[Array]) -> list[Array]:
        """Apply the transpose of S: the sums of an operand's copies, in the producers' shapes."""
        if not self.copies:
            return [copies]
        transpose = jax.linear_transpose(lambda *xs: self.spread(xs, indices), *values)
        return list(transpose(copies))

    @property
    def reads_indices(self) -> bool:
        """Whether S depends on index arrays, which are known only when the graph runs."""
        return any(kind == "index" for copy in self.copies for kind, _ in copy.inputs)


@dataclasses.dataclass(frozen=True)
class Node:
    """A batch of scalar nodes with one array as value (a loss's value is the loss per sample)."""

    kind: Kind
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    primitive: Primitive | None = None
    params: tuple[tuple[str, Any], ...] = ()
    operands: tuple[Operand, ...] = ()

    @property
    def aval(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the value."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype)

    def producers(self) -> list[int]:
        """Nodes that this one reads, each once, in order of appearance."""
        return list(dict.fromkeys(p for operand in self.operands for p in operand.producers))

    def evaluate(self, operands: Sequence[Array]) -> Array:
        """Value of the primitive, ``f(operands)``."""
        assert self.primitive is not None
        return self.primitive.bind(*operands, **dict(self.params))


@dataclasses.dataclass(frozen=True)
class Graph:
    """Nodes in an order in which each comes after the nodes that it reads.

    Hashable and free of arrays: two traces of the same computation compare equal, so a compiled solver
    is found again.
    """

    nodes: tuple[Node, ...]

    def numbers(self, *kinds: Kind) -> list[int]:
        """Numbers of the nodes of these kinds, in order."""
        return [i for i, node in enumerate(self.nodes) if node.kind in kinds]

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
    def sides(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The bipartition (Theorem 2): side A, which holds the first loss, and side B."""
        colour, conflicts = _two_colour(self)
        assert not conflicts, "a traced graph is bipartite"
        return tuple(sorted(n for n, c in colour.items() if c == 0)), tuple(
            sorted(n for n, c in colour.items() if c == 1)
        )

    @functools.cached_property
    def layers(self) -> tuple[tuple[int, ...], ...]:
        """Nodes by distance in a backward breadth-first search from the losses (cyclic projections).

        A loss on side B counts as one step away, so that a layer is part of a side: no two nodes share an edge.
        """
        distance = {n: side for side in (0, 1) for n in self.sides[side] if self.nodes[n].kind == "loss"}
        queue = deque(distance)
        while queue:
            number = queue.popleft()
            for producer in self.nodes[number].producers():
                if producer not in distance:
                    distance[producer] = distance[number] + 1
                    queue.append(producer)
        depth = max(distance.values(), default=-1) + 1
        return tuple(tuple(sorted(n for n, d in distance.items() if d == layer)) for layer in range(depth))

    def operands_of(self, number: int, values: Mapping[int, Array], indices: Sequence[Array]) -> tuple[Array, ...]:
        """Operands of a node from the values of its producers."""
        return tuple(
            operand.spread([values[p] for p in operand.producers], indices) for operand in self.nodes[number].operands
        )

    def forward(
        self, parameters: Sequence[Array], constants: Sequence[Array], indices: Sequence[Array]
    ) -> tuple[dict[int, Array], Array]:
        """Evaluate every node. Returns the values by node number and the mean loss."""
        values: dict[int, Array] = {}
        leaves = {"parameter": iter(parameters), "constant": iter(constants)}
        losses = []
        for number, node in enumerate(self.nodes):
            if node.kind in leaves:
                values[number] = next(leaves[node.kind])
            else:
                out = node.evaluate(self.operands_of(number, values, indices))
                if node.kind == "loss":
                    losses.append(out.ravel())
                else:
                    values[number] = out
        return values, jnp.mean(jnp.concatenate(losses))

    def draw(self, path: str | PathLike[str], *, copies: bool = True) -> None:
        """Write an SVG picture of the graph (paper, Figure 7) to ``path``; ``copies=False`` leaves copies out.

        Raises:
            ValueError: ``path`` does not end in ``.svg``.
            FileNotFoundError: its folder does not exist.
        """
        from pjax_core import draw  # draw imports this module

        draw.write(self, path, copies=copies)

    def _repr_svg_(self) -> str:
        """Show the picture in notebooks."""
        from pjax_core import draw

        return draw.svg(self)

    def __str__(self) -> str:
        """Draw a table: number, side, kind, name, shape and the nodes that it reads."""
        side_a = set(self.sides[0])
        rows = [("node", "side", "kind", "name", "shape", "reads")]
        for i, node in enumerate(self.nodes):
            reads = " ".join(f"{'+'.join(map(str, o.producers))}{'*' if o.copies else ''}" for o in node.operands)
            shape = f"{node.dtype.name}[{','.join(map(str, node.shape))}]"
            rows.append((str(i), "A" if i in side_a else "B", node.kind, node.name, shape, reads))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, "(* through copies)"])


def _two_colour(graph: Graph) -> tuple[dict[int, int], list[tuple[int, int]]]:
    """Colour by breadth-first search from the losses.

    Returns:
        The colour (0: the first loss's) of every node and the edges (producer, consumer) whose ends got
        the same one, which exist only when there is an odd cycle.
    """
    colour: dict[int, int] = {}
    for start in graph.numbers("loss"):
        if start in colour:
            continue
        colour[start] = 0
        queue = deque([start])
        while queue:
            number = queue.popleft()
            consumers = [consumer for consumer, _ in graph.consumers[number]]
            for neighbour in [*graph.nodes[number].producers(), *consumers]:
                if neighbour not in colour:
                    colour[neighbour] = 1 - colour[number]
                    queue.append(neighbour)
    conflicts = [
        (producer, number)
        for number, node in enumerate(graph.nodes)
        for producer in node.producers()
        if colour.get(producer) == colour.get(number)
    ]
    return colour, conflicts


def make_bipartite(graph: Graph) -> Graph:
    """Insert identities (Theorem 4) where edges close odd cycles of the breadth-first tree, one per producer.

    A heuristic: another tree can need fewer.
    """
    _, conflicts = _two_colour(graph)
    if not conflicts:
        return graph
    nodes: list[Node] = []
    renumbered: dict[int, int] = {}
    inserted: dict[int, int] = {}  # one identity per producer serves all its conflicts
    for number, node in enumerate(graph.nodes):
        replaced = dict(renumbered)
        for producer in node.producers():
            if (producer, number) in conflicts and producer in inserted:
                replaced[producer] = inserted[producer]
            elif (producer, number) in conflicts:
                source = graph.nodes[producer]
                operand = Operand((renumbered[producer],), (), source.shape, source.dtype)
                replaced[producer] = inserted[producer] = len(nodes)
                name = f"identity({source.name})"
                nodes.append(
                    Node(
                        "constraint",
                        name,
                        source.shape,
                        source.dtype,
                        rules.identity_p,
                        (),
                        (operand,),
                    )
                )
        operands = tuple(
            dataclasses.replace(o, producers=tuple(replaced[p] for p in o.producers)) for o in node.operands
        )
        renumbered[number] = len(nodes)
        nodes.append(dataclasses.replace(node, operands=operands))
    return Graph(tuple(nodes))
