"""Equal nodes as one: same-shaped, independent nodes of one set of a cycle become one node with a leading axis.

A deep network of equal layers then takes as many operations a step as a shallow one. Nothing else changes: what
others read of a member is a slice of the stack, and what members read is stacked by copies, so every method gives
the same iterates.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array, lax
from jax.extend.core import Var

from pjax_core import rules
from pjax_core.graph import Copy, Graph, Node, Operand
from pjax_core.jaxprs import called

Source = tuple[str, int, jax.ShapeDtypeStruct]  # as a copy's input, with its shape

LIMIT = 2**12  # elements of an output below which an operation costs more than its work


def stack(graph: Graph, sets: Sequence[Sequence[int]], limit: int = LIMIT) -> Graph:
    """Stack nodes of the same set with equal primitives, shapes and copies, and the parameters that only they read.

    Args:
        graph: a bipartite graph.
        sets: a method's cycle; members of different sets project at different times and stay apart.
        limit: the largest member's size that is worth it.
    """
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
        for producers in _producers(graph, members):
            readers = {tuple(graph.consumers[p]) for p in producers}
            if all(graph.nodes[p].kind == "parameter" for p in producers) and all(len(r) == 1 for r in readers):
                groups.append(producers)
    return _Stacker(graph, groups).graph if groups else graph


def _producers(graph: Graph, members: Sequence[int]) -> list[list[int]]:
    """What the members read, by place, in their order."""
    rows = [[p for o in graph.nodes[n].operands for p in o.producers] for n in members]
    return [list(column) for column in zip(*rows, strict=True)]


def _stackable(graph: Graph, members: Sequence[int]) -> bool:
    """Whether members share no producer and their copies and primitive batch to copies and the same primitive."""
    read = Counter(p for n in members for p in graph.nodes[n].producers() if graph.nodes[p].kind != "constant")
    if not read or max(read.values()) > 1:
        return False
    try:
        _batched(graph.nodes[members[0]], len(members))
        _Stacker(graph, [list(members)])
    except _NotCopies:
        return False
    return True


class _NotCopies(Exception):
    """Batching makes something else of a copy or a primitive."""


def _batched(node: Node, count: int) -> dict[str, Any]:
    """Parameters of the primitive over a leading axis."""
    avals = [jax.ShapeDtypeStruct((count, *o.shape), o.dtype) for o in node.operands]
    jaxpr = jax.make_jaxpr(jax.vmap(lambda *xs: node.evaluate(xs)))(*avals).jaxpr
    if len(jaxpr.eqns) != 1 or jaxpr.eqns[0].primitive is not node.primitive or jaxpr.eqns[0].invars != jaxpr.invars:
        raise _NotCopies
    return jaxpr.eqns[0].params


class _Stacker:
    """Builds the graph in which every group is one node, at the place of its first member."""

    def __init__(self, graph: Graph, groups: Sequence[Sequence[int]]) -> None:
        self._graph = graph
        group_of = {n: members for members in groups for n in members}
        kept = [n for n in range(len(graph.nodes)) if n not in group_of or group_of[n][0] == n]
        number = {n: i for i, n in enumerate(kept)}
        self._place = {
            n: (number[group_of.get(n, [n])[0]], group_of.get(n, [n]).index(n)) for n in range(len(graph.nodes))
        }
        self._size = {number[members[0]]: len(members) for members in groups}
        nodes = [self._node(group_of.get(n, [n])) for n in kept]
        identities = tuple(number[n] for n in graph.identities)
        self.graph = Graph(tuple(nodes), identities, graph.proven)

    def _node(self, members: Sequence[int]) -> Node:
        first = self._graph.nodes[members[0]]
        columns = zip(*(self._graph.nodes[n].operands for n in members), strict=True)
        operands = tuple(self._operand(column) for column in columns)
        if len(members) == 1:
            return Node(
                first.kind, first.name, first.shape, first.dtype, first.primitive, first.params, operands, first.origins
            )
        origins = tuple(o for n in members for o in self._graph.nodes[n].origins)
        shape = (len(members), *first.shape)
        name = f"{len(members)} x {first.name}"
        if first.kind == "parameter":
            return Node("parameter", name, shape, first.dtype, origins=origins)
        params = tuple(sorted(_batched(first, len(members)).items()))
        return Node(first.kind, name, shape, first.dtype, first.primitive, params, operands, origins)

    def _operand(self, operands: Sequence[Operand]) -> Operand:
        """One operand of the stack of nodes that have these."""
        program, first, count = _Program(), operands[0], len(operands)
        sources = []
        for column in zip(*(o.producers for o in operands), strict=True):
            sources.append(self._gather(program, column, lead=count > 1))
        if first.copies:

            def spread(*values: Array) -> Array:
                return first.spread(values, None)

            if count > 1 and any(copy.indexed for copy in first.copies):
                raise _NotCopies
            if count > 1:
                (source,) = program.add(jax.vmap(spread), *sources)
            else:
                source = program.extend(first.copies, sources, first)
        else:
            (source,) = sources
        shape = (count, *first.shape) if count > 1 else first.shape
        return program.finish(source, shape, first.dtype)

    def _gather(self, program: "_Program", producers: Sequence[int], *, lead: bool) -> Source:
        """Values of the members' producers one after the other: runs of a stack are slices of it."""
        pieces: list[Source] = []
        runs: list[list[int]] = []
        for p in producers:
            stack, index = self._place[p]
            follows = runs and stack in self._size and self._place[runs[-1][-1]] == (stack, index - 1)
            if follows:
                runs[-1].append(p)
            else:
                runs.append([p])
        for run in runs:
            stack, start = self._place[run[0]]
            node = self._graph.nodes[run[0]]
            if stack not in self._size:
                source = program.producer(stack, jax.ShapeDtypeStruct(node.shape, node.dtype))
                if lead:
                    (source,) = program.add(lambda a: lax.expand_dims(a, (0,)), source)
            else:
                whole = jax.ShapeDtypeStruct((self._size[stack], *node.shape), node.dtype)
                source = program.producer(stack, whole)
                if len(run) < self._size[stack] or not lead:
                    (source,) = program.add(lambda a, s=start, r=run: lax.slice_in_dim(a, s, s + len(r)), source)
                if not lead:
                    (source,) = program.add(lambda a: lax.squeeze(a, (0,)), source)
            pieces.append(source)
        if len(pieces) == 1:
            return pieces[0]
        return program.add(lambda *xs: lax.concatenate(xs, 0), *pieces)[0]


