"""Displacements: one backward sweep of projections close to the forward pass, handed to a gradient transformation.

A projection step moves an early layer by less than float32 resolves: a node with a target that is D away from its value
moves by about ``D / (1 + q)``, and a consensus over m readers divides by m. A displacement ``D = target - value`` is
resolved whatever its size, so here every node hands displacements down, and factors (gains) make good for what
averaging and projecting absorb. All rules but those of steps compute them without the difference of two values that
may be near to each other, and nothing that is small crosses a step.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, get_args

import jax
import jax.numpy as jnp
from jax import Array

from pjax.rules import displace, displacement_rules
from pjax_core import projections, rules
from pjax_core.bilinear import Dots
from pjax_core.copies import Values, at_least_one
from pjax_core.counting import Counts, count_edges
from pjax_core.graph import Graph, Node
from pjax_core.operators import EXACT, Operators, require_count, require_number, require_operators
from pjax_core.trace import LossFn, Params, Program, trace_with_arrays

Gain = Literal["none", "fan_out", "node", "element"]
Arrivals = dict[int, Array]  # displacements that readers hand to a node, by its number


class Transform(Protocol):
    """What makes steps of displacements: an ``optax.GradientTransformation``, or anything with its two functions."""

    def init(self, params: Params) -> Any:
        """State for these parameters."""
        ...

    def update(self, updates: Params, state: Any, params: Params) -> tuple[Params, Any]:
        """Steps, which are added to the parameters, and the next state, from what stands in place of gradients."""
        ...


class Averaged(NamedTuple):
    """State of a method that averages parameters."""

    iterate: Params  # what moves
    updates: Array  # how many, so far
    transform: Any  # the transformation's state


class Displaced(NamedTuple):
    """What an update returns."""

    params: Params
    state: Any
    loss: Array  # mean loss of the forward pass that the update started from


@dataclasses.dataclass(frozen=True)
class Displacement:
    """One backward sweep per batch; the parameters' displacements go into a gradient transformation.

    From the losses to the parameters, every node is projected once, with the displacement that its readers have given
    it: ``argmin |u - x|^2 + (f(u) - (f(x) + D))^2``, and hands on how far that moves its operands. The transformation
    gets the parameters' displacements over ``-target_scale``.

    Attributes:
        transform: see :class:`Transform`; its attributes are fixed, so an instance is a key of the compilation cache.
        target_scale: factor of the losses' displacements. Small ones stay close to the forward pass; large ones see
            through flat regions.
        gain: ``"none"``: a displacement is the mean over the readers' copies (Eq. 10). ``"fan_out"``: their sum.
            ``"node"``: also what a node hands on is multiplied by the ratio of the sizes of what it was given and
            what it did not follow, a mean of ``1 + |f'|^2`` over its elements. ``"element"``: every element's own
            factor instead, where the rule has a displacement form.
        sweeps: how often a recurrence is swept; each goes one step back in time. What only later steps read moves
            from the second on.
        operators: which projections; ``consensus`` is always over edges, and there are no weights.
        average: in [0, 1); an update returns an average of the parameters over all updates, which keeps that share of
            itself in one (less in the first ones), and what moves stays in the state. 0: no average.
    """

    transform: Transform
    target_scale: float = 1e-3
    gain: Gain = "element"
    sweeps: int = 1
    operators: Operators = EXACT
    average: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no update can honour."""
        if not (callable(getattr(self.transform, "init", None)) and callable(getattr(self.transform, "update", None))):
            raise TypeError(f"transform={self.transform!r}: something with init and update, such as optax.adam(1e-3)")
        try:
            hash(self.transform)
        except TypeError as error:
            raise TypeError(f"transform={self.transform!r}: it has to be hashable, to be known again") from error
        require_number("target_scale", self.target_scale)
        if not 0 < self.target_scale < float("inf"):
            raise ValueError(f"target_scale={self.target_scale}: a positive, finite number")
        require_count("sweeps", self.sweeps)
        require_number("average", self.average)
        if not 0 <= self.average < 1:
            raise ValueError(f"average={self.average}: it lies in [0, 1); 0 for none")
        if self.gain not in get_args(Gain):
            raise ValueError(f"gain={self.gain!r}: choose one of {', '.join(get_args(Gain))}")
        require_operators(self.operators)
        if self.operators.weighted:
            raise ValueError("operators.weighted: displacements have no weights")

    def init(self, params: Params) -> Any:
        """The transformation's state for these parameters, with a copy of them where they are averaged."""
        state = self.transform.init(params)
        return Averaged(jax.tree.map(jnp.array, params), jnp.zeros((), jnp.int32), state) if self.average else state

    def update(self, loss_fn: LossFn, params: Params, state: Any) -> Displaced:
        """Improve the parameters on one batch.

        Args:
            loss_fn: ``loss_fn(params)`` returns the loss of every sample.
            params: pytree of floating-point arrays, given to :meth:`init` or from the update before. With an average
                it is only that: what moves is in the state, and hears of no change of these.
            state: from :meth:`init` or the update before.

        Raises:
            TypeError: see :func:`pjax.trace`; or the state is none of this method.
        """
        if isinstance(state, Averaged) != bool(self.average):
            raise TypeError(f"average={self.average}: the state is of a method with another average; call init anew")
        graph, program, *arrays = trace_with_arrays(loss_fn, state.iterate if self.average else params)
        return Displaced(*_solve(self, graph, program, params, state, arrays))


