"""Measures of an iterate, taken once after the last step."""

import copy
import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from pjax_core.problem import Problem, Report, State


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Diagnostics:
    """How far an iterate is from feasible.

    Distances are between the nodes' consensus values, one number per scalar node (where copies of a value
    differ, between their means): zero where the distance between the edges is zero.

    Attributes:
        residual: how far one more step moves; zero at a fixed point.
        gap: ``|P_A z - P_B z|``, the distance between the sides (cyclic projections: the longest way to a layer).
        constraint_violation: largest ``|f(u) - y|`` of a constraint, in the constraint's own units.
        target_displacement: root mean square, by constraint (``"number:name"``, as ``pjax.trace`` prints it), of how
            far its target has moved from its value in the forward pass; where it vanishes a layer learns nothing.
        roots_at_bracket: share of dot products whose root lies at the ends of (-1, 1) or outside, where Theorem 7
            has no root or an unguarded Newton iteration lost it.
        folded_coefficient: largest coefficient that a window of history folds into the next-oldest slot in one more
            step; 0 without history.
    """

    residual: Array
    gap: Array
    constraint_violation: Array
    target_displacement: dict[str, Array]
    roots_at_bracket: Array
    folded_coefficient: Array


def diagnose(problem: Problem, z: State, names: Mapping[int, str]) -> Diagnostics:
    """Measure an iterate; ``names`` of nodes by origin."""
    observed = copy.copy(problem)
    observed.report = report = Report([], [])
    residual = problem.distance(problem.method.step(observed, z), z)
    values, zero = problem.consensus_values(z), jnp.zeros(())
    violation, displacement = zero, {}
    for n in problem.graph.numbers("constraint"):
        holder = problem.holders[n]
        error = jnp.abs(holder.node.evaluate(holder.spread(values)) - values[n])
        violation = jnp.maximum(violation, jnp.max(holder.living(error), initial=0))
        moved = holder.living(jnp.square(values[n] - problem.values[n]))
        for origin, member in problem.members(n, moved).items():
            displacement[names[origin]] = jnp.sqrt(jnp.mean(member))
    lost = sum((jnp.sum(~(jnp.abs(r) < 1 - 4 * float(jnp.finfo(r.dtype).eps))) for r in report.roots), zero)
    share = lost / max(sum(root.size for root in report.roots), 1)
    folded = jnp.max(jnp.stack([zero, *report.folded]))
    return Diagnostics(residual, problem.method.gap(problem, z), violation, displacement, share, folded)
