"""Multilayer perceptrons whose activations, and weights if asked for, have few values: nothing has a derivative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, he_normal

import pjax


class Quantized(nn.Module):
    """Dense layers with steps in place of ReLUs, and a linear last layer.

    Biases are zero at first.

    Attributes:
        hidden: widths of the hidden layers.
        num_classes: width of the last layer.
        skip: the last layer reads all hidden layers side by side, not only the last one.
        output_bias: whether the last layer has a bias.
        kernel_init: of the weights.
        levels: equidistant values of an activation, from -1 to 1; 1: its sign, which is zero at zero.
        weight_levels: equidistant values of a weight, from minus to plus two standard deviations of He's
            initialisation; None: weights are not quantised.
        straight_through: whether gradients pass the steps as if they were ``clip(x, -1, 1)``, or weights themselves,
            the straight-through estimator; otherwise they are zero, as they are.
    """

    reads: ClassVar[str] = "features"

    hidden: Sequence[int]
    num_classes: int
    skip: bool = False
    output_bias: bool = True
    kernel_init: Initializer = he_normal()
    levels: int = 2
    weight_levels: int | None = None
    straight_through: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (batch, num_classes) of inputs (batch, features)."""
        layers = []
        for i, width in enumerate(self.hidden):
            x = self._steps(self._dense(f"hidden_{i}", x, width, bias=True))
            layers.append(x)
        if self.skip:
            x = jnp.concatenate(layers, axis=-1)
        return self._dense("output", x, self.num_classes, bias=self.output_bias)

    def _dense(self, name: str, x: jax.Array, width: int, *, bias: bool) -> jax.Array:
        kernel = self.param(f"{name}_kernel", self.kernel_init, (x.shape[-1], width))
        if self.weight_levels is not None:
            largest = 2 * (2 / x.shape[-1]) ** 0.5
            kernel = self._through(kernel, pjax.quantize(kernel, self.weight_levels, largest))
        out = x @ kernel
        if not bias:
            return out
        return out + jnp.broadcast_to(self.param(f"{name}_bias", nn.initializers.zeros, (width,)), out.shape)

    def _steps(self, x: jax.Array) -> jax.Array:
        stepped = jnp.sign(x) if self.levels == 1 else pjax.quantize(x, self.levels)
        return self._through(jnp.clip(x, -1, 1), stepped) if self.straight_through else stepped

    def _through(self, smooth: jax.Array, stepped: jax.Array) -> jax.Array:
        return smooth + jax.lax.stop_gradient(stepped - smooth) if self.straight_through else stepped


ARCHITECTURE = Quantized
