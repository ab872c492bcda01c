"""Recurrence as Flax writes it."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pjax import nn
from tests.core.test_recurrence import AP, CLASSES, DR, STEPS, WIDTH, data


class Cell(flax.linen.Module):
    """Dense and ReLU of the input beside the state."""

    @flax.linen.compact
    def __call__(self, h, x):
        h = flax.linen.relu(flax.linen.Dense(WIDTH)(jnp.concatenate([x, h], -1)))
        return h, flax.linen.Dense(CLASSES)(h)


class Scanned(flax.linen.Module):
    unroll: bool

    @flax.linen.compact
    def __call__(self, h, x):
        if self.unroll:
            cell = Cell(name="cell")
            ys = []
            for x_t in x:
                h, y = cell(h, x_t)
                ys.append(y)
            return jnp.stack(ys)
        cell = flax.linen.scan(Cell, variable_broadcast="params", split_rngs={"params": False})
        return cell(name="cell")(h, x)[1]


class Layer(flax.linen.recurrent.RNNCellBase):
    """The same as a cell of flax.linen.RNN."""

    @flax.linen.compact
    def __call__(self, h, x):
        h = flax.linen.relu(flax.linen.Dense(WIDTH)(jnp.concatenate([x, h], -1)))
        return h, h

    @flax.linen.nowrap
    def initialize_carry(self, rng, input_shape):
        del rng
        return jnp.zeros((*input_shape[:-1], WIDTH))

    @property
    def num_feature_axes(self) -> int:
        return 1


@pytest.mark.usefixtures("x64")
def test_flax_scan_is_its_unrolled_cell():
    x, y, h, _ = data()
    start = jax.tree.map(lambda a: a.astype(x.dtype), Scanned(False).init(jax.random.key(0), h, x))
    results = [
        AP(STEPS).update(lambda p, m=m: nn.cross_entropy(jnp.asarray(m.apply(p, h, x)), y), start).params
        for m in (Scanned(False), Scanned(True))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), *results)


@pytest.mark.parametrize("make", [AP, DR], ids=["AP", "DR"])
def test_flax_rnn_trains(make):
    x, y, _, _ = data()
    model = flax.linen.Sequential([flax.linen.RNN(Layer(), time_major=True), flax.linen.Dense(CLASSES)])
    params, losses = model.init(jax.random.key(0), x), []
    for _ in range(6):
        params, loss = make(40).update(lambda p: nn.cross_entropy(jnp.asarray(model.apply(p, x)), y), params)
        losses.append(float(loss))
    assert losses[-1] < 0.3 * losses[0]
