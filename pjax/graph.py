"""A constraint graph to look at: traced, printed, summed up, drawn."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any

import jax

from pjax import draw
from pjax_core import graph, rules
from pjax_core.bilinear import Dots
from pjax_core.graph import Node
from pjax_core.trace import Params, trace_with_arrays


def trace(fun: Callable[[Params], Any], params: Params) -> "Graph":
    """Trace ``fun(params)`` into its constraint graph.

    Args:
        fun: plain JAX that returns losses (``nn.cross_entropy``, ``nn.margin_loss``), one or a pytree.
        params: pytree of floating-point arrays.

    Raises:
        TypeError: an operation without a rule, a parameter that is not floating-point, an output that is
            not a loss.
    """
    return Graph.of(trace_with_arrays(fun, params).graph)


class Graph(graph.Graph):
    """The engine's graph with what shows it: ``print(graph)``, ``graph.summary()``, ``graph.draw("graph.svg")``."""

    @classmethod
    def of(cls, found: graph.Graph) -> "Graph":
        """Show a graph of the engine."""
        return cls(found.nodes, found.identities, found.proven)

    @functools.cached_property
    def edges(self) -> int:
        """Number of edges of the paper's graph of scalar nodes: the memory of keeping a copy on every one."""
        return sum(map(_scalar_edges, self.nodes))

    def draw(self, path: str | PathLike[str], *, copies: bool = True) -> None:
        """Write an SVG picture of the graph (paper, Figure 7) to ``path``; ``copies=False`` leaves copies out.

        Raises:
            ValueError: ``path`` does not end in ``.svg``.
            FileNotFoundError: its folder does not exist.
        """
        draw.write(self, path, copies=copies)

    def _repr_svg_(self) -> str:
        """Show the picture in notebooks."""
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

    def summary(self) -> str:
        """Describe the graph: nodes by kind, sides, inserted identities, layers, and what edges would cost."""
        lines = [f"{len(self.nodes)} nodes: {_counted(node.kind for node in self.nodes)}"]
        for letter, side in zip("AB", self.sides, strict=True):
            lines.append(f"side {letter}, {len(side)} nodes: {_counted(self.nodes[n].name for n in side)}")
        how = "proven fewest" if self.proven else "fewest found within the search limit"
        lines.append(f"identities inserted on odd cycles (Theorem 4): {len(self.identities)}, {how}")
        names = [f"{node.name} (node {n})" for n, node in enumerate(self.nodes)]
        for n in self.identities:
            readers = dict.fromkeys(names[reader] for reader, _ in self.consumers[n])
            lines.append(f"  {names[n]} between {names[self.nodes[n].producers()[0]]} and {', '.join(readers)}")
        lines.append(
            f"{len(self.layers)} layers (cyclic projections), of {', '.join(str(len(x)) for x in self.layers)} nodes"
        )
        sizes = [math.prod(node.shape) for node in self.nodes]
        parameters = sum(sizes[n] for n in self.numbers("parameter"))
        lines.append(f"scalar nodes: {sum(sizes):,}, of which parameters: {parameters:,}")
        lines.append(f"scalar edges, which representation 'edges' keeps: {self.edges:,}")
        return "\n".join(lines)


def _scalar_edges(node: Node) -> int:
    """Count the scalar edges into a node: a dot product has its own copies of what it reads."""
    shapes = [jax.ShapeDtypeStruct(o.shape, o.dtype) for o in node.operands]
    if node.primitive in rules.bilinear_rules:
        shapes = jax.eval_shape(Dots(node).expand, *shapes)
    return sum(copies.size for copies in shapes)


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in Counter(names).items())
