"""Copies that agree: what is kept of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pjax import nn, optim
from pjax import numpy as pnp
from tests.core.networks import blobs, feasibility

METHODS = {"AP": optim.AlternatingProjections, "CP": optim.CyclicProjections}


def _problem():
    """Parts of parameters and of a constraint: they overlap, some copies nobody reads, one is read whole, too."""
    x, y = blobs(8, 6, 3)
    w = jax.random.normal(jax.random.key(0), (6, 8), x.dtype)
    start = {"w": w, "v": w.reshape(2, 8, 3) / 2, "b": w[:1] / 4}

    def loss_fn(p):
        first, second = (
            pnp.sum_relu(x @ p["w"][:, i : i + 4], jnp.broadcast_to(p["b"][:, :4], (8, 4))) for i in (0, 3)
        )
        both = pnp.sum_relu(x @ p["w"])
        halves = both[:, :4] * first + both[:, 4:] * second
        rest = both @ p["v"][1]
        # Half of the last class's outputs nobody reads, so that its weights have fewer copies.
        rest = jnp.concatenate([rest[:, :2], jnp.concatenate([rest[:4, 2:]] * 2)], axis=1)
        return nn.cross_entropy(halves[:, :3] @ p["v"][0, :3].T + rest, y)

    return loss_fn, start


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_parts_are_edges(make):
    loss_fn, start = _problem()
    consensus, edges = (make(6, representation=r).update(loss_fn, start).params for r in ("consensus", "edges"))
    for k in start:
        np.testing.assert_allclose(consensus[k], edges[k], rtol=1e-9, atol=1e-12)
        assert np.any(consensus[k] != start[k])
    np.testing.assert_array_equal(consensus["b"][:, 4:], start["b"][:, 4:])
    np.testing.assert_array_equal(consensus["v"][0, 3:], start["v"][0, 3:])


def test_of_a_producer_an_operand_that_is_a_small_part_keeps_that_part():
    """What the part's size is; whole is what is read whole, or by more than half."""
    loss_fn, start = _problem()
    problem = feasibility(loss_fn, start, optim.AlternatingProjections(6))
    held = {
        (problem.graph.nodes[p].name, a.shape)
        for z in problem.start().values()
        for (_, p), a in z.items()
        if problem.graph.nodes[p].kind == "parameter"
    }
    assert held == {("w", (6, 4)), ("w", (6, 8)), ("b", (1, 8)), ("v", (3, 3)), ("v", (8, 3))}
    assert sum(a.shape == (8, 4) for z in problem.start().values() for a in z.values()) >= 4