class _Program:
    """The copies of one operand."""

    def __init__(self) -> None:
        self._producers: list[int] = []
        self._copies: list[Copy] = []
        self._results = 0

    def producer(self, number: int, aval: jax.ShapeDtypeStruct) -> Source:
        if number not in self._producers:
            self._producers.append(number)
        return "producer", self._producers.index(number), aval

    def add(self, fun: Callable[..., Any], *sources: Source) -> list[Source]:
        """Append the copies that a function makes of sources."""
        jaxpr = jax.make_jaxpr(fun)(*(aval for _, _, aval in sources)).jaxpr
        return self._run(jaxpr, sources)

    def _run(self, jaxpr: Any, sources: Sequence[Source]) -> list[Source]:
        env: dict[Any, Source] = dict(zip(jaxpr.invars, sources, strict=True))
        for eqn in jaxpr.eqns:
            body = called(eqn)
            if body:
                outputs = self._run(body.jaxpr, [env[atom] for atom in eqn.invars])
            elif rules.copy_rules.get(eqn.primitive, ()) is None and all(isinstance(a, Var) for a in eqn.invars):
                inputs = tuple(env[atom][:2] for atom in eqn.invars)
                self._copies.append(Copy(eqn.primitive, tuple(sorted(eqn.params.items())), inputs, len(eqn.outvars)))
                outputs = [
                    ("copy", self._results + i, jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype))
                    for i, var in enumerate(eqn.outvars)
                ]
                self._results += len(outputs)
            else:
                raise _NotCopies
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [env[atom] for atom in jaxpr.outvars]

    def extend(self, copies: Sequence[Copy], sources: Sequence[Source], operand: Operand) -> Source:
        """Append copies as they are; their producers are the sources."""
        start = self._results
        for copy in copies:
            inputs = tuple(
                sources[i][:2] if kind == "producer" else (kind, i + start * (kind == "copy"))
                for kind, i in copy.inputs
            )
            self._copies.append(Copy(copy.primitive, copy.params, inputs, copy.results, copy.shape))
            self._results += copy.results
        return "copy", self._results - 1, jax.ShapeDtypeStruct(operand.shape, operand.dtype)

    def finish(self, source: Source, shape: tuple[int, ...], dtype: Any) -> Operand:
        return Operand(tuple(self._producers), tuple(self._copies), shape, dtype)
