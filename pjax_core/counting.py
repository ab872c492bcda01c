"""How many edges every scalar node has: the weights of a consensus, and the outputs that are nodes at all.

Scalar nodes whose output nobody reads are not in the paper's graph. Here they share an array with others: a node's
*living* outputs are those with a reader, and the copies that the rest keep of what they read are in no mean.
"""

import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pjax_core import rules
from pjax_core.bilinear import Dots
from pjax_core.graph import Graph, Node, Operand

Masks = dict[int, Array | None]  # of constraints, by number: 1 where an output lives; None where all do
Counts = dict[int, tuple[dict[int, Array | int], ...]]  # of a reader, by operand: edges from a producer's elements


def count_edges(graph: Graph, indices: Sequence[Array]) -> tuple[Masks, Counts]:
    """Count the edges from every element of a parameter or constraint to every operand that reads it.

    Raises:
        TypeError: hidden values of a recurrence are indexed by an array.
    """
    if graph.indexes_constraints:
        if graph.recurrent:
            raise TypeError(
                "hidden values of a recurrence are indexed by an array that is not known while tracing, so the edges "
                "cannot be counted; slice with constants, or index parameters instead"
            )
        masks = _prune(graph, _all_living(graph), indices)
        return {**masks}, _counts(graph, masks, indices, indexed=True)
    masks, known = _known(graph, tuple(jax.ShapeDtypeStruct(i.shape, i.dtype) for i in indices))
    counts: Counts = {}
    for n, operands in known.items():
        # Behind an index array edges are counted when the graph runs; the others are known.
        later = [_moving(graph, o.indexed) for o in graph.nodes[n].operands]
        counts[n] = tuple(
            {**count, **_count(graph, n, i, masks.get(n), indices, later[i])} if later[i] else count
            for i, count in enumerate(operands)
        )
    return masks, counts


def living(node: Node, copies: Array, alive: Array | None) -> Array:
    """Zero the edges of unread outputs; a rule that is neither element-wise nor over axes keeps all."""
    params = dict(node.params)
    if alive is None or (copies.shape != node.shape and "axes" not in params):
        return copies
    return copies * (alive if copies.shape == node.shape else jnp.expand_dims(alive, params["axes"]))


def _count(
    graph: Graph, reader: int, position: int, alive: Array | None, indices: Sequence[Array], producers: Collection[int]
) -> dict[int, Array | int]:
    """Count the edges from some producers to an operand."""
    node = graph.nodes[reader]
    operand = node.operands[position]
    if node.primitive in rules.bilinear_rules:
        copies = Dots(node).total(living(node, jnp.ones(node.shape, node.dtype), alive))[position]
        copies = jnp.broadcast_to(copies, operand.shape)
    else:
        copies = living(node, jnp.ones(operand.shape, operand.dtype), alive)
    sums = operand.gather(copies, [graph.nodes[p].aval for p in operand.producers], indices)
    return {p: count for p, count in zip(operand.producers, sums, strict=True) if p in producers}


def _moving(graph: Graph, producers: Iterable[int]) -> list[int]:
    return [p for p in producers if graph.nodes[p].kind != "constant"]


def _counts(graph: Graph, masks: dict[int, Array], indices: Sequence[Array], *, indexed: bool) -> Counts:
    """Count the edges to every operand, with or without those from producers that are indexed there."""

    def counted(operand: Operand) -> list[int]:
        return [p for p in _moving(graph, operand.producers) if indexed or p not in operand.indexed]

    return {
        n: tuple(_count(graph, n, i, masks.get(n), indices, counted(o)) for i, o in enumerate(graph.nodes[n].operands))
        for n in graph.numbers("constraint", "loss")
    }


def _all_living(graph: Graph) -> dict[int, Array]:
    nodes = {n: graph.nodes[n] for n in graph.numbers("constraint", "loss")}
    return {n: jnp.ones(node.shape, node.dtype) for n, node in nodes.items()}


def _prune(graph: Graph, masks: dict[int, Array], indices: Sequence[Array]) -> dict[int, Array]:
    """Take out the outputs that no living output reads, readers before what they read: once, but for recurrences."""
    masks = dict(masks)
    for n in reversed(graph.numbers("constraint")):
        readers = [_count(graph, r, i, masks.get(r), indices, [n])[n] for r, i in graph.consumers[n]]
        masks[n] = jnp.sign(sum(readers, jnp.zeros_like(masks[n])))
    return masks


@functools.lru_cache(maxsize=64)
def _known(graph: Graph, indices: tuple[jax.ShapeDtypeStruct, ...]) -> tuple[Masks, Counts]:
    """Count now, as if index arrays were zero, so that compiled code finds constants.

    Both have length 1 along axes where they repeat; a count is a number where all are equal.
    """

    def prune(carry: tuple[dict[int, Array], Array], zeros: Sequence[Array]) -> tuple[dict[int, Array], Array]:
        masks = _prune(graph, carry[0], zeros)
        return masks, jnp.any(jnp.stack([jnp.any(masks[n] != carry[0][n]) for n in masks]))

    def count(zeros: Sequence[Array]) -> tuple[dict[int, Array], Counts]:
        masks = _all_living(graph)
        if graph.recurrent:
            start = masks, jnp.array(True)
            masks = jax.lax.while_loop(lambda carry: carry[1], lambda carry: prune(carry, zeros), start)[0]
        else:
            masks = _prune(graph, masks, zeros)
        return masks, _counts(graph, masks, zeros, indexed=False)

    def repeats(zeros: Sequence[Array]) -> Any:
        return jax.tree.map(lambda c: [jnp.all(c == _first(c, [i])) for i in range(c.ndim)], count(zeros))

    def thin(zeros: Sequence[Array]) -> Any:
        return jax.tree.map(lambda c, axes: jnp.rint(_first(c, np.flatnonzero(axes).tolist())), count(zeros), repeated)

    # Twice, because what is cut away the second time is never made: it may be larger than the network.
    zeros = [np.zeros(i.shape, i.dtype) for i in indices]
    repeated = _evaluate(repeats, zeros)
    masks, counts = _evaluate(thin, zeros)
    with jax.ensure_compile_time_eval():
        masks = {n: None if np.all(mask) else jnp.asarray(mask) for n, mask in masks.items()}
        counts = jax.tree.map(lambda c: int(c.item()) if c.size == 1 else jnp.asarray(c), counts)
    return masks, counts


def _first(array: Array, axes: Sequence[int]) -> Array:
    """Cut an array to length 1 along axes."""
    return array[tuple(slice(1) if axis in axes else slice(None) for axis in range(array.ndim))]


def _evaluate(fun: Callable[..., Any], *arguments: Any) -> Any:
    """Compile and run a function of known arrays now, also inside an outer jit."""
    compiled = jax.jit(fun).lower(*arguments).compile()
    with jax.ensure_compile_time_eval():
        return jax.device_get(compiled(*arguments))
