"""Constraints merged into one after tracing, where the paper or a plain reading has one."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.core import Tracer
from jax.extend.core import Primitive
from jax.extend.core import primitives as jax_primitives

from pjax_core import rules
from pjax_core.graph import Node, Operand


def needed(nodes: Sequence[Node], outputs: Iterable[int]) -> set[int]:
    """Nodes that the outputs depend on, themselves among them."""
    found, stack = set[int](), list(outputs)
    while stack:
        number = stack.pop()
        if number not in found:
            found.add(number)
            stack += nodes[number].producers()
    return found


def fuse(nodes: list[Node], outputs: Sequence[int], constants: Mapping[int, Any]) -> None:
    """Merge in place additions into the ReLU that alone reads them (Theorem 6), a sum into its division by its size.

    What has been merged stays in the list, and nothing reads it.
    """
    read = (operand for number in needed(nodes, outputs) for operand in nodes[number].operands)
    readers = Counter(p for operand in read for p in operand.producers)

    def merged(operand: Operand, prim: Primitive) -> Node | None:
        """Find the node that an operand is, uncopied, if it is of this primitive and nobody else reads it."""
        node = nodes[operand.producers[0]]
        alone = not operand.copies and readers[operand.producers[0]] == 1
        return node if alone and node.primitive is prim else None

    def terms(operand: Operand) -> list[Operand]:
        addition = merged(operand, jax_primitives.add_p)
        return [term for inner in addition.operands for term in terms(inner)] if addition else [operand]

    for i, node in enumerate(nodes):
        if node.primitive is rules.sum_relu_p:
            operands = tuple(term for operand in node.operands for term in terms(operand))
            nodes[i] = dataclasses.replace(node, operands=operands)
        elif node.primitive is rules.scale_p:
            total = merged(node.operands[0], jax_primitives.reduce_sum_p)
            factor = constants.get(node.operands[1].producers[0])
            if total and factor is not None and not isinstance(factor, Tracer):
                (summed,) = total.operands
                axes = tuple(axis - len(summed.shape) for axis in dict(total.params)["axes"])
                size = math.prod(summed.shape[axis] for axis in axes)
                if np.allclose(size * np.asarray(factor), 1, rtol=1e-6, atol=0):
                    nodes[i] = dataclasses.replace(
                        node, name="mean", primitive=rules.mean_p, params=(("axes", axes),), operands=total.operands
                    )
