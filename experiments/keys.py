"""Random keys from named axes, so that adding a use of randomness moves no other."""

from __future__ import annotations

import zlib
from typing import Literal

import jax

Axis = Literal["split", "init", "order"]


def key_for(seed: int, axis: Axis) -> jax.Array:
    """The key of one use of randomness in a run.

    Args:
        seed: the run's seed.
        axis: split (which samples validate), init (first parameters) or order (of the batches).
    """
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(axis.encode()))
