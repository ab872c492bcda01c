"""The convolutional networks of Table 3, once, for gradients and projections alike."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, he_normal

import pjax


class CNN(nn.Module):
    """3x3 convolutions with ReLU, the maximum over space, and a linear last layer (Section 5.2).

    Stride 1, padding 1. Biases are zero at first.

    Attributes:
        hidden: channels of the convolutions.
        num_classes: width of the last layer.
        skip: the last layer reads all layers, pooled and side by side, not only the last one.
        output_bias: whether the last layer has a bias.
        kernel_init: of the weights.
    """

    reads: ClassVar[str] = "images"

    hidden: Sequence[int]
    num_classes: int
    skip: bool = False
    output_bias: bool = True
    kernel_init: Initializer = he_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (batch, num_classes) of images (batch, height, width, channels)."""
        # Flax's convolution, with gradients that are fast on processors, too.
        conv = functools.partial(nn.Conv, conv_general_dilated_cls=lambda: pjax.conv_general_dilated)
        layers = []
        for width in self.hidden:
            x = nn.relu(conv(width, (3, 3), kernel_init=self.kernel_init)(x))
            layers.append(x)
        pooled = [jnp.max(layer, (1, 2)) for layer in (layers if self.skip else layers[-1:])]
        x = jnp.concatenate(pooled, axis=-1)
        return nn.Dense(self.num_classes, use_bias=self.output_bias, kernel_init=self.kernel_init)(x)


ARCHITECTURE = CNN
