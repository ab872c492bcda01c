"""The functions of the paper's Appendix B.2: values as NumPy's or a plain loop's, and training through each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import pjax
from pjax import nn, optim
from pjax import numpy as pjax_numpy
from tests.core.networks import patches, relative_error

INDICES = np.array([2, 0, 2])
PADS = ((0, 0), (1, 0), (2, 1))


class Case(NamedTuple):
    """A use of one function: arrays in, the numbers that come out, and the constraint that a trace has for it."""

    ours: Callable[..., Any]
    expected: Callable[..., Any]  # of NumPy arrays
    shapes: tuple[tuple[int, ...], ...]
    constraint: str | None = None  # a copy has none


def nearest_level(x: np.ndarray, levels: int, scale: float) -> np.ndarray:
    points = np.linspace(-scale, scale, levels)
    return points[np.abs(x[..., None] - points).argmin(-1)]


def convolved(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Images (batch, in, height, width) by windows (out, in, height, width)."""
    out = patches(x.transpose(0, 2, 3, 1), w.shape[2:]) @ w.transpose(2, 3, 1, 0).reshape(-1, len(w))
    return out.transpose(0, 3, 1, 2)


MATRIX = ((3, 4),)
CASES = {
    "add": Case(pjax.add, lambda a, b: a + b, ((3, 4), (3, 4)), "add"),
    "broadcast_to": Case(lambda a: pjax.broadcast_to(a, (2, 3, 4)), lambda a: np.broadcast_to(a, (2, 3, 4)), MATRIX),
    "concatenate": Case(
        lambda a, b: pjax.concatenate([a, b, a], 1), lambda a, b: np.concatenate([a, b, a], 1), ((3, 4), (3, 2))
    ),
    "conv_general_dilated": Case(
        lambda a, b: pjax.conv_general_dilated(a, b, (1, 1), "VALID"),
        convolved,
        ((2, 3, 5, 4), (6, 3, 3, 2)),
        "conv_general_dilated",
    ),
    "conv_patch": Case(
        lambda a: pjax.conv_patch(a, (2, 3), (2, 1)), lambda a: patches(a, (2, 3), (2, 1)), ((2, 6, 5, 3),)
    ),
    "dot": Case(pjax.dot, lambda a, b: np.einsum("ij,ij->i", a, b), ((3, 4), (3, 4)), "dot_general"),
    "expand_dims": Case(lambda a: pjax.expand_dims(a, (0, 2)), lambda a: a[None, :, None], MATRIX),
    "identity": Case(pjax.identity, lambda a: a, MATRIX, "identity"),
    "index": Case(lambda a: pjax.index(a, jnp.asarray(INDICES)), lambda a: a[INDICES], MATRIX),
    "matmul": Case(pjax.matmul, lambda a, b: a @ b, ((2, 3, 4), (4, 5)), "dot_general"),
    "max": Case(lambda a: pjax.max(a, (0, 2)), lambda a: a.max((0, 2)), ((2, 3, 4),), "reduce_max"),
    "maximum": Case(pjax.maximum, np.maximum, ((3, 4), (3, 4)), "max"),
    "mean": Case(lambda a: pjax.mean(a, 1), lambda a: a.sum(1) / 4, MATRIX, "mean"),
    "moveaxis": Case(lambda a: pjax.moveaxis(a, 0, -1), lambda a: np.moveaxis(a, 0, -1), ((2, 3, 4),)),
    "quantize": Case(lambda a: pjax.quantize(a, 5, scale=2.0), lambda a: nearest_level(a, 5, 2.0), MATRIX, "quantize"),
    "repeat": Case(lambda a: pjax.repeat(a, 3, 1), lambda a: np.repeat(a, 3, 1), MATRIX),
    "reshape": Case(lambda a: pjax.reshape(a, (2, 6)), lambda a: a.reshape(2, 6), MATRIX),
    "squeeze": Case(lambda a: pjax.squeeze(a, 1), lambda a: a[:, 0], ((3, 1, 4),)),
    "stack": Case(lambda a, b: pjax.stack([a, b], 1), lambda a, b: np.stack([a, b], 1), ((3, 4), (3, 4))),
    "sum": Case(lambda a: pjax.sum(a, (0, 2)), lambda a: a.sum((0, 2)), ((2, 3, 4),), "reduce_sum"),
    "sum_relu": Case(
        pjax.sum_relu, lambda a, b, c: np.where(a + b + c > 0, a + b + c, 0), ((3, 4), (4,), (3, 1)), "sum_relu"
    ),
    "swapaxes": Case(lambda a: pjax.swapaxes(a, 0, 2), lambda a: a.swapaxes(0, 2), ((2, 3, 4),)),
    "transpose": Case(lambda a: pjax.transpose(a, (1, 2, 0)), lambda a: a.transpose(1, 2, 0), ((2, 3, 4),)),
    "vmap": Case(lambda a, b: pjax.vmap(pjax.dot, (0, None))(a, b), lambda a, b: a @ b, ((3, 4), (4,)), "dot_general"),
    "zero_pad": Case(lambda a: pjax.zero_pad(a, PADS), lambda a: np.pad(a, PADS), ((2, 3, 4),)),
}


