"""How many edges every scalar node has: the weights of a consensus, and the outputs that are nodes at all.

Scalar nodes whose output nobody reads are not in the paper's graph. Here they share an array with others: a node's
*living* outputs are those with a reader, and the copies that the rest keep of what they read are in no mean.
"""

import functools
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pjax_core import rules
from pjax_core.bilinear import Dots
from pjax_core.graph import Graph, Node, Operand

Masks = Mapping[int, Array | None]  # of constraints, by number: 1 where an output lives; None where all do
Counts = dict[int, tuple[dict[int, Array | int], ...]]  # of a reader, by operand: edges from a producer's elements


def count_edges(graph: Graph, indices: Sequence[Array]) -> tuple[Masks, Counts]:
    """Count the edges from every element of a parameter or constraint to every operand that reads it."""
    if graph.indexes_constraints:
        masks = _living(graph, indices)
        return masks, _counts(graph, masks, indices, lambda operand: operand.producers)
    masks, known = _known(graph, tuple(jax.ShapeDtypeStruct(i.shape, i.dtype) for i in indices))
    # Behind an index array edges are counted when the graph runs; the others are known.
    later = _counts(graph, masks, indices, lambda operand: operand.indexed)
    return masks, {n: tuple(map(operator.or_, known[n], later[n])) for n in known}


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
    sums = operand.gather(copies, {p: graph.nodes[p].aval for p in operand.producers}, indices)
    return {p: sums[p] for p in operand.producers if p in producers}


def _counts(
    graph: Graph, masks: Masks, indices: Sequence[Array], chosen: Callable[[Operand], Collection[int]]
) -> Counts:
    """Count the edges to every operand from those of its producers that are chosen and no constants."""
    found: Counts = {}
    for n in graph.numbers("constraint", "loss"):
        moving = [[p for p in chosen(o) if graph.nodes[p].kind != "constant"] for o in graph.nodes[n].operands]
        found[n] = tuple(_count(graph, n, i, masks.get(n), indices, ps) if ps else {} for i, ps in enumerate(moving))
    return found


def _living(graph: Graph, indices: Sequence[Array]) -> dict[int, Array]:
    """Find the outputs of constraints and losses that a loss depends on: 1 where one lives, else 0."""
    nodes = {n: graph.nodes[n] for n in graph.numbers("constraint", "loss")}
    masks = {n: jnp.ones(node.shape, node.dtype) for n, node in nodes.items()}

    def prune(masks: dict[int, Array]) -> dict[int, Array]:
        """Take out the outputs that no living output reads, readers before what they read."""
        masks = dict(masks)
        for n in reversed(graph.numbers("constraint")):
            readers = [_count(graph, r, i, masks.get(r), indices, [n])[n] for r, i in graph.consumers[n]]
            masks[n] = jnp.sign(sum(readers, jnp.zeros_like(masks[n])))
        return masks

    def again(carry: tuple[dict[int, Array], Array]) -> tuple[dict[int, Array], Array]:
        masks = prune(carry[0])
        return masks, jnp.any(jnp.stack([jnp.any(masks[n] != carry[0][n]) for n in masks]))

    if not graph.recurrent:
        return prune(masks)
    # What a step takes out may be all that read something in the step before: until no more is found.
    return jax.lax.while_loop(lambda carry: carry[1], again, (masks, jnp.array(True)))[0]


@functools.lru_cache(maxsize=64)
def _known(graph: Graph, indices: tuple[jax.ShapeDtypeStruct, ...]) -> tuple[Masks, Counts]:
    """Count now, as if index arrays were zero, so that compiled code finds constants.

    Both have length 1 along axes where they repeat; a count is a number where all are equal.
    """

    def count(zeros: Sequence[Array]) -> tuple[dict[int, Array], Counts]:
        masks = _living(graph, zeros)
        return masks, _counts(graph, masks, zeros, lambda o: {*o.producers} - o.indexed)

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
