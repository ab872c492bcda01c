"""Training methods: the harness sees `init`, `update` and `steps_per_update`, never what is behind them.

A new method is one entry in `GRADIENT` or `PROJECTION` and one file in `conf/method/`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import jax
import optax

import pjax_core as pjax
from baselines.gradient import GradientMethod, LossFn, Params
from experiments.config import EngineConfig, GradientConfig, MethodConfig, ProjectionConfig, UsageError
from pjax_core import optim

T = TypeVar("T")


class Method(Protocol):
    """What trains a network. `update` is pure: parameters and state determine the next ones."""

    @property
    def steps_per_update(self) -> int:
        """How many steps of the protocol one update, on one batch, counts as."""
        ...

    def init(self, params: Params) -> Any:
        """The method's state for these parameters."""
        ...

    def update(self, loss_fn: LossFn, params: Params, state: Any) -> tuple[Params, Any, jax.Array]:
        """New parameters, new state, and the mean loss at the old parameters; `loss_fn` gives each sample's loss."""
        ...


@dataclass(frozen=True)
class ProjectionMethod:
    """An optimizer of `pjax_core.optim` behind the shared interface; it keeps nothing from batch to batch."""

    optimizer: Any

    @property
    def steps_per_update(self) -> int:
        """K of Algorithm 1."""
        return self.optimizer.steps_per_update

    def init(self, params: Params) -> tuple[()]:
        """Nothing."""
        return ()

    def update(self, loss_fn: LossFn, params: Params, state: tuple[()]) -> tuple[Params, tuple[()], jax.Array]:
        """K projection steps on one batch (Algorithm 1)."""
        params, loss = self.optimizer.update(loss_fn, params)
        return params, state, loss


GRADIENT: dict[str, Callable[[float], optax.GradientTransformation]] = {"sgd": optax.sgd, "adam": optax.adam}
PROJECTION: dict[str, Callable[..., Any]] = {
    "dr": optim.DouglasRachford,
    "ap": optim.AlternatingProjections,
    "cp": optim.CyclicProjections,
}
OPERATORS = {"published": pjax.PUBLISHED, "exact": pjax.EXACT}


def build_method(method: MethodConfig, engine: EngineConfig) -> Method:
    """The method a configuration names.

    Raises:
        UsageError: nothing by that name; the message lists what there is.
    """
    if isinstance(method, GradientConfig):
        return GradientMethod(_choose("gradient method", GRADIENT, method.name)(method.learning_rate))
    assert isinstance(method, ProjectionConfig)
    operators = _choose("engine", OPERATORS, engine.name)
    given = {"relaxation": method.relaxation, "window": method.window}
    options = {key: value for key, value in given.items() if value is not None}
    optimizer = _choose("projection method", PROJECTION, method.name)(
        steps_per_update=method.steps_per_update,
        operators=dataclasses.replace(operators, prox_lambda=engine.prox_lambda),
        representation=method.representation,
        **options,
    )
    return ProjectionMethod(optimizer)


def _choose(kind: str, table: dict[str, T], name: str) -> T:
    if name not in table:
        raise UsageError(f"unknown {kind} '{name}'. Known: {', '.join(sorted(table))}")
    return table[name]
