"""Gradient descent behind the interface that all training methods share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

Params = Any
LossFn = Callable[[Params], jax.Array]


@dataclass(frozen=True)
class GradientMethod:
    """One Optax step along the gradient of the mean loss.

    Attributes:
        transform: for example `optax.adam(1e-3)`.
        steps_per_update: how many steps of the protocol one update counts as.
        batches_well: whether several runs as one batched computation are no slower than one after the other.
    """

    transform: optax.GradientTransformation
    steps_per_update: int = 1
    batches_well: bool = True

    def init(self, params: Params) -> Any:
        """The method's state for these parameters."""
        return self.transform.init(params)

    def update(self, loss_fn: LossFn, params: Params, state: Any) -> tuple[Params, Any, jax.Array]:
        """One step.

        Args:
            loss_fn: parameters to the loss of each sample, (batch,).
            params: any pytree of arrays.
            state: from `init` or the previous update.

        Returns:
            New parameters, new state, and the mean loss at the old parameters.
        """
        loss, gradient = jax.value_and_grad(lambda p: jnp.mean(loss_fn(p)))(params)
        updates, state = self.transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss
