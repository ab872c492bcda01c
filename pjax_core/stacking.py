"""Equal nodes as one: same-shaped, independent nodes of one set of a cycle become one node with a leading axis.

A deep network of equal layers then takes as many operations a step as a shallow one. Nothing else changes: what
others read of a member is a slice of the stack, and what members read is stacked by copies, so every method gives
the same iterates.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array, lax

from pjax_core.graph import Graph, Node, Operand
from pjax_core.jaxprs import Value, aval
from pjax_core.trace import JaxprTracer

LIMIT = 2**12  # elements of an output below which an operation costs more than its work


def stack(graph: Graph, sets: Sequence[Sequence[int]], indices: Sequence[Array] = (), limit: int = LIMIT) -> Graph:
    """Stack nodes of the same set with equal primitives, shapes and copies, and the parameters that only they read.

    Args:
        graph: a bipartite graph.
        sets: a method's cycle; members of different sets project at different times and stay apart.
        indices: the graph's index arrays.
        limit: the largest member's size that is worth it.
    """
    if graph.indexes_constraints:  # edges of a stack that reads itself can be counted only beforehand
        return graph
    set_of = {n: i for i, numbers in enumerate(sets) for n in numbers}
    alike: dict[Any, list[int]] = {}
    for n, node in enumerate(graph.nodes):
        if node.kind == "constraint" and node.origins and math.prod(node.shape) <= limit:
            shapes = tuple(tuple(graph.nodes[p].shape for p in o.producers) for o in node.operands)
            operands = tuple((o.copies, o.shape, o.dtype) for o in node.operands)
            key = (set_of[n], node.primitive, node.params, node.shape, node.dtype, operands, shapes)
            alike.setdefault(key, []).append(n)
    groups = [members for members in alike.values() if len(members) > 1 and _stackable(graph, members)]
    for members in list(groups):
        for operands in zip(*(graph.nodes[n].operands for n in members), strict=True):
            for producers in zip(*(o.producers for o in operands), strict=True):
                once = {len(graph.consumers[p]) for p in producers} == {1}
                if once and all(graph.nodes[p].kind == "parameter" for p in producers):
                    groups.append(list(producers))
    return _Stacks(graph, groups, indices).graph() if groups else graph


def _stackable(graph: Graph, members: Sequence[int]) -> bool:
    """Whether members share no producer, and batching makes the same primitive and copies of theirs."""
    first, count = graph.nodes[members[0]], len(members)
    read = Counter(p for n in members for p in graph.nodes[n].producers() if graph.nodes[p].kind != "constant")
    if not read or max(read.values()) > 1 or any(o.indexed for o in first.operands):
        return False
    try:
        _batched(first, count)
        for operand in first.operands:
            avals = [graph.nodes[p].aval.update(shape=(count, *graph.nodes[p].shape)) for p in operand.producers]
            _traced(lambda xs, _, o=operand: _spread(o, xs), range(len(avals)), avals)
    except _NotCopies:
        return False
    return True


def _spread(operand: Operand, values: Sequence[Array]) -> Array:
    """Apply an operand's copies to stacks of its producers' values, in order."""
    return jax.vmap(lambda xs: operand.spread(xs, ()))(dict(zip(operand.producers, values, strict=True)))


class _NotCopies(Exception):
    """Batching makes something else of a copy or a primitive."""


def _batched(node: Node, count: int) -> dict[str, Any]:
    """Parameters of the primitive over a leading axis."""
    avals = [jax.ShapeDtypeStruct((count, *o.shape), o.dtype) for o in node.operands]
    jaxpr = jax.make_jaxpr(jax.vmap(lambda *xs: node.evaluate(xs)))(*avals).jaxpr
    if len(jaxpr.eqns) != 1 or jaxpr.eqns[0].primitive is not node.primitive or jaxpr.eqns[0].invars != jaxpr.invars:
        raise _NotCopies
    return jaxpr.eqns[0].params


def _traced(
    fun: Callable[..., Array], producers: Sequence[int], avals: Sequence[Any], indices: Sequence[Array] = ()
) -> Operand:
    """Make the operand that a function of producers' values and of index arrays is, if it is made of copies alone."""
    tracer, closed = JaxprTracer(), jax.make_jaxpr(fun)(avals, [jax.typeof(i) for i in indices])
    shapes = [aval(var) for var in closed.jaxpr.invars]
    values = [tracer.add(Node("parameter", "", x.shape, x.dtype), [], x) for x in shapes[: len(avals)]]
    tracer.indices = list(indices)
    try:
        taken = (Value(("index", i), x) for i, x in enumerate(shapes[len(avals) :]))
        (out,) = tracer.run(closed, [*values, *taken])
    except TypeError as error:  # a primitive without a rule
        raise _NotCopies from error
    if len(tracer.nodes) > len(avals) or len(tracer.indices) > len(indices):
        raise _NotCopies
    operand = Operand.of(out.source, out.array, tracer.copies)
    return dataclasses.replace(operand, producers=tuple(producers[i] for i in operand.producers))


