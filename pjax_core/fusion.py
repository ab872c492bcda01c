"""Constraints merged into one after tracing, where the paper or a plain reading has one."""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.core import Tracer
from jax.extend.core import primitives as jax_primitives

from pjax_core import rules
from pjax_core.graph import Node, Operand


def _readers(nodes: list[Node], needed: set[int]) -> collections.Counter[int]:
    """Count the operands that read a node, among those of needed nodes."""
    return collections.Counter(p for i in needed for operand in nodes[i].operands for p in operand.producers)


def fuse_sum_relu(nodes: list[Node], needed: set[int]) -> None:
    """Merge additions into the ReLU that alone reads them (Theorem 6), in place."""
    readers = _readers(nodes, needed)

    def terms(operand: Operand) -> tuple[Operand, ...]:
        if operand.copies:
            return (operand,)
        node = nodes[operand.producers[0]]
        if node.primitive is not jax_primitives.add_p or readers[operand.producers[0]] != 1:
            return (operand,)
        return tuple(term for inner in node.operands for term in terms(inner))

    for i, node in enumerate(nodes):
        if node.primitive is rules.sum_relu_p:
            operands = tuple(term for operand in node.operands for term in terms(operand))
            nodes[i] = dataclasses.replace(node, operands=operands)


def fuse_mean(nodes: list[Node], needed: set[int], constants: Sequence[tuple[Any, int]]) -> None:
    """Merge a sum into the multiplication by 1 / size that alone reads it, uncopied, in place."""
    readers = _readers(nodes, needed)
    known = {number: array for array, number in constants if not isinstance(array, Tracer)}
    for i, node in enumerate(nodes):
        if node.primitive is not rules.scale_p:
            continue
        (total, *_), (factor, *_) = (operand.producers for operand in node.operands)
        alone = not node.operands[0].copies and readers[total] == 1
        if alone and nodes[total].primitive is jax_primitives.reduce_sum_p and factor in known:
            (summed,), params = nodes[total].operands, dict(nodes[total].params)
            size = math.prod(summed.shape[axis] for axis in params["axes"])
            if np.allclose(size * np.asarray(known[factor]), 1, rtol=1e-6, atol=0):
                axes = tuple(axis - len(summed.shape) for axis in params["axes"])
                nodes[i] = dataclasses.replace(
                    node, name="mean", primitive=rules.mean_p, params=(("axes", axes),), operands=(summed,)
                )
