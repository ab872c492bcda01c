"""Networks, data and comparisons that the engine's tests share."""

import itertools

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np

from pjax_core import nn


class MLP(nn.Module):
    """Hidden layers of equal width; ``skip`` feeds all of them to the output."""

    def __init__(self, sizes, *, skip=False):
        super().__init__()
        *widths, classes = sizes
        self.skip = skip
        self.linears = [nn.Linear(i, o) for i, o in itertools.pairwise(widths)]
        self.relus = [nn.ReLU(o) for o in widths[1:]]
        self.out = nn.Linear(sum(widths[1:]) if skip else widths[-1], classes)

    def __call__(self, x):
        hidden = []
        for linear, relu in zip(self.linears, self.relus, strict=True):
            x = relu(linear(x))
            hidden.append(x)
        return self.out(jnp.concatenate(hidden, -1) if self.skip else x)


class FlaxMLP(flax.linen.Module):
    """A plain Flax network, biases everywhere."""

    @flax.linen.compact
    def __call__(self, x):
        x = flax.linen.relu(flax.linen.Dense(24)(x))
        x = flax.linen.relu(flax.linen.Dense(16)(x))
        return flax.linen.Dense(5)(x)


ARCHITECTURES = {
    "1 layer": ((12, 20, 5), False),
    "1 layer, skip": ((12, 20, 5), True),
    "4 layers": ((12, 16, 16, 16, 16, 5), False),
    "4 layers, skip": ((12, 16, 16, 16, 16, 5), True),
}


def blobs(batch: int, features: int, classes: int, dtype=None):
    """Classes that a small network can separate."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(classes, features))
    y = rng.integers(classes, size=batch)
    x = centres[y] + 0.5 * rng.normal(size=(batch, features))
    return jnp.asarray(x, dtype), jnp.asarray(y)


def network(sizes, *, skip=False, batch=32):
    """Loss function and parameters of an MLP on blobs, in the data's precision."""
    model = MLP(sizes, skip=skip)
    x, y = blobs(batch, sizes[0], sizes[-1])
    params = jax.tree.map(lambda a: a.astype(x.dtype), model.init(jax.random.key(3)))
    return (lambda p: nn.cross_entropy(model.apply(p, x), y)), params


def problem(name: str):
    """Loss function and parameters of a test architecture."""
    sizes, skip = ARCHITECTURES[name]
    return network(sizes, skip=skip)


def relative_error(params, reference, start) -> float:
    """Largest distance of a parameter array from the reference, over how far the reference moved."""
    return max(
        float(jnp.linalg.norm(params[k] - reference[k]) / jnp.linalg.norm(reference[k] - start[k])) for k in start
    )


def patches(x: np.ndarray, kernel_shape: tuple[int, int], strides: tuple[int, int] = (1, 1)) -> np.ndarray:
    """Patches of images ``(..., height, width, channels)`` copied one number at a time; the window is innermost."""
    *lead, height, width, channels = x.shape
    (kernel_height, kernel_width), (down, right) = kernel_shape, strides
    images = x.reshape(-1, height, width, channels)
    rows, columns = (height - kernel_height) // down + 1, (width - kernel_width) // right + 1
    out = np.zeros((len(images), rows, columns, kernel_height * kernel_width * channels))
    for n, row, column in np.ndindex(out.shape[:-1]):
        for k, (i, j, c) in enumerate(np.ndindex(kernel_height, kernel_width, channels)):
            out[n, row, column, k] = images[n, row * down + i, column * right + j, c]
    return out.reshape(*lead, *out.shape[1:])