@functools.partial(jax.jit, static_argnames=("method", "graph", "program"))
def _solve(
    method: Displacement, graph: Graph, program: Program, params: Params, state: Any, arrays: Any
) -> tuple[Params, Any, Array]:
    captured, constants, indices = arrays
    average, before = params, state
    if method.average:
        params, state = before.iterate, before.transform
    leaves, treedef = jax.tree.flatten(params)
    values = graph.values(program.values(captured, leaves), constants, indices)
    loss = jnp.mean(jnp.concatenate([values[i].ravel() for i in graph.numbers("loss")]))
    found = displacements(method, graph, values, indices)
    moved = {graph.nodes[n].origins[0]: found.get(n, jnp.zeros_like(values[n])) for n in graph.numbers("parameter")}
    # In units of the targets, so that a transformation with a smallest size of its own, Adam's epsilon, sees the same.
    updates = [moved[origin] / -method.target_scale for origin in sorted(moved)]
    steps, state = method.transform.update(jax.tree.unflatten(treedef, updates), state, params)
    params = jax.tree.map(lambda p, step: (p + step).astype(p.dtype), params, steps)
    if not method.average:
        return params, state, loss
    kept = jnp.minimum(method.average, (1 + before.updates) / (10 + before.updates))
    average = jax.tree.map(lambda a, p: (kept * a + (1 - kept) * p).astype(p.dtype), average, params)
    return average, Averaged(params, before.updates + 1, state), loss


def displacements(method: Displacement, graph: Graph, values: Values, indices: Sequence[Array]) -> Arrivals:
    """Displacements of all nodes that a loss depends on, by number."""
    sweep = _Sweep(method, graph, values, indices)
    later: Arrivals = {}
    if graph.recurrent and method.sweeps > 1:
        # A sweep that hears of later steps may reach more nodes, until there are no more.
        while (shapes := jax.eval_shape(lambda known: sweep(known)[1], later)).keys() != later.keys():
            later = {n: jnp.zeros(x.shape, x.dtype) for n, x in shapes.items()}
        later = jax.lax.fori_loop(1, method.sweeps, lambda _, later: sweep(later)[1], later)
    return sweep(later)[0]


