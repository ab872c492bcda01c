"""The recurrent networks of Table 4, once, for gradients and projections alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from baselines.mlp import MLP


class Cell(nn.Module):
    """An MLP of a character's embedding and the last state: logits, and the next state before its ReLU."""

    hidden: Sequence[int]
    num_symbols: int
    skip: bool = False
    output_bias: bool = True

    @nn.compact
    def __call__(self, state: jax.Array, embedded: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Next state (batch, width) and logits (batch, num_symbols)."""
        mlp = MLP(self.hidden, self.num_symbols + state.shape[-1], self.skip, self.output_bias)
        out = mlp(jnp.concatenate([embedded, state], axis=-1))
        return nn.relu(out[..., self.num_symbols :]), out[..., : self.num_symbols]


class RNN(nn.Module):
    """Logits of the next character at every position (Section 5.2); the first state is zero.

    Embedding and state are as wide as the hidden layers. Weights are He-normal, biases zero.

    Attributes:
        hidden: widths of the cell's hidden layers.
        num_symbols: how many characters there are.
        skip: the cell's last layer reads all of its hidden layers side by side.
        output_bias: whether the cell's last layer has a bias.
    """

    hidden: Sequence[int]
    num_symbols: int
    skip: bool = False
    output_bias: bool = True

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits (batch, characters, num_symbols) of integer tokens (batch, characters)."""
        width = self.hidden[-1]
        embedding_init = jax.nn.initializers.he_normal()
        embedded = nn.Embed(self.num_symbols, width, embedding_init=embedding_init)(tokens)
        cells: Any = nn.scan(Cell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
        state = jnp.zeros((tokens.shape[0], width), embedded.dtype)
        _, logits = cells(self.hidden, self.num_symbols, self.skip, self.output_bias)(state, embedded)
        return logits
