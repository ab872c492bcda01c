"""Displacements: how far a projection moves, for targets whose distance is smaller than their values resolve.

The verbs here register a primitive with the engine, as those of ``pjax_core.rules`` do, and may tell its displacements.
A rule of displacements is

    displace(operands, distance, weight, operators, **params) -> (moves of the operands, what is left of the distance)

for the target ``f(operands) + distance``, with all digits of a small distance. What is left is ``None`` where it says
nothing of what the operands absorb, and of a loss, whose ``distance`` is ``None``. A primitive without one is displaced
by values, which have none of a distance that they do not resolve.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.extend.core import primitives as jax_primitives
from jax.typing import ArrayLike

from pjax_core import projections, rules
from pjax_core.operators import Operators
from pjax_core.rules import Bilinear, Operands, Rule

Moved = tuple[Operands, Array | None]
Displace = Callable[..., Moved]

displacement_rules: dict[Primitive, Displace] = {}


def defproj(prim: Primitive, rule: Rule, displace: Displace | None = None) -> None:
    """Register the projection of a constraint (signature: ``pjax_core.rules``), and perhaps its displacements.

    ``displace`` is as this module says; a :class:`pjax_core.rules.Linear` has its own.
    """
    rules.defproj(prim, rule)
    _tell(prim, rule, displace)


def defelementwise(prim: Primitive, rule: "Rule | Bilinear", displace: Displace | None = None) -> None:
    """Register a constraint on equal positions of its operands, as :func:`defproj`; smaller ones are copied to fit."""
    if displace and isinstance(rule, Bilinear):
        raise ValueError(f"primitive {prim}: a sum of products has its displacements already")
    rules.defelementwise(prim, rule)
    _tell(prim, rule, displace)


def defloss(prim: Primitive, rule: Rule, displace: Displace | None = None) -> None:
    """Register a target node: its rule projects the operands or applies the loss's proximal operator.

    ``target`` is ``None`` for it, as ``distance`` is for ``displace``, and what is left (see the module).
    """
    rules.defloss(prim, rule)
    _tell(prim, rule, displace)


def _tell(prim: Primitive, rule: Any, displace: Displace | None) -> None:
    displace = displace or (rule.displace if isinstance(rule, rules.Linear) else None)
    if displace:
        displacement_rules[prim] = displace


def displace(
    prim: Primitive,
    params: Mapping[str, Any],
    operands: Operands,
    distance: Array | None,
    weight: ArrayLike,
    operators: Operators,
) -> Moved:
    """How far a constraint or loss moves its operands, and what is left of the distance; of a loss, there is none."""
    if prim in displacement_rules:
        return displacement_rules[prim](operands, distance, weight, operators, **params)
    target = None if distance is None else prim.bind(*operands, **params) + distance
    projected, output = rules.rule_of(prim)(operands, target, weight, operators, **params)
    moves = tuple(u - x for u, x in zip(projected, operands, strict=True))
    return moves, None if target is None or output is None else target - output


# Linear functions: their projections are made of displacements.

for _prim, _rule in rules.projection_rules.items():
    _tell(_prim, _rule, None)


# ReLU of a sum.


def _displace_sum_relu(operands: Operands, distance: Array, weight: ArrayLike, operators: Operators) -> Moved:
    total = sum(operands[1:], operands[0])
    target, way = jax.nn.relu(total) + distance, distance - jnp.minimum(total, 0)
    exact = operators.exact_sum_relu
    shift, on_slope = projections.shift_sum_relu(len(operands), total, target, way, weight, exact)
    # On the slope the output is the sum, and follows but for the shift over the weight; from below zero it is zero.
    left = jnp.where(on_slope, shift / weight, distance + jax.nn.relu(total))
    return (shift,) * len(operands), left


displacement_rules[rules.sum_relu_p] = _displace_sum_relu


# Maximum: its projection where the largest entry is zero, wherever that is.


def _from_top(prim: Primitive, top: Callable[..., Array]) -> Displace:
    def displace(operands: Operands, distance: Array, weight: ArrayLike, operators: Operators, **params: Any) -> Moved:
        below = tuple(x - top(*operands, **params) for x in operands)
        projected, output = rules.rule_of(prim)(below, distance, weight, operators, **params)
        assert output is not None
        return tuple(u - x for u, x in zip(projected, below, strict=True)), distance - output

    return displace


displacement_rules[jax_primitives.reduce_max_p] = _from_top(
    jax_primitives.reduce_max_p, lambda x, *, axes, **_: jnp.expand_dims(jnp.max(x, axes), axes)
)
displacement_rules[jax_primitives.max_p] = _from_top(jax_primitives.max_p, jnp.maximum)


# Steps.


def _of_step(prim: Primitive, gap: Callable[..., ArrayLike]) -> Displace:
    """Make the rule of a step: a way that the target asks for. ``gap(value, **params)`` is from a level to the next.

    With a margin projections also move inputs that no target asks to move. Here they stay, as do those whose target is
    within half of the way to the next level.
    """

    def displace(operands: Operands, distance: Array, weight: ArrayLike, operators: Operators, **params: Any) -> Moved:
        (x,) = operands
        value = prim.bind(x, **params)
        ((u,), _) = rules.rule_of(prim)(operands, value + distance, weight, operators, **params)
        least = gap(value, **params) if operators.step_margin else 0
        return (jnp.where(((u - x) * distance > 0) & (2 * jnp.abs(distance) > least), u - x, 0),), None

    return displace


displacement_rules[rules.quantize_p] = _of_step(rules.quantize_p, lambda _, **params: projections.level_gap(**params))
displacement_rules[jax_primitives.sign_p] = _of_step(jax_primitives.sign_p, lambda value: jnp.where(value == 0, 1, 2))


# Losses: their proximal operators are made of displacements.


def _of_loss(apply: Callable[..., Array], operands: Operands, _: None, __: ArrayLike, operators: Operators) -> Moved:
    x, labels = operands
    return (apply(x, labels, operators), jnp.zeros_like(labels)), None


displacement_rules[rules.cross_entropy_p] = functools.partial(_of_loss, projections.displace_cross_entropy)
displacement_rules[rules.squared_error_p] = functools.partial(_of_loss, projections.displace_squared_error)
