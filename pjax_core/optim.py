"""Projection methods: how the projections of a bipartite graph are combined into steps (Section 2.2)."""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from jax import Array

from pjax_core import rules
from pjax_core.bilinear import Dots
from pjax_core.copies import Consensus, Edges
from pjax_core.diagnostics import Diagnostics, diagnose
from pjax_core.graph import Graph
from pjax_core.history import History
from pjax_core.operators import EXACT, Operators, require_bool, require_count, require_number, require_operators
from pjax_core.problem import AnyHolder, Problem, State
from pjax_core.stacking import stack
from pjax_core.trace import LossFn, Params, Program, trace_with_arrays
from pjax_core.whole import Whole

Representation = Literal["auto", "edges", "consensus", "history"]

WIDE = 32
"""Copies of every element from which on "auto" holds a node by past consensus values."""
LONGEST = 8
"""Consensus values per step of the window up to which it does; a method that remembers more holds all copies."""


class Result(NamedTuple):
    """What an update returns."""

    params: Params  # shadow: consensus of the parameter edges after the last step
    loss: Array  # mean loss of the forward pass that the update started from


class Diagnosed(NamedTuple):
    """What an update with diagnostics returns."""

    params: Params
    loss: Array
    diagnostics: Diagnostics


@dataclasses.dataclass(frozen=True)
class ProjectionMethod(abc.ABC):
    """A projection method; its attributes are fixed, so an instance is a key of the compilation cache.

    Attributes:
        steps_per_update: K, projection steps per batch (50 in the paper).
        operators: which projections, ``EXACT`` or ``PUBLISHED``.
        representation: how copies are held. ``"edges"``: one by one, exact for every method. ``"auto"``:
            consensus, exact, for AP and CP; for DR see there.
        stacking: whether small equal nodes are projected as one (:mod:`pjax_core.stacking`); changes no iterate.
    """

    steps_per_update: int = 50
    operators: Operators = EXACT
    representation: Representation = "auto"
    stacking: bool = True

    _supported: ClassVar[tuple[str, ...]] = ()  # representations beside "auto"

    def __post_init__(self) -> None:
        """Refuse what no update can honour."""
        require_count("steps_per_update", self.steps_per_update)
        require_bool("stacking", self.stacking)
        require_operators(self.operators)
        if self.representation not in ("auto", *self._supported):
            raise ValueError(
                f"representation={self.representation!r} does not serve {type(self).__name__}; "
                f"choose one of {', '.join(('auto', *self._supported))}"
            )

    @overload
    def update(self, loss_fn: LossFn, params: Params, *, diagnostics: Literal[False] = False) -> Result: ...

    @overload
    def update(self, loss_fn: LossFn, params: Params, *, diagnostics: Literal[True]) -> Diagnosed: ...

    def update(self, loss_fn: LossFn, params: Params, *, diagnostics: bool = False) -> Result | Diagnosed:
        """Improve the parameters on one batch (Algorithm 1, lines 4-9).

        Works inside and outside ``jax.jit``. Outside, the solver is compiled once per graph: a new
        closure over a batch of the same shapes finds it again.

        Args:
            loss_fn: ``loss_fn(params)`` returns the loss of every sample (``nn.cross_entropy``).
            params: pytree of floating-point arrays.
            diagnostics: also measure the last iterate, which costs about three more steps.

        Returns:
            The parameters after K steps, as a pytree like ``params``, the mean loss of the forward pass at the
            given parameters and, if asked for, :class:`~pjax_core.diagnostics.Diagnostics`.

        Raises:
            TypeError: see ``pjax.trace``.
        """
        graph, program, *arrays = trace_with_arrays(loss_fn, params)
        found = _solve(self, graph, program, diagnostics, params, arrays)
        return Diagnosed(*found) if diagnostics else Result(*found)

    def cycle(self, graph: Graph) -> tuple[tuple[int, ...], ...]:
        """Sets of nodes that one step projects onto, in order: the two sides, or what a method says."""
        return graph.sides

    @abc.abstractmethod
    def step(self, problem: Problem, z: State) -> State:
        """One step of the method from the governing iterate ``z``."""

    @abc.abstractmethod
    def gap(self, problem: Problem, z: State) -> Array:
        """Distance between the sets at an iterate, in the nodes' consensus values."""

    @abc.abstractmethod
    def hold(self, graph: Graph, number: int) -> Callable[..., AnyHolder]:
        """How to hold the copies of a node."""


