"""Training methods: the harness sees `init`, `update` and `steps_per_update`, never what is behind them.

A new method is one file in `baselines/` and one in `conf/method/` (docs/own.md). `file: momentum` there means
`baselines/momentum.py`, whose `METHOD(**options)` returns a `Method`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import jax
import optax

import pjax
from baselines import having, member
from baselines.gradient import GradientMethod, LossFn, Params
from experiments.config import (
    DisplacementConfig,
    EngineConfig,
    GradientConfig,
    MethodConfig,
    OwnConfig,
    ProjectionConfig,
    UsageError,
    blaming,
)
from pjax import optim

T = TypeVar("T")


class Method(Protocol):
    """What trains a network. `update` is pure: parameters and state determine the next ones."""

    @property
    def steps_per_update(self) -> int:
        """How many steps of the protocol one update, on one batch, counts as."""
        ...

    @property
    def batches_well(self) -> bool:
        """Whether several runs as one batched computation are no slower on a processor than one after the other."""
        ...

    def init(self, params: Params) -> Any:
        """The method's state for these parameters."""
        ...

    def update(self, loss_fn: LossFn, params: Params, state: Any) -> tuple[Params, Any, jax.Array]:
        """New parameters, new state, and the mean loss at the old parameters; `loss_fn` gives each sample's loss."""
        ...


@dataclass(frozen=True)
class ProjectionMethod:
    """An optimizer of `pjax.optim` behind the shared interface; it keeps nothing from batch to batch."""

    optimizer: Any

    @property
    def steps_per_update(self) -> int:
        """K of Algorithm 1."""
        return self.optimizer.steps_per_update

    @property
    def batches_well(self) -> bool:
        """Not with copies of edges, which leave a processor's caches."""
        return not isinstance(self.optimizer, optim.DouglasRachford)

    def init(self, params: Params) -> tuple[()]:
        """Nothing."""
        return ()

    def update(self, loss_fn: LossFn, params: Params, state: tuple[()]) -> tuple[Params, tuple[()], jax.Array]:
        """K projection steps on one batch (Algorithm 1)."""
        params, loss = self.optimizer.update(loss_fn, params)
        return params, state, loss


@dataclass(frozen=True)
class DisplacementMethod:
    """`pjax.optim.Displacement` behind the shared interface: an update is one step, as a gradient method's is."""

    optimizer: optim.Displacement
    steps_per_update: int = 1
    batches_well: bool = True

    def init(self, params: Params) -> Any:
        """The transformation's state."""
        return self.optimizer.init(params)

    def update(self, loss_fn: LossFn, params: Params, state: Any) -> tuple[Params, Any, jax.Array]:
        """One backward sweep and one step of the transformation."""
        return self.optimizer.update(loss_fn, params, state)


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
        UsageError: nothing by that name, and the message lists what there is; or a value that the method or the
            operators refuse, and the message names its key.
    """
    if isinstance(method, GradientConfig):
        return GradientMethod(
            _choose("gradient method", GRADIENT, method.transform or method.name)(method.learning_rate)
        )
    if isinstance(method, OwnConfig):
        return _own(method, engine)
    if isinstance(method, DisplacementConfig):
        return _displacement(method)
    assert isinstance(method, ProjectionConfig)
    operators = _operators(engine)
    optimizer = _choose("projection method", PROJECTION, method.name)
    # What a projection method has beyond any method are the options of its optimizer, by the same names.
    shared = {item.name for item in dataclasses.fields(MethodConfig)}
    options = {key: value for key, value in dataclasses.asdict(method).items() if key not in shared}
    try:
        return ProjectionMethod(optimizer(operators=operators, **options))
    except (TypeError, ValueError) as error:
        raise _refused("method", options, error) from error


def _displacement(method: DisplacementConfig) -> Method:
    transform = _choose("gradient method", GRADIENT, method.transform)(method.learning_rate)
    options = {key: getattr(method, key) for key in ("target_scale", "gain", "sweeps", "average")}
    of_operators = "prox_lambda", "step_margin"
    try:
        operators = dataclasses.replace(pjax.EXACT, **{key: getattr(method, key) for key in of_operators})
        return DisplacementMethod(optim.Displacement(transform, operators=operators, **options))
    except (TypeError, ValueError) as error:
        raise _refused("method", [*options, *of_operators], error) from error


def _operators(engine: EngineConfig) -> pjax.Operators:
    """The projection operators a configuration names."""
    named = _choose("engine", OPERATORS, engine.name)
    try:
        return dataclasses.replace(named, prox_lambda=engine.prox_lambda)
    except (TypeError, ValueError) as error:
        raise _refused("engine", ["prox_lambda"], error) from error


def _own(config: OwnConfig, engine: EngineConfig) -> Method:
    """The method of a file."""
    with blaming(f"method.file={config.file}"):
        build = member(config.file, "METHOD")
        if build is None:
            raise UsageError(f"unknown method.file={config.file}. Known: {', '.join(having('METHOD')) or 'none'}")
    with blaming("method.options"):
        operators = {"operators": _operators(engine)} if config.engine else {}
        method = build(**config.options, **operators)
    if method.steps_per_update != config.steps_per_update:
        raise UsageError(
            f"method.steps_per_update={config.steps_per_update}, but an update of method '{config.name}' is "
            f"{method.steps_per_update} steps"
        )
    return method


def _refused(group: str, options: Iterable[str], error: Exception) -> UsageError:
    """The engine names its argument first (`window=0: ...`); on the command line that is a key of a group."""
    ours = any(str(error).startswith(f"{option}=") for option in options)
    return UsageError(f"{group}.{error}" if ours else f"{group}: {error}")


def _choose(kind: str, table: dict[str, T], name: str) -> T:
    if name not in table:
        raise UsageError(f"unknown {kind} '{name}'. Known: {', '.join(sorted(table))}")
    return table[name]
