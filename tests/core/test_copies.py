"""Copies that agree: what is kept of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pjax import nn, optim
from pjax import numpy as pnp
from tests.core.networks import blobs, feasibility

AP = optim.AlternatingProjections


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("part", [4, 5])
def test_of_a_producer_an_operand_that_is_a_small_part_keeps_that_part(part):
    """Parts of a parameter and of a constraint, which overlap; each has elements whose copies nobody reads."""
    x, y = blobs(8, 6, 3)
    w = jax.random.normal(jax.random.key(0), (6, 8), x.dtype)
    start = {"w": w, "v": w[:3, :3] / 2, "b": jnp.zeros((8, 8), x.dtype)}

    def loss_fn(p):
        first, second = (pnp.sum_relu(x @ p["w"][:, i : i + part], p["b"][:, :part]) for i in (0, 3))
        return nn.cross_entropy(first[:, :3] @ p["v"] + second[:, -3:] @ p["v"].T, y)

    consensus, edges = (AP(6, representation=r).update(loss_fn, start).params for r in ("consensus", "edges"))
    for k in start:
        np.testing.assert_allclose(consensus[k], edges[k], rtol=1e-9, atol=1e-12)
    assert np.all(consensus["b"][:, -1] == 0)
    held = {a.shape for z in feasibility(loss_fn, start, AP(6)).start().values() for a in z.values()}
    assert ((6, 4) in held) == (part == 4)
    assert ((6, 8) in held) == (part == 5)
