"""The generic bilinear rule against its own edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pjax_core import nn, rules
from pjax_core.bilinear import Dots
from pjax_core.trace import trace_with_arrays

pytestmark = pytest.mark.usefixtures("x64")

DOTS = {
    "matrix": (lambda x, w: x @ w, (4, 5), (5, 3)),
    "batch": (lambda x, w: jnp.einsum("bij,bjk->bik", x, w), (2, 4, 5), (2, 5, 3)),
    "shared": (lambda x, w: jnp.einsum("bti,io->bto", x, w), (2, 4, 5), (5, 3)),
    "two contracted": (lambda x, w: jnp.einsum("bij,oij->bo", x, w), (4, 2, 3), (5, 2, 3)),
    "full": (lambda x, w: lax.dot_general(x, w, (((0,), (0,)), ((), ()))), (5,), (5,)),
    "mul": (lambda x, w: x * w, (4, 3), (4, 3)),
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


@pytest.mark.parametrize("name", DOTS)
def test_sums_over_edges(name):
    _, node, x, w = _node(name)
    dots = Dots(node)
    ex, ew = dots.expand(x, w)
    assert ex.shape == ew.shape
    assert ex.shape[:-1] == node.shape
    np.testing.assert_allclose((ex * ew).sum(-1), dots.product(x, w), rtol=1e-12)
    norm = jnp.broadcast_to(dots.norm((x, w), (x, w)), node.shape)
    np.testing.assert_allclose((ex**2 + ew**2).sum(-1), norm, rtol=1e-12)
    a, d = jax.random.normal(jax.random.key(7), (2, *node.shape))
    both = dots.contract((a[..., None] * ex + d[..., None] * ew, a[..., None] * ew + d[..., None] * ex))
    counts = dots.contract((jnp.ones_like(ex), jnp.ones_like(ew)))
    for position in (0, 1):
        np.testing.assert_allclose(dots.sums((a, d), (x, w), position), both[position], rtol=1e-10)
        np.testing.assert_allclose(
            jnp.broadcast_to(dots.total(jnp.ones(node.shape), position), counts[position].shape), counts[position]
        )
