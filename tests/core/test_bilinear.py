"""The generic bilinear rule against its own edges."""

import re

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import pjax
from pjax import nn, optim
from pjax_core import rules
from pjax_core.bilinear import Dots
from pjax_core.trace import trace_with_arrays

pytestmark = pytest.mark.usefixtures("x64")


def _conv(x, w, **options):
    return lax.conv_general_dilated(x, w, **({"window_strides": (1, 1), "padding": "VALID"} | options))


DOTS = {
    "matrix": (lambda x, w: x @ w, (4, 5), (5, 3)),
    "many": (lambda x, w: x @ w, (36, 5), (5, 3)),
    "many, a prime": (lambda x, w: jnp.einsum("bti,io->bto", x, w), (2, 37, 5), (5, 3)),
    "batch": (lambda x, w: jnp.einsum("bij,bjk->bik", x, w), (2, 4, 5), (2, 5, 3)),
    "shared": (lambda x, w: jnp.einsum("bti,io->bto", x, w), (2, 4, 5), (5, 3)),
    "two contracted": (lambda x, w: jnp.einsum("bij,oij->bo", x, w), (4, 2, 3), (5, 2, 3)),
    "full": (lambda x, w: lax.dot_general(x, w, (((0,), (0,)), ((), ()))), (5,), (5,)),
    "mul": (lambda x, w: x * w, (4, 3), (4, 3)),
    "conv": (_conv, (2, 3, 5, 4), (6, 3, 3, 2)),
    "conv of images": (
        lambda x, w: _conv(x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), window_strides=(2, 1)),
        (2, 5, 4, 3),
        (3, 2, 3, 6),
    ),
    "conv dilated, odd layouts": (
        lambda x, w: _conv(x, w, dimension_numbers=("HNCW", "WOIH", "CWNH"), rhs_dilation=(2, 1)),
        (7, 2, 3, 4),
        (2, 6, 3, 3),
    ),
    "conv of sequences": (
        lambda x, w: _conv(x, w, window_strides=(3,), dimension_numbers=("NWC", "WIO", "NWC")),
        (2, 11, 3),
        (4, 3, 5),
    ),
}


