"""The multilayer perceptrons of Table 2, once, for gradients and projections alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, he_normal


class MLP(nn.Module):
    """Dense layers with ReLU, and a linear last layer (Section 5.2).

    Biases are zero at first.

    Attributes:
        hidden: widths of the hidden layers.
        num_classes: width of the last layer.
        skip: the last layer reads all hidden layers side by side, not only the last one.
        output_bias: whether the last layer has a bias.
        kernel_init: of the weights.
    """

    reads: ClassVar[str] = "features"

    hidden: Sequence[int]
    num_classes: int
    skip: bool = False
    output_bias: bool = True
    kernel_init: Initializer = he_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (batch, num_classes) of inputs (batch, features)."""
        layers = []
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, kernel_init=self.kernel_init)(x))
            layers.append(x)
        if self.skip:
            x = jnp.concatenate(layers, axis=-1)
        return nn.Dense(self.num_classes, use_bias=self.output_bias, kernel_init=self.kernel_init)(x)


ARCHITECTURE = MLP