@dataclasses.dataclass(frozen=True)
class _Cycles(ProjectionMethod):
    """Projections one after the other."""

    _supported: ClassVar[tuple[str, ...]] = ("consensus", "edges")

    def step(self, problem: Problem, z: State) -> State:
        """Project onto one set after the other."""
        for numbers in self.cycle(problem.graph):
            z = problem.project(numbers, z)
        return z

    def gap(self, problem: Problem, z: State) -> Array:
        """Longest way to a set in the next cycle; for two sets the distance between them (AP)."""
        way = jnp.zeros(())
        for numbers in self.cycle(problem.graph):
            before, z = z, problem.project(numbers, z)
            way = jnp.maximum(way, problem.distance(z, before))
        return way

    def hold(self, graph: Graph, number: int) -> Callable[..., AnyHolder]:
        """Consensus unless edges are asked for."""
        del graph, number
        return Edges if self.representation == "edges" else Consensus


@dataclasses.dataclass(frozen=True)
class AlternatingProjections(_Cycles):
    """AP (Eq. 5): ``z <- P_B P_A z`` on the two sides of the bipartition, A the side of the target."""


@dataclasses.dataclass(frozen=True)
class CyclicProjections(_Cycles):
    """CP (Eq. 6): every node once a cycle, in the layers of a backward search from the target."""

    def cycle(self, graph: Graph) -> tuple[tuple[int, ...], ...]:
        """The layers, the target first."""
        return graph.layers


@dataclasses.dataclass(frozen=True)
class _Reflecting(ProjectionMethod):
    """Methods that combine projections linearly, so that copies of one value differ all the time.

    Attributes:
        window: how long a past a node held by history keeps, in units of what the method's step remembers: one
            consensus value for DR, two for the difference map (see :class:`pjax_core.history.History`). Exact when it
            holds every consensus of an update. A node at most two constraints from a loss, where the past has a long
            weight, keeps one more.

    ``representation="history"`` holds every bilinear node by its history; ``"auto"`` those that keep at
    least 32 copies of every element, and all copies of the rest, such as an output layer of 10 classes. A method that
    forgets slowly (relaxed DR far from 1/2, and reflections never) has all copies with ``"auto"``.
    """

    window: int = 1

    _supported: ClassVar[tuple[str, ...]] = ("history", "edges")
    _written: ClassVar[int] = 1  # consensus values that a step writes, at most

    def __post_init__(self) -> None:
        """Refuse what no update can honour."""
        super().__post_init__()
        require_count("window", self.window)

    def memory(self) -> float:
        """How many consensus values to keep per step of the window; with fewer, errors may grow without bound."""
        return 1

    def gap(self, problem: Problem, z: State) -> Array:
        """``|P_A z - P_B z|``."""
        a, b = (problem.project(side, z) for side in problem.graph.sides)
        return problem.distance(a, b)

    def hold(self, graph: Graph, number: int) -> Callable[..., AnyHolder]:
        """History for bilinear nodes whose producers project at the same time, of all copies if narrow; else edges."""
        node = graph.nodes[number]
        together = any(set(node.producers()).issubset(numbers) for numbers in self.cycle(graph))
        if self.representation == "edges" or node.primitive not in rules.bilinear_rules or not together:
            return Edges
        near = {number}
        for _ in range(2):
            near |= {reader for n in near for reader, _ in graph.consumers[n]}
        near_loss = any(graph.nodes[n].kind == "loss" for n in near)
        # A constant's copies are not kept; a narrow layer near the loss needs its edges all the same.
        moving = [i for i, o in enumerate(node.operands) if any(graph.nodes[p].kind != "constant" for p in o.producers)]
        wide = Dots(node).fan_out((0, 1) if near_loss else moving) >= WIDE and self.memory() <= LONGEST
        if not wide and self.representation != "history":
            return Whole
        # All that an update writes, with the step more that diagnostics take, and the start.
        most = self._written * (self.steps_per_update + 1) + 1
        window = min(self.window * int(min(self.memory(), LONGEST)), most) + near_loss
        gram = window > 1 or number not in self.cycle(graph)[0]
        return functools.partial(History, window=window, gram=gram)


