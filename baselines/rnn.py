"""The recurrent networks of Table 4, once, for gradients and projections alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, he_normal

from baselines.mlp import MLP


class Cell(nn.Module):
    """An MLP of a character's embedding and the last state: logits, and the next state before its ReLU."""

    hidden: Sequence[int]
    num_classes: int
    skip: bool = False
    output_bias: bool = True
    kernel_init: Initializer = he_normal()

    @nn.compact
    def __call__(self, state: jax.Array, embedded: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Next state (batch, width) and logits (batch, num_classes)."""
        width = self.num_classes + state.shape[-1]
        mlp = MLP(self.hidden, width, self.skip, self.output_bias, self.kernel_init)
        out = mlp(jnp.concatenate([embedded, state], axis=-1))
        return nn.relu(out[..., self.num_classes :]), out[..., : self.num_classes]


class RNN(nn.Module):
    """Logits of the next character at every position (Section 5.2); the first state is zero.

    Embedding and state are as wide as the hidden layers. Biases are zero at first.

    Attributes:
        hidden: widths of the cell's hidden layers.
        num_classes: how many characters there are.
        skip: the cell's last layer reads all of its hidden layers side by side.
        output_bias: whether the cell's last layer has a bias.
        kernel_init: of the cell's weights.
        embedding_init: of the embedding (num_classes, width).
    """

    reads: ClassVar[str] = "tokens"

    hidden: Sequence[int]
    num_classes: int
    skip: bool = False
    output_bias: bool = True
    kernel_init: Initializer = he_normal()
    embedding_init: Initializer = he_normal()

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits (batch, characters, num_classes) of integer tokens (batch, characters)."""
        width = self.hidden[-1]
        embedded = nn.Embed(self.num_classes, width, embedding_init=self.embedding_init)(tokens)
        cells: Any = nn.scan(Cell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
        state = jnp.zeros((tokens.shape[0], width), embedded.dtype)
        cell = cells(self.hidden, self.num_classes, self.skip, self.output_bias, self.kernel_init)
        _, logits = cell(state, embedded)
        return logits


ARCHITECTURE = RNN
