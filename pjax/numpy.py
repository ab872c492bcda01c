"""Functions of plain arrays by the names of the paper's Appendix B.2: JAX's own, and the few that JAX lacks.

All of them can be traced. Nothing but a projection needs them: the same functions of ``jax.numpy`` serve as well.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax, vmap
from jax.numpy import (
    add,
    broadcast_to,
    concatenate,
    expand_dims,
    matmul,
    max,
    maximum,
    mean,
    moveaxis,
    repeat,
    reshape,
    squeeze,
    stack,
    sum,
    swapaxes,
    transpose,
)

from pjax_core import rules
from pjax_core.convolution import conv_general_dilated
from pjax_core.windows import windows

__all__ = [
    "add",
    "broadcast_to",
    "concatenate",
    "conv_general_dilated",
    "conv_patch",
    "dot",
    "expand_dims",
    "identity",
    "index",
    "matmul",
    "max",
    "maximum",
    "mean",
    "moveaxis",
    "quantize",
    "repeat",
    "reshape",
    "squeeze",
    "stack",
    "sum",
    "sum_relu",
    "swapaxes",
    "transpose",
    "vmap",
    "zero_pad",
]


def identity(x: Array) -> Array:
    """``x`` itself, as a constraint (Theorem 4)."""
    return rules.identity_p.bind(x)


def dot(x: Array, y: Array) -> Array:
    """Inner product over the last axis (Theorem 7); leading axes broadcast: ``(..., n), (..., n) -> (...)``."""
    return jnp.vecdot(x, y)


def sum_relu(*xs: Array) -> Array:
    """``max(0, x1 + x2 + ...)`` as one constraint (Theorem 6); shapes broadcast."""
    return rules.sum_relu_p.bind(*jnp.broadcast_arrays(*xs))


def quantize(x: Array, levels: int, scale: float = 1.0) -> Array:
    """Nearest of ``levels`` equidistant points in ``[-scale, scale]`` (Theorem 9)."""
    return rules.quantize_p.bind(x, levels=levels, scale=scale)


def index(x: Array, indices: Array) -> Array:
    """Rows ``x[indices]`` of the first axis; indices are constant integers."""
    return x[indices]


def zero_pad(x: Array, pad_width: Sequence[tuple[int, int]]) -> Array:
    """Zeros (before, after) every axis; explicit constants, not parameters."""
    return jnp.pad(x, pad_width)


def conv_patch(x: Array, kernel_shape: tuple[int, int], strides: tuple[int, int] = (1, 1)) -> Array:
    """Patches of images without padding.

    Args:
        x: ``(..., height, width, channels)``.
        kernel_shape, strides: (height, width) of the window and of its steps.

    Returns:
        ``(..., rows, columns, kernel height * kernel width * channels)``.
    """
    images = jnp.moveaxis(x, -1, -3)
    patches = jnp.stack(windows(images, kernel_shape, strides, (1, 1)), -1)
    patches = jnp.moveaxis(patches, -4, -1)
    return lax.reshape(patches, (*patches.shape[:-2], patches.shape[-2] * patches.shape[-1]))