@dataclasses.dataclass(frozen=True)
class DouglasRachford(_Reflecting):
    """DR (Eq. 7): ``z <- z + 2 r (P_B(2 P_A z - z) - P_A z)``, A the side of the target.

    Attributes:
        relaxation: r in (0, 1]; 1/2 as published, 1 is alternating reflections.

    History is exact with a window of ``steps_per_update + 1``.
    """

    relaxation: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what no update can honour."""
        super().__post_init__()
        require_number("relaxation", self.relaxation)
        if not 0 < self.relaxation <= 1:
            raise ValueError(f"relaxation={self.relaxation}: it lies in (0, 1]; 0.5 as published")

    def memory(self) -> float:
        """A step multiplies the past by about ``1 - 2 r``: until a hundredth is left. Reflections forget nothing."""
        left = abs(1 - 2 * self.relaxation)
        return math.inf if left == 1 else max(1, math.ceil(math.log(0.01, left))) if left else 1

    def step(self, problem: Problem, z: State) -> State:
        """Reflect, project, average; the shadow is read out of the governing iterate."""
        return _douglas_rachford(problem, z, problem.graph.sides, self.relaxation)


def _douglas_rachford(problem: Problem, z: State, pair: Sequence[Sequence[int]], relaxation: float) -> State:
    x = problem.project(pair[0], z)
    y = problem.project(pair[1], problem.combine((2, x), (-1, z)))
    return problem.settle(problem.combine((1, z), (2 * relaxation, y), (-2 * relaxation, x)))


@dataclasses.dataclass(frozen=True)
class CyclicDouglasRachford(_Reflecting):
    """Cyclic DR: a DR step on every pair of successive layers of cyclic projections, the last with the first.

    With the projections ``P_1, ..., P_N`` of CP (target first) a step is ``z <- z + P_(i+1)(2 P_i z - z) - P_i z``
    for i = 1, ..., N in turn (Borwein and Tam, 2014). Every node projects twice a step.

    Nodes some of whose producers lie in different layers (a skip connection) are held by their edges. History
    of the others is exact with a window of ``2 * steps_per_update + 1``.
    """

    _written: ClassVar[int] = 2

    def cycle(self, graph: Graph) -> tuple[tuple[int, ...], ...]:
        """The layers, the target first."""
        return graph.layers

    def step(self, problem: Problem, z: State) -> State:
        """One DR step per pair of layers."""
        layers = problem.graph.layers
        for pair in zip(layers, layers[1:] + layers[:1], strict=True):
            z = _douglas_rachford(problem, z, pair, 0.5)
        return z


@dataclasses.dataclass(frozen=True)
class DifferenceMap(_Reflecting):
    """DM (Elser, 2003): ``z <- z + beta (P_A(f_B z) - P_B(f_A z))``, A the side of the target.

    ``f_A = P_A - (P_A - 1) / beta`` and ``f_B = P_B + (P_B - 1) / beta``: beta = 1 is Douglas-Rachford with the
    sides swapped, beta = -1 Douglas-Rachford.

    Attributes:
        beta: not 0; its size is usually near 1.

    History is exact with a window of ``steps_per_update + 1``.
    """

    beta: float = 1.0
    _written: ClassVar[int] = 2

    def __post_init__(self) -> None:
        """Refuse what no update can honour."""
        super().__post_init__()
        require_number("beta", self.beta)
        if not math.isfinite(self.beta) or self.beta == 0:
            raise ValueError(f"beta={self.beta}: a number but 0, which never moves; its size is usually near 1")

    def memory(self) -> float:
        """Both projections onto a node's producers give its copies something new."""
        return 1 if abs(self.beta) == 1 else 2

    def step(self, problem: Problem, z: State) -> State:
        """Project four times, twice where beta is 1 or -1."""
        side_a, side_b = problem.graph.sides
        share = 1 / self.beta
        a, b = problem.project(side_a, z), problem.project(side_b, z)
        x = a if share == -1 else problem.project(side_a, problem.combine((1 + share, b), (-share, z)))
        y = b if share == 1 else problem.project(side_b, problem.combine((1 - share, a), (share, z)))
        return problem.settle(problem.combine((1, z), (self.beta, x), (-self.beta, y)))


@functools.partial(jax.jit, static_argnames=("method", "graph", "program", "diagnostics"))
def _solve(
    method: ProjectionMethod, graph: Graph, program: Program, diagnostics: bool, params: Params, arrays: Any
) -> tuple[Any, ...]:
    """Run K steps from the forward pass. Compiled once per method, graph and shapes."""
    captured, constants, indices = arrays
    leaves, treedef = jax.tree.flatten(params)
    traced = program.values(captured, leaves)
    names = {origin: f"{n}:{node.name}" for n, node in enumerate(graph.nodes) for origin in node.origins}
    if method.stacking:
        graph = stack(graph, method.cycle(graph), indices)
    values = graph.values(traced, constants, indices)
    loss = jnp.mean(jnp.concatenate([values[i].ravel() for i in graph.numbers("loss")]))
    problem = Problem(graph, values, indices, method)
    z = jax.lax.fori_loop(0, method.steps_per_update, lambda _, z: method.step(problem, z), problem.start())
    found = (diagnose(problem, z, names),) if diagnostics else ()
    return jax.tree.unflatten(treedef, problem.readout(z)), loss, *found