def _node(name):
    fun, *shapes = DOTS[name]
    params = {k: jax.random.normal(jax.random.key(i), s) for i, (k, s) in enumerate(zip("xw", shapes, strict=True))}

    def loss(p):
        out = fun(p["x"], p["w"])
        return nn.cross_entropy(
            out.reshape(-1, out.shape[-1] if out.ndim else 1),
            jnp.zeros(out.size // (out.shape[-1] if out.ndim else 1), int),
        )

    graph = trace_with_arrays(loss, params).graph
    node = next(n for n in graph.nodes if n.primitive in rules.bilinear_rules)
    x, w = (params["x"], params["w"])
    if node.operands[0].shape != x.shape:
        x, w = w, x
    return fun, node, jnp.asarray(x), jnp.asarray(w)


def test_every_bilinear_primitive_has_a_case():
    assert {_node(name)[1].primitive for name in DOTS} == set(rules.bilinear_rules)


PADDED = {
    "same": {"padding": "SAME"},
    "uneven": {"padding": [(2, 0), (0, 1)], "window_strides": (2, 1)},
    "cropped": {"padding": [(-1, 0), (0, 0)]},
    "transposed": {"padding": [(0, 0), (0, 0)], "lhs_dilation": (2, 2)},
}


@pytest.mark.parametrize("name", PADDED)
def test_a_padded_convolution_is_a_convolution_of_padded_images(name):
    """The padding is explicit zeros: constants that a projection moves and their node restores."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    start = jax.random.normal(jax.random.key(1), (6, 3, 3, 2)) / 3
    inside = _conv(x, start, **PADDED[name])
    labels = jnp.arange(inside[:, 0].size) % 6

    def loss_fn(w, padded):
        out = _conv(x, w, **PADDED[name]) if padded else _explicit(name, x, w)
        return nn.cross_entropy(jnp.moveaxis(out, 1, -1).reshape(-1, 6), labels)

    for representation in ("consensus", "edges"):
        a, b = (
            optim.AlternatingProjections(5, representation=representation).update(lambda w, p=p: loss_fn(w, p), start)
            for p in (True, False)
        )
        np.testing.assert_allclose(a.params, b.params, rtol=1e-9)
        np.testing.assert_allclose(a.loss, loss_fn(start, True).mean(), rtol=1e-9)


def _explicit(name, x, w):
    options = dict(PADDED[name])
    padding = [(1, 1), (0, 1)] if options["padding"] == "SAME" else options["padding"]
    gaps = options.pop("lhs_dilation", (1, 1))
    x = lax.pad(x, 0.0, [(0, 0, 0), (0, 0, 0), *((*p, g - 1) for p, g in zip(padding, gaps, strict=True))])
    return _conv(x, w, **{**options, "padding": "VALID"})


@pytest.mark.parametrize("name", ["feature_group_count", "batch_group_count"])
def test_grouped_convolutions_are_refused(name):
    x, w = jnp.ones((2, 4, 5, 5)), jnp.ones((6, 2 if name[0] == "f" else 4, 3, 3))

    def loss_fn(w):
        return nn.cross_entropy(_conv(x, w, **{name: 2}).reshape(2, -1), jnp.zeros(2, int))

    with pytest.raises(
        TypeError, match=rf"conv_general_dilated at \S*test_bilinear.py:\d+.*{name}=2 .* one convolution"
    ):
        pjax.trace(loss_fn, w)


@pytest.mark.parametrize("name", ["max", "average"])
def test_pooling_is_a_reduction_over_windows(name):
    """Flax's pooling equals the same reduction written over slices."""
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    start = jax.random.normal(jax.random.key(1), (3, 3))

    def pooled(h):
        pool = flax.linen.max_pool if name == "max" else flax.linen.avg_pool
        return pool(h, (2, 2), (2, 2))

    def sliced(h):
        corners = jnp.stack([h[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])
        return corners.max(0) if name == "max" else corners.mean(0)

    for representation in ("consensus", "edges"):
        a, b = (
            optim.AlternatingProjections(5, representation=representation).update(
                lambda w, f=f: nn.cross_entropy(jnp.asarray(f(x @ w)).reshape(-1, 3), jnp.arange(18) % 3), start
            )
            for f in (pooled, sliced)
        )
        np.testing.assert_allclose(a.params, b.params, rtol=1e-9)


def test_padded_max_pooling_is_refused():
    def loss_fn(w):
        h = flax.linen.max_pool(jnp.ones((1, 4, 4, 3)) @ w, (2, 2), padding="SAME")
        return nn.cross_entropy(h.reshape(-1, 3), jnp.zeros(16, int))

    with pytest.raises(TypeError, match="entries of -inf"):
        pjax.trace(loss_fn, jnp.ones((3, 3)))


@pytest.mark.parametrize("name", DOTS)
def test_sums_over_edges(name):
    _, node, x, w = _node(name)
    dots = Dots(node)
    ex, ew = dots.expand(x, w)
    assert ex.shape == ew.shape
    assert ex.shape[:-1] == node.shape
    np.testing.assert_allclose((ex * ew).sum(-1), dots.product(x, w), rtol=1e-12)
    norm = jnp.broadcast_to(sum(dots.norms((x, w), (x, w))), node.shape)
    np.testing.assert_allclose((ex**2 + ew**2).sum(-1), norm, rtol=1e-12)
    a, d = jax.random.normal(jax.random.key(7), (2, *node.shape))
    copies = a[..., None] * ex + d[..., None] * ew, a[..., None] * ew + d[..., None] * ex
    both = dots.contract(copies)
    for ours, transposed in zip(both, jax.linear_transpose(dots.expand, x, w)(copies), strict=True):
        np.testing.assert_allclose(ours, transposed, rtol=1e-10)
    counts = dots.contract((jnp.ones_like(ex), jnp.ones_like(ew)))
    sums, totals = dots.sums(a, d, (x, w)), dots.total(jnp.ones(node.shape))
    for position in (0, 1):
        np.testing.assert_allclose(sums[position], both[position], rtol=1e-10)
        np.testing.assert_allclose(totals[position], counts[position])


@pytest.mark.parametrize("name", ["matmul", "conv", "patches"])
@pytest.mark.parametrize("representation", ["consensus", "edges", "history"])
def test_the_precision_of_a_product_is_kept(name, representation):
    """In the product, its transposes and the forward pass; by argument or by JAX's context around the loss."""
    x, y = jnp.ones((4, 5, 3)), jnp.zeros(4, int)

    def loss_fn(w, precision):
        if name == "matmul":
            return nn.cross_entropy(jnp.matmul(x[:, 0], w, precision=precision), y)
        layout = ("NWC", "WIO", "NWC")
        out = lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=layout, precision=precision)
        return nn.cross_entropy(out[:, 0], y)

    def precisions(loss_fn):
        make = optim.DouglasRachford if representation == "history" else optim.AlternatingProjections
        update = make(2, representation=representation).update
        shape = {"matmul": (3, 2), "conv": (3, 3, 2), "patches": (3, 3, 18)}[name]
        text = str(jax.make_jaxpr(lambda w: update(loss_fn, w))(jnp.ones(shape)))
        found = re.findall(r"\bprecision=(\S+(?: \S+\))?)", text)
        assert len(found) == text.count("dot_general[") + text.count("conv_general_dilated[") > 0
        return set(found)

    def by_context(w):
        with jax.default_matmul_precision("highest"):
            return loss_fn(w, None)

    assert precisions(by_context) == {"(Precision.HIGHEST, Precision.HIGHEST)"}
    assert precisions(lambda w: loss_fn(w, lax.Precision.HIGH)) == {"(Precision.HIGH, Precision.HIGH)"}
