"""A convolution whose transposes are convolutions that the compiler for processors knows how to run.

JAX writes the transposes of a convolution as one with its axes renamed and its window turned round. XLA's compiler for
processors has a fast convolution for the plain order of axes alone and does everything else by a loop over single
numbers, tens of times as slow. So the axes are moved here, and the window is turned, before they are convolved.
"""

import functools
import string
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import Array, lax

Params = tuple[tuple[str, Any], ...]

_KNOWN = {"window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers", "precision"}


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    **options: Any,
) -> Array:
    """``jax.lax.conv_general_dilated``, arguments and values alike, with gradients that are fast on processors, too.

    In a Flax module: ``nn.Conv(..., conv_general_dilated_cls=lambda: pjax.conv_general_dilated)``. Reverse-mode
    derivatives only. On other platforms, and with groups or further options (``preferred_element_type``), the gradients
    are JAX's own.

    Raises:
        ValueError: ``padding`` is a name although ``lhs_dilation`` is not 1, as in JAX, or as JAX itself says.
    """
    axes = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    ones = (1,) * (lhs.ndim - 2)
    gaps, reach = (ones if d is None else tuple(d) for d in (lhs_dilation, rhs_dilation))
    if precision is None:  # that of the place where this is called, for the transposes, too
        precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(padding, str):
        if gaps != ones:
            raise ValueError(f"padding={padding!r} with lhs_dilation={gaps}: give the padding of every axis as numbers")
        sizes, window = ([a.shape[i] for i in spec[2:]] for a, spec in ((lhs, axes.lhs_spec), (rhs, axes.rhs_spec)))
        padding = lax.padtype_to_pads(sizes, _dilated(window, reach), window_strides, padding)
    params = {
        "window_strides": tuple(window_strides),
        "padding": tuple(map(tuple, padding)),
        "lhs_dilation": gaps,
        "rhs_dilation": reach,
        "dimension_numbers": axes,
        "feature_group_count": feature_group_count,
        "batch_group_count": batch_group_count,
        "precision": tuple(precision) if isinstance(precision, list) else precision,
        **{name: value for name, value in options.items() if value is not None},
    }
    return _convolution(lhs, rhs, tuple(params.items()))


def _lax(x: Array, w: Array, params: Params) -> Array:
    return lax.conv_general_dilated(x, w, **dict(params))


_convolution = jax.custom_vjp(_lax, nondiff_argnums=(2,))


def _forward(x: Array, w: Array, params: Params) -> tuple[Array, tuple[Array, Array]]:
    return _lax(x, w, params), (x, w)


def _backward(params: Params, operands: tuple[Array, Array], out: Array) -> tuple[Array, Array]:
    def transposes(x: Array, w: Array, out: Array) -> tuple[Array, Array]:
        return jax.vjp(functools.partial(_lax, params=params), x, w)[1](out)

    known = dict(params)
    groups = known.pop("feature_group_count") * known.pop("batch_group_count")
    if groups > 1 or not known.keys() <= _KNOWN or 0 in (*operands[0].shape, *operands[1].shape, *out.shape):
        return transposes(*operands, out)
    plain = functools.partial(_plain_transposes, **known)
    return lax.platform_dependent(*operands, out, cpu=plain, default=transposes)


_convolution.defvjp(_forward, _backward)


def _plain_transposes(
    x: Array,
    w: Array,
    out: Array,
    *,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    dimension_numbers: Any,
    precision: Any,
) -> tuple[Array, Array]:
    """Cotangents of x and w for that of the output."""
    x, w, out = (a.transpose(axes) for a, axes in zip((x, w, out), dimension_numbers, strict=True))
    dilations = lhs_dilation, rhs_dilation, window_strides
    sizes = zip(*(_dilated(a.shape[2:], d) for a, d in zip((x, w, out), dilations, strict=True)), padding, strict=True)
    # Paddings from which x comes back in its own size, and w in its own.
    pads = [((k - 1 - low, n - m + low), (low, k - 1 + m - n - low)) for n, k, m, (low, _) in sizes]
    for_x, for_w = zip(*pads, strict=True)
    turned = lax.rev(w, range(2, w.ndim)).swapaxes(0, 1)
    dx = _plain(out, turned, lhs_dilation, for_x, window_strides, rhs_dilation, precision)
    dw = _plain(x.swapaxes(0, 1), out.swapaxes(0, 1), rhs_dilation, for_w, lhs_dilation, window_strides, precision)
    x_axes, w_axes, _ = (np.argsort(axes).tolist() for axes in dimension_numbers)
    return dx.transpose(x_axes), dw.swapaxes(0, 1).transpose(w_axes)


def _plain(x: Array, w: Array, strides: Any, pads: Any, gaps: Any, reach: Any, precision: Any) -> Array:
    """Convolve (batch, channels, *space) by (out, in, *window), with channels moved to the end."""
    space = string.ascii_lowercase[: x.ndim - 2]
    numbers = f"N{space}C", f"{space}IO", f"N{space}C"
    x, w = x.transpose(0, *range(2, x.ndim), 1), w.transpose(*range(2, w.ndim), 1, 0)
    out = lax.conv_general_dilated(x, w, strides, pads, gaps, reach, numbers, precision=precision)
    return out.transpose(0, out.ndim - 1, *range(1, out.ndim - 1))


def _dilated(sizes: Sequence[int], dilation: Sequence[int]) -> list[int]:
    return [(size - 1) * gap + 1 for size, gap in zip(sizes, dilation, strict=True)]