class _Stacks:
    """Every group as one node, at the place of its first member."""

    def __init__(self, graph: Graph, groups: Sequence[Sequence[int]], indices: Sequence[Array]) -> None:
        self._graph, self._indices = graph, indices
        followers = {n for members in groups for n in members[1:]}
        kept = [n for n in range(len(graph.nodes)) if n not in followers]
        group_of = {members[0]: members for members in groups}
        self._members = [group_of.get(n, (n,)) for n in kept]  # by new number
        self._place = {n: (i, j) for i, members in enumerate(self._members) for j, n in enumerate(members)}

    def graph(self) -> Graph:
        identities = tuple(self._place[n][0] for n in self._graph.identities)
        return Graph(tuple(map(self._node, self._members)), identities, self._graph.proven)

    def _node(self, members: Sequence[int]) -> Node:
        nodes = [self._graph.nodes[n] for n in members]
        first, count = nodes[0], len(nodes)
        operands = tuple(map(self._operand, zip(*(node.operands for node in nodes), strict=True)))
        if count == 1:
            return dataclasses.replace(first, operands=operands)
        return dataclasses.replace(
            first,
            name=f"{count} x {first.name}",
            shape=(count, *first.shape),
            params=tuple(sorted(_batched(first, count).items())) if first.primitive else (),
            operands=operands,
            origins=tuple(origin for node in nodes for origin in node.origins),
        )

    def _operand(self, operands: Sequence[Operand]) -> Operand:
        """One operand of the stack of nodes that have these, or of a node in no stack."""
        first, columns = operands[0], list(zip(*(o.producers for o in operands), strict=True))
        numbers = list(dict.fromkeys(self._place[p][0] for column in columns for p in column))

        def fun(values: Sequence[Array], indices: Sequence[Array]) -> Array:
            value_of = dict(zip(numbers, values, strict=True))
            if len(operands) == 1:
                return first.spread({p: self._member(value_of, p) for p in first.producers}, indices)
            return _spread(first, [self._stacked(value_of, c) for c in columns])

        return _traced(fun, numbers, [self._aval(n) for n in numbers], self._indices)

    def _member(self, value_of: dict[int, Array], producer: int) -> Array:
        """Value of a producer, perhaps a member of a stack."""
        number, place = self._place[producer]
        value = value_of[number]
        return lax.index_in_dim(value, place, 0, False) if len(self._members[number]) > 1 else value

    def _aval(self, number: int) -> jax.ShapeDtypeStruct:
        members = self._members[number]
        value = self._graph.nodes[members[0]].aval
        return value if len(members) == 1 else value.update(shape=(len(members), *value.shape))

    def _stacked(self, value_of: dict[int, Array], producers: Sequence[int]) -> Array:
        """Values of producers along a leading axis; those that follow each other in a stack are one slice of it."""
        pieces: list[Array] = []
        places = [(*self._place[p], i) for i, p in enumerate(producers)]
        for (number, _), run in itertools.groupby(places, lambda place: (place[0], place[1] - place[2])):
            (_, start, _), *rest = run
            value, size = value_of[number], len(self._members[number])
            if size == 1:
                value = lax.expand_dims(value, (0,))
            elif len(rest) + 1 < size:
                value = lax.slice_in_dim(value, start, start + len(rest) + 1)
            pieces.append(value)
        return pieces[0] if len(pieces) == 1 else lax.concatenate(pieces, 0)
