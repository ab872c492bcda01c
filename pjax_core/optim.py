"""Projection methods: how the projections of a bipartite graph are combined into steps (Section 2.2)."""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pjax_core.copies import Consensus, Edges, Site
from pjax_core.graph import Graph
from pjax_core.history import History
from pjax_core.operators import EXACT, Operators
from pjax_core.problem import Holder, Problem, State
from pjax_core.trace import Params, trace_with_arrays

Representation = Literal["auto", "edges", "consensus", "history"]


class Result(NamedTuple):
    """What an update returns."""

    params: Params  # shadow: consensus of the parameter edges after the last step
    loss: Array  # mean loss of the forward pass that the update started from


@dataclasses.dataclass(frozen=True)
class ProjectionMethod(abc.ABC):
    """A projection method; its attributes are fixed, so an instance is a key of the compilation cache.

    Attributes:
        steps_per_update: K, projection steps per batch (50 in the paper).
        operators: which projections, ``EXACT`` or ``PUBLISHED``.
        representation: how copies are held. ``"edges"``: one by one, exact for every method. ``"auto"``:
            consensus, exact, for AP and CP; for DR see there.
    """

    steps_per_update: int = 50
    operators: Operators = EXACT
    representation: Representation = "auto"

    _supported: ClassVar[tuple[str, ...]] = ()  # representations beside "auto"

    def __post_init__(self) -> None:
        """Refuse what no update can honour."""
        if not isinstance(self.steps_per_update, int | np.integer) or self.steps_per_update < 1:
            raise ValueError(f"steps_per_update={self.steps_per_update}: a positive whole number")
        if not isinstance(self.operators, Operators):
            raise TypeError(f"operators={self.operators!r}: pass pjax.EXACT, pjax.PUBLISHED or Operators")
        if self.representation not in ("auto", *self._supported):
            raise ValueError(
                f"representation={self.representation!r} does not serve {type(self).__name__}; "
                f"choose one of {', '.join(('auto', *self._supported))}"
            )

    def update(self, loss_fn: Callable[[Params], Any], params: Params) -> Result:
        """Improve the parameters on one batch (Algorithm 1, lines 4-9).

        Works inside and outside ``jax.jit``. Outside, the solver is compiled once per graph: a new
        closure over a batch of the same shapes finds it again.

        Args:
            loss_fn: ``loss_fn(params)`` returns the loss of every sample (``nn.cross_entropy``).
            params: pytree of floating-point arrays.

        Returns:
            The parameters after K steps, as a pytree like ``params``, and the mean loss of the forward
            pass at the given parameters.

        Raises:
            TypeError: see :func:`pjax_core.trace`.
        """
        leaves, treedef = jax.tree.flatten(params)
        graph, constants, indices = trace_with_arrays(loss_fn, params)
        leaves, loss = _solve(self, graph, [jnp.asarray(x) for x in leaves], constants, indices)
        return Result(jax.tree.unflatten(treedef, leaves), loss)

    @abc.abstractmethod
    def cycle(self, graph: Graph) -> tuple[tuple[int, ...], ...]:
        """Sets of nodes that one step projects onto, in order."""

    @abc.abstractmethod
    def step(self, problem: Problem, z: State) -> State:
        """One step of the method from the governing iterate ``z``."""

    @abc.abstractmethod
    def hold(self, site: Site) -> Holder:
        """Make the holder of a node's copies."""


@dataclasses.dataclass(frozen=True)
class _Cycles(ProjectionMethod):
    """Projections one after the other."""

    _supported: ClassVar[tuple[str, ...]] = ("consensus", "edges")

    def step(self, problem: Problem, z: State) -> State:
        """Project onto one set after the other."""
        for numbers in self.cycle(problem.graph):
            z = problem.project(numbers, z)
        return z

    def hold(self, site: Site) -> Holder:
        """Consensus unless edges are asked for."""
        return Edges(site) if self.representation == "edges" else Consensus(site)


@dataclasses.dataclass(frozen=True)
class AlternatingProjections(_Cycles):
    """AP (Eq. 5): ``z <- P_B P_A z`` on the two sides of the bipartition, A the side of the target."""

    def cycle(self, graph: Graph) -> tuple[tuple[int, ...], ...]:
        """The two sides."""
        return graph.sides


@dataclasses.dataclass(frozen=True)
class CyclicProjections(_Cycles):
    """CP (Eq. 6): every node once a cycle, in the layers of a backward search from the target."""

    def cycle(self, graph: Graph) -> tuple[tuple[int, ...], ...]:
        """The layers, the target first."""
        return graph.layers


@dataclasses.dataclass(frozen=True)
class DouglasRachford(ProjectionMethod):
    """DR (Eq. 7): ``z <- z + 2 r (P_B(2 P_A z - z) - P_A z)``, A the side of the target.

    Attributes:
        relaxation: r in (0, 1]; 1/2 as published, 1 is alternating reflections.
        window: slots of past consensus values per node held by history (see
            :class:`pjax_core.history.History`). Exact when it exceeds ``steps_per_update``.

    ``representation="history"`` holds every bilinear node by its history; ``"auto"`` those that keep at
    least 32 copies of every element, and the edges of the rest (an output layer has few edges, and large
    roots that give its past a long weight).
    """

    relaxation: float = 0.5
    window: int = 2

    _supported: ClassVar[tuple[str, ...]] = ("history", "edges")

    def __post_init__(self) -> None:
        """Refuse what no update can honour."""
        super().__post_init__()
        if not 0 < self.relaxation <= 1:
            raise ValueError(f"relaxation={self.relaxation}: it lies in (0, 1]; 0.5 as published")
        if self.window < 1:
            raise ValueError(f"window={self.window}: at least 1 slot of history")

    def cycle(self, graph: Graph) -> tuple[tuple[int, ...], ...]:
        """The two sides."""
        return graph.sides

    def step(self, problem: Problem, z: State) -> State:
        """Reflect, project, average; the shadow is read out of the governing iterate."""
        side_a, side_b = problem.graph.sides
        x = problem.project(side_a, z)
        y = problem.project(side_b, problem.combine((2, x), (-1, z)))
        r = self.relaxation
        return problem.settle(problem.combine((1, z), (2 * r, y), (-2 * r, x)))

    def hold(self, site: Site) -> Holder:
        """History for wide bilinear nodes, edges for the rest."""
        if site.dots is None or self.representation == "edges":
            return Edges(site)
        wide = min(site.dots.fan_out(0), site.dots.fan_out(1)) >= 32
        return History(site, self.window) if wide or self.representation == "history" else Edges(site)


@functools.partial(jax.jit, static_argnames=("method", "graph"))
def _solve(
    method: ProjectionMethod,
    graph: Graph,
    parameters: list[Array],
    constants: list[Array],
    indices: list[Array],
) -> tuple[list[Array], Array]:
    """Run K steps from the forward pass. Compiled once per method, graph and shapes."""
    problem = Problem(graph, (parameters, constants, indices), method.operators, method.hold)
    z = problem.start(method.cycle(graph))
    z = jax.lax.fori_loop(0, method.steps_per_update, lambda _, z: method.step(problem, z), z)
    return problem.readout(z), problem.loss