def arrays(name: str) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape) for shape in CASES[name].shapes]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", pjax_numpy.__all__)
def test_values(name):
    case, operands = CASES[name], arrays(name)
    assert getattr(pjax, name) is getattr(pjax_numpy, name)
    assert name in pjax.__all__
    np.testing.assert_allclose(case.ours(*map(jnp.asarray, operands)), case.expected(*operands), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", pjax_numpy.__all__)
def test_traced_and_projected(name):
    """Hidden values go in (a product of two parameters), so that copies are averaged and constraints projected."""
    case, operands = CASES[name], arrays(name)
    first, second = ([jnp.asarray(a) + shift for a in operands] for shift in (0, 2))
    start = {"first": first, "second": second}

    def loss_fn(p):
        out = case.ours(*(u * v for u, v in zip(p["first"], p["second"], strict=True))).reshape(1, -1)
        return nn.squared_error(out, jnp.linspace(-1, 1, out.size).reshape(out.shape))

    graph = pjax.trace(loss_fn, start)
    products = ["mul"] * len(operands)
    assert [n.name for n in graph.nodes if n.kind == "constraint"] == products + [case.constraint] * bool(
        case.constraint
    )
    consensus, edges = (
        optim.AlternatingProjections(5, representation=r).update(loss_fn, start).params for r in ("consensus", "edges")
    )
    for ours, reference, before in zip(*map(jax.tree.leaves, (consensus, edges, start)), strict=True):
        assert float(jnp.abs(reference - before).max()) > 0
        np.testing.assert_allclose(ours, reference, rtol=1e-9, atol=1e-12)


def test_vmap_is_jaxs():
    assert pjax.vmap is jax.vmap


@pytest.mark.parametrize(("x", "y"), [((4,), (4,)), ((2, 3, 4), (3, 4)), ((2, 1, 4), (1, 3, 4)), ((4,), (2, 4))])
def test_dot_broadcasts_the_leading_axes(x, y):
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape).astype("float32") for shape in (x, y))
    with jax.numpy_rank_promotion("allow"):  # as for a user; here axes in front of the shorter are meant
        ours = pjax.dot(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(ours, np.vecdot(a, b), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_a_matmul_made_of_dots_by_vmap_is_a_matmul():
    def by_dots(x, w):
        return pjax.vmap(pjax.vmap(pjax.dot, (None, 1)), (0, None))(x, w)

    x, w = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(6, 4), (4, 3)]))
    np.testing.assert_allclose(by_dots(x, w), x @ w, rtol=1e-12)
    labels, start = jnp.arange(6) % 3, {"v": jax.random.normal(jax.random.key(2), (4, 4)), "w": w}
    for method in (optim.AlternatingProjections(10), optim.AlternatingProjections(10, representation="edges")):
        ours, jaxs = (
            method.update(lambda p, mm=mm: nn.cross_entropy(mm(pjax.sum_relu(mm(x, p["v"])), p["w"]), labels), start)
            for mm in (by_dots, jnp.matmul)
        )
        assert relative_error(ours.params, jaxs.params, start) < 1e-9


@pytest.mark.parametrize(
    ("lead", "kernel_shape", "strides"),
    [
        ((), (3, 3), (1, 1)),
        ((2,), (2, 3), (2, 1)),
        ((2, 3), (1, 1), (3, 2)),
        ((2,), (6, 5), (1, 1)),
        ((), (2, 2), (1, 3)),
    ],
)
def test_patches(lead, kernel_shape, strides):
    """Those of a literal loop, and what a convolution reads: one whose kernel has an output for every input."""
    x = np.random.default_rng(0).normal(size=(*lead, 6, 5, 3)).astype("float32")
    ours = pjax.conv_patch(jnp.asarray(x), kernel_shape, strides)
    np.testing.assert_array_equal(ours, patches(x, kernel_shape, strides))
    size = kernel_shape[0] * kernel_shape[1] * 3
    kernel, layout = jnp.eye(size).reshape(*kernel_shape, 3, size), ("NHWC", "HWIO", "NHWC")
    images = jnp.asarray(x.reshape(-1, 6, 5, 3))
    read = lax.conv_general_dilated(images, kernel, strides, "VALID", dimension_numbers=layout)
    np.testing.assert_allclose(ours.reshape(read.shape), read, rtol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
def test_patches_times_a_matrix_are_a_convolution(strides):
    x = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))
    conv = nn.Conv2D(3, 2, (3, 2), strides, "VALID")
    start = jax.tree.map(lambda a: a.astype(x.dtype), conv.init(jax.random.key(1)))

    def by_patches(p):
        return pjax.conv_patch(x, (3, 2), strides) @ p["weight"].reshape(-1, 2)

    labels = jnp.arange(by_patches(start)[..., 0].size).reshape(by_patches(start).shape[:-1]) % 2
    ours, jaxs = (
        optim.AlternatingProjections(10).update(lambda p, f=f: nn.cross_entropy(f(p), labels), start)
        for f in (by_patches, lambda p: conv.apply(p, x))
    )
    np.testing.assert_allclose(ours.loss, jaxs.loss, rtol=1e-12)
    assert relative_error(ours.params, jaxs.params, start) < 1e-9


def test_sum_relu_of_one_shape_and_of_shapes_that_broadcast():
    x = jnp.array([[-1.0, 2.0], [0.5, -3.0]])
    np.testing.assert_array_equal(pjax.sum_relu(x), jnp.maximum(x, 0))
    np.testing.assert_array_equal(pjax.sum_relu(x, jnp.array([1.0, -1.0])), [[0, 1], [1.5, 0]])


@pytest.mark.parametrize(("levels", "scale"), [(1, 1.0), (3, 0.0), (3, -1.0)])
def test_quantize_to_impossible_levels(levels, scale):
    with pytest.raises(ValueError, match="at least 2 levels and a positive scale"):
        pjax.quantize(jnp.ones(2), levels, scale)
