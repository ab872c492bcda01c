"""The multilayer perceptrons of Table 2, once, for gradients and projections alike."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp


class MLP(nn.Module):
    """Dense layers with ReLU, and a linear last layer (Section 5.2).

    Weights are He-normal, biases zero.

    Attributes:
        hidden: widths of the hidden layers.
        num_classes: width of the last layer.
        skip: the last layer reads all hidden layers side by side, not only the last one.
        output_bias: whether the last layer has a bias.
    """

    hidden: Sequence[int]
    num_classes: int
    skip: bool = False
    output_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (batch, num_classes) of inputs (batch, features)."""
        he_normal = jax.nn.initializers.he_normal()
        layers = []
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, kernel_init=he_normal)(x))
            layers.append(x)
        if self.skip:
            x = jnp.concatenate(layers, axis=-1)
        return nn.Dense(self.num_classes, use_bias=self.output_bias, kernel_init=he_normal)(x)
