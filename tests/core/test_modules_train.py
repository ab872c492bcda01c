"""Networks of the modules train."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pjax import nn, optim
from tests.core.networks import MLP, blobs

OPTIMIZED = True


class CNN(nn.Module):
    """Two convolutions, max-pooling, a linear output: the paper's, small."""

    def __init__(self):
        super().__init__()
        self.convs = [nn.Conv2D(1, 8), nn.Conv2D(8, 8)]
        self.relus = [nn.ReLU(8), nn.ReLU(8)]
        self.pool = nn.MaxPool()
        self.out = nn.Linear(8, 3)

    def __call__(self, x):
        for conv, relu in zip(self.convs, self.relus, strict=True):
            x = relu(conv(x))
        return self.out(self.pool(x))


class QuantizedMLP(nn.Module):
    """Five levels between two linear maps: no gradient reaches the first."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(6, 24)
        self.step = nn.Quantize(5)
        self.out = nn.Linear(24, 3)

    def __call__(self, x):
        return self.out(self.step(self.hidden(x)))


class Regression(MLP):
    """Numbers instead of classes."""

    def __init__(self):
        super().__init__((2, 32, 1))


def strokes():
    """Images of a horizontal, a vertical or a diagonal stroke at a random place, with noise."""
    rng = np.random.default_rng(0)
    shapes = np.stack([np.eye(3)[[1, 1, 1]].T, np.eye(3)[[1, 1, 1]], np.eye(3)])
    y = rng.integers(3, size=48)
    x = rng.normal(size=(48, 6, 6)) * 0.1
    for image, label in zip(x, y, strict=True):
        i, j = rng.integers(4, size=2)
        image[i : i + 3, j : j + 3] += shapes[label]
    return jnp.asarray(x[..., None], jnp.float32), jnp.asarray(y)


def curve():
    x = jax.random.uniform(jax.random.key(0), (64, 2), minval=-1, maxval=1)
    return x, jnp.abs(x[:, :1] - x[:, 1:])


TASKS = {
    "CNN": (CNN, nn.cross_entropy, strokes),
    "quantised MLP": (QuantizedMLP, nn.cross_entropy, lambda: blobs(64, 6, 3, jnp.float32)),
    "regression": (Regression, nn.squared_error, curve),
}


@pytest.mark.parametrize("method", [optim.AlternatingProjections(30), optim.DouglasRachford(30)], ids=["AP", "DR"])
@pytest.mark.parametrize("task", TASKS)
def test_networks_of_the_modules_train(task, method):
    make, loss, data = TASKS[task]
    model, (x, y) = make(), data()
    start = params = model.init(jax.random.key(0))
    losses = []
    for _ in range(30):
        params, mean = method.update(lambda p: loss(model.apply(p, x), y), params)
        losses.append(float(mean))
    assert losses[-1] < 0.6 * losses[0]
    first = next(name for name in params if name.split(".")[0] in ("convs", "hidden", "linears"))
    moved = float(jnp.abs(params[first] - start[first]).max())
    # By AP targets move little, and within a level a quantiser hands nothing on; a reflection goes further.
    assert moved > 1e-3 or isinstance(method, optim.AlternatingProjections)
    assert moved > 0 or task == "quantised MLP"