class _Sweep:
    """Nodes from the last to the first, each after its readers but for those in the next step of a recurrence."""

    def __init__(self, method: Displacement, graph: Graph, values: Values, indices: Sequence[Array]) -> None:
        self._method, self._graph, self._values, self._indices = method, graph, values, indices
        self._counts: Counts = {}
        if method.gain == "none":
            _, self._counts = count_edges(graph, indices)

    def __call__(self, later: Arrivals) -> tuple[Arrivals, Arrivals]:
        """Sweep once.

        Args:
            later: what readers in the next step of a recurrence gave in the sweep before.

        Returns:
            The displacements of all nodes, and the next ``later``.
        """
        given, before = dict(later), Arrivals()
        for n in reversed(self._graph.numbers("constraint", "loss")):
            node = self._graph.nodes[n]
            if node.kind == "constraint":
                if n not in given:
                    continue
                given[n] = self._consensus(n, given[n])
            for operand, sums in zip(node.operands, self._moves(n, given.get(n)), strict=True):
                for p, displacement in operand.gather(sums, self._values, self._indices).items():
                    if self._graph.nodes[p].kind != "constant":
                        into = given if p < n else before
                        into[p] = into[p] + displacement if p in into else displacement
        for n in self._graph.numbers("parameter"):
            if n in given:
                given[n] = self._consensus(n, given[n])
        return given, before

    def _edges(self, number: int) -> Array | int:
        return at_least_one(sum(self._counts[n][i][number] for n, i in self._graph.consumers[number]))

    def _consensus(self, number: int, total: Array) -> Array:
        """A node's displacement from the sum over its outgoing edges."""
        return total / self._edges(number) if self._method.gain == "none" else total

    def _moves(self, number: int, displacement: Array | None) -> Sequence[Array]:
        """By operand, the sums over the copies of its elements of how far they move."""
        node, operators = self._graph.nodes[number], self._method.operators
        assert node.primitive is not None
        if number in self._graph.identities:
            # The network has no such node: it stands between two that projections must not move at the same time.
            assert displacement is not None
            return [displacement]
        operands = node.read(self._values, self._indices)
        gain = self._method.gain
        if displacement is not None and node.primitive in rules.bilinear_rules:
            moves, left = _dots(node, operands, displacement, operators, gain == "element")
            if gain == "element":
                return moves
        else:
            moves, left = displace(node.primitive, dict(node.params), operands, displacement, 1, operators)
        if displacement is None:
            return [self._method.target_scale * move for move in moves]
        if left is None or gain in ("none", "fan_out"):
            return moves
        own = None
        if gain == "element" and node.primitive in displacement_rules:
            own = jnp.where(left == 0, 1, displacement / jnp.where(left == 0, 1, left))
            own = jnp.expand_dims(own, dict(node.params).get("axes", ()))  # what a reduction's operands have more
        total = jnp.sum(jnp.abs(left))
        mean = jnp.where(total > 0, jnp.sum(jnp.abs(displacement)) / total, 1)
        return [move * (own if own is not None and _fits(own, move) else mean) for move in moves]


def _fits(factor: Array, move: Array) -> bool:
    return factor.ndim == move.ndim and all(n in (1, m) for n, m in zip(factor.shape, move.shape, strict=True))


def _dots(
    node: Node, operands: Sequence[Array], distance: Array, operators: Operators, gains: bool
) -> tuple[tuple[Array, ...], Array]:
    """Theorem 7 for displacements: how far the copies of the operands' elements move, summed, and what is left.

    With ``gains``, the copies are multiplied by ``distance / root``, which is ``1 + |x|^2 + |w|^2`` for a small one.
    """
    dots, (x, w) = Dots(node), operands
    terms = [dots.product(x, w), *dots.norms((x, w), (x, w))]
    root = projections.dot_root(projections.sum_and_difference, terms, distance, 1, operators, displaced=True)
    scale = (distance if gains else root) / (1 - root * root)
    return dots.sums(root * scale, scale, (x, w)), root
