"""Convolutions and pooling: what slides over an array is copied out of it by slices.

Padding is a copy that adds explicit zeros (constants), so a convolution is a batch of dot products of one
length, and a pooling a maximum or a sum over the copies of a window.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import ShapedArray
from jax.extend.core import primitives as jax_primitives

from pjax_core.convolution import conv_general_dilated
from pjax_core.rules import Bilinear, defbilinear, defcomp


def windows(x: Array, sizes: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[Array]:
    """Slices of an array, one per position in a window that slides over its last axes."""
    sizes, strides, dilations = ((1,) * (x.ndim - len(a)) + tuple(a) for a in (sizes, strides, dilations))
    slices = []
    for position in np.ndindex(*sizes):
        offsets = np.multiply(position, dilations)
        last = np.subtract(x.shape, np.multiply(np.subtract(sizes, 1), dilations)) + offsets
        slices.append(lax.slice(x, offsets.tolist(), last.tolist(), strides))
    return slices


# Convolution without padding (VALID): operands in the order (batch, channels, *space), (out, in, *window).


def _slices(x: Array, window: Sequence[int], *, window_strides: Any, rhs_dilation: Any, **_: Any) -> list[Array]:
    return windows(x, window, window_strides, rhs_dilation)


def _expand_conv(x: Array, w: Array, *, dimension_numbers: Any, **params: Any) -> tuple[Array, Array]:
    x, w = x.transpose(dimension_numbers.lhs_spec), w.transpose(dimension_numbers.rhs_spec)
    patches = jnp.stack(_slices(x, w.shape[2:], **params), -1)
    patches = jnp.moveaxis(patches, 1, -2).reshape(patches.shape[0], 1, *patches.shape[2:-1], -1)
    w = w.reshape(1, w.shape[0], *(1,) * (w.ndim - 2), -1)
    order = (*np.argsort(dimension_numbers.out_spec).tolist(), w.ndim - 1)
    patches, w = (a.transpose(order) for a in jnp.broadcast_arrays(patches, w))
    return patches, w


def _ones_conv(
    a: Array, position: int, other_shape: tuple[int, ...], *, dimension_numbers: Any, **params: Any
) -> Array:
    if position == 0:
        a = jnp.sum(a.transpose(dimension_numbers.lhs_spec), 1, keepdims=True)
        found = sum(_slices(a, [other_shape[i] for i in dimension_numbers.rhs_spec[2:]], **params))
    else:
        a = a.transpose(dimension_numbers.rhs_spec)
        found = jnp.sum(a, tuple(range(1, a.ndim))).reshape(1, -1, *(1,) * (a.ndim - 2))
    return jnp.asarray(found).transpose(np.argsort(dimension_numbers.out_spec).tolist())


defbilinear(jax_primitives.conv_general_dilated_p, Bilinear(_expand_conv, _ones_conv, conv_general_dilated))


def _simplify_conv(
    x: ShapedArray, w: ShapedArray, *, dimension_numbers: Any, padding: Any, lhs_dilation: Any, **params: Any
) -> Callable[[Array, Array], Array] | str | None:
    for name in ("feature_group_count", "batch_group_count"):
        if params[name] != 1:
            return f"{name}={params[name]} has no rule; write one convolution per group and concatenate the results"
    if not np.any(padding) and set(lhs_dilation) <= {1}:
        return None
    config = [(0, 0, 0)] * len(x.shape)
    for axis, pads, gap in zip(dimension_numbers.lhs_spec[2:], padding, lhs_dilation, strict=True):
        config[axis] = (*pads, gap - 1)

    def convolve(x: Array, w: Array) -> Array:
        x = lax.pad(x, jnp.zeros((), x.dtype), config)
        return lax.conv_general_dilated(x, w, padding="VALID", dimension_numbers=dimension_numbers, **params)

    return convolve


defcomp(jax_primitives.conv_general_dilated_p, _simplify_conv)

# Pooling: the maximum or the sum of the copies in a window.


def _pool(reduce: Callable[..., Array], *, zeros: bool) -> Callable[..., Callable[[Array], Array] | str]:
    def decompose(
        _: ShapedArray,
        *,
        window_dimensions: Any,
        window_strides: Any,
        padding: Any,
        base_dilation: Any,
        window_dilation: Any,
    ) -> Callable[[Array], Array] | str:
        if not zeros and (np.any(padding) or set(base_dilation) > {1}):
            return "padding adds entries of -inf, which have no projection; pad with finite values first"
        config = [(*pads, gap - 1) for pads, gap in zip(padding, base_dilation, strict=True)]

        def pool(x: Array) -> Array:
            x = lax.pad(x, jnp.zeros((), x.dtype), config)
            return reduce(jnp.stack(windows(x, window_dimensions, window_strides, window_dilation)), 0)

        return pool

    return decompose


defcomp(jax_primitives.reduce_window_max_p, _pool(jnp.max, zeros=False))
defcomp(jax_primitives.reduce_window_sum_p, _pool(jnp.sum, zeros=True))
