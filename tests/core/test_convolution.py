"""The convolution with fast gradients equals JAX's: values, gradients, errors, in any layout and inside Flax."""

import re

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import pjax

pytestmark = pytest.mark.usefixtures("x64")

LAYOUTS = [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("HNCW", "WOIH", "CWNH")]


def _operands(layout, size=7, channels=(2, 5), groups=1):
    """Arrays of a layout: three images of (size, 9), windows of (3, 2)."""
    axes = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, layout)
    x = jax.random.normal(jax.random.key(0), (3, channels[0] * groups, size, 9))
    w = jax.random.normal(jax.random.key(1), (channels[1] * groups, channels[0], 3, 2))
    return x.transpose(np.argsort(axes.lhs_spec).tolist()), w.transpose(np.argsort(axes.rhs_spec).tolist())


def _assert_equal(operands, *args, rtol=1e-10, **options):
    """Assert values and both gradients, for a random cotangent, compiled."""
    expected, transpose = jax.vjp(lambda x, w: lax.conv_general_dilated(x, w, *args, **options), *operands)
    cotangent = jax.random.normal(jax.random.key(2), expected.shape, expected.dtype)

    @jax.jit
    def pulled(x, w):
        out, pull = jax.vjp(lambda x, w: pjax.conv_general_dilated(x, w, *args, **options), x, w)
        return out, *pull(cotangent)

    for ours, theirs in zip(pulled(*operands), (expected, *transpose(cotangent)), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol * 10)


PADDINGS = ((0, 0), (0, 0)), ((1, 1), (0, 2)), ((-1, 2), (1, 0))


@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
@pytest.mark.parametrize("gaps", [(1, 1), (1, 2)])
def test_gradients_are_those_of_jax(strides, dilation, gaps):
    """Sizes that strides divide and sizes that they do not; the layouts and paddings take turns."""
    turn = sum(strides) + 2 * sum(dilation) + sum(gaps)
    layout = LAYOUTS[turn % 3]
    for size, padding in ((7, PADDINGS[(turn + 1) % 3]), (8, PADDINGS[(turn + 2) % 3])):
        options = {"lhs_dilation": gaps, "rhs_dilation": dilation, "dimension_numbers": layout}
        _assert_equal(_operands(layout, size), strides, padding, **options)


@pytest.mark.parametrize("padding", ["SAME", "same", "SAME_LOWER", "VALID"])
def test_padding_by_name_and_defaults(padding):
    _assert_equal(_operands(LAYOUTS[1]), (2, 3), padding, rhs_dilation=(2, 1))


def test_one_and_three_axes_of_space():
    for rank in (1, 3):
        x = jax.random.normal(jax.random.key(0), (2, 3, *(6, 5, 4)[:rank]))
        w = jax.random.normal(jax.random.key(1), (4, 3, *(3, 2, 2)[:rank]))
        _assert_equal((x, w), (2,) * rank, "SAME")


def test_groups_and_element_types_are_left_to_jax():
    _assert_equal(_operands(LAYOUTS[0], groups=2), (1, 1), "SAME", dimension_numbers=LAYOUTS[0], feature_group_count=2)
    x, w = (a.astype(jnp.bfloat16) for a in _operands(LAYOUTS[0]))
    options = {"dimension_numbers": LAYOUTS[0], "preferred_element_type": jnp.float32}
    _assert_equal((x, w), (1, 1), "SAME", rtol=1e-2, **options)


def test_single_precision_and_precision():
    operands = tuple(a.astype(jnp.float32) for a in _operands(LAYOUTS[0]))
    options = {"dimension_numbers": LAYOUTS[0], "precision": lax.Precision.HIGHEST}
    _assert_equal(operands, (1, 1), "SAME", rtol=2e-5, **options)


def test_maps_over_both_operands():
    x, w = (jnp.stack([a, 2 * a]) for a in _operands(LAYOUTS[0]))

    def gradients(convolve):
        def loss(x, w):
            return jnp.sum(jnp.sin(convolve(x, w, (1, 1), "SAME", dimension_numbers=LAYOUTS[0])))

        return jax.jit(jax.vmap(jax.grad(loss, (0, 1))))(x, w)

    for ours, theirs in zip(gradients(pjax.conv_general_dilated), gradients(lax.conv_general_dilated), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_flax_module_has_the_same_gradients():
    x = jax.random.normal(jax.random.key(0), (2, 6, 5, 3))
    options = {"features": 4, "kernel_size": (3, 2), "strides": (2, 1)}
    plain = flax.linen.Conv(**options)
    fast = flax.linen.Conv(**options, conv_general_dilated_cls=lambda: pjax.conv_general_dilated)
    params = plain.init(jax.random.key(1), x)
    ours, theirs = (
        jax.grad(lambda p, m=m: jnp.sum(jnp.sin(jnp.asarray(m.apply(p, x)))))(params) for m in (fast, plain)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), ours, theirs)


def test_named_padding_of_a_dilated_image_is_refused():
    with pytest.raises(ValueError, match=r"lhs_dilation=\(2, 1\): give the padding of every axis as numbers"):
        pjax.conv_general_dilated(*_operands(LAYOUTS[1]), (1, 1), "SAME", (2, 1))


def test_nothing_is_left_to_the_slow_loop_of_processors():
    """Every convolution of a compiled gradient has the plain order of axes and no window turned round."""
    operands = tuple(a.astype(jnp.float32) for a in _operands(LAYOUTS[0], channels=(16, 16)))

    def convolutions(convolve):
        def loss(x, w):
            return jnp.sum(jnp.sin(convolve(x, w, (1, 1), "SAME", dimension_numbers=LAYOUTS[0])))

        lowered = jax.jit(jax.grad(loss, (0, 1))).lower(*operands).as_text()
        return re.findall(r"stablehlo.convolution.*?dim_numbers = (\S+ .*?), window = \{(.*?)\}", lowered)

    plain = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"
    ours, theirs = convolutions(pjax.conv_general_dilated), convolutions(lax.conv_general_dilated)
    assert len(ours) == len(theirs) == 3
    assert all(axes == plain and "true" not in window for axes, window in ours), ours
    assert not all(axes == plain for axes, _ in theirs), "JAX's own are plain: this module is not needed any more"


def test_the_precision_at_the_call_is_that_of_all_three_convolutions():
    operands = tuple(a.astype(jnp.float32) for a in _operands(LAYOUTS[0]))

    def loss(x, w):
        with jax.default_matmul_precision("highest"):
            return jnp.sum(jnp.sin(pjax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAYOUTS[0])))

    for platform in ("cpu", "cuda"):
        lowered = jax.jit(jax.grad(loss, (0, 1))).trace(*operands).lower(lowering_platforms=(platform,)).as_text()
        found = re.findall(r"stablehlo.convolution.*?precision_config = \[(.*?)\]", lowered)
        assert found == ["#stablehlo<precision HIGHEST>, #stablehlo<precision HIGHEST>"] * 3


def test_an_empty_output_has_gradients_of_zero():
    x, w = jnp.ones((1, 1, 2, 2)), jnp.ones((1, 1, 3, 3))
    for gradient in jax.grad(lambda x, w: pjax.conv_general_dilated(x, w, (2, 2), "VALID").sum(), (0, 1))(x, w):
        assert not gradient.any()
