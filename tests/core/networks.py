"""Networks, data and comparisons that the engine's tests share."""

import itertools

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pjax import nn
from pjax_core.problem import Problem
from pjax_core.trace import trace_with_arrays


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


def feasibility(loss_fn, start, method) -> Problem:
    """What a method solves, outside its compiled program."""
    graph, program, captured, constants, indices = trace_with_arrays(loss_fn, start)
    values = graph.values(program.values(captured, jax.tree.leaves(start)), constants, indices)
    return Problem(graph, values, indices, method)


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


# The zoo: one small network per kind of architecture.


class CNN(nn.Module):
    """Two convolutions of 3 x 3 with ReLU, pooled over space; ``skip`` feeds both pooled layers to the output."""

    def __init__(self, channels, filters, classes, *, skip=False):
        super().__init__()
        self.convs = [nn.Conv2D(channels, filters), nn.Conv2D(filters, filters)]
        self.relus = [nn.ReLU(filters), nn.ReLU(filters)]
        self.pool = nn.MaxPool()
        self.out = nn.SkipReadout([filters] * (2 if skip else 1), classes)
        self.skip = skip

    def __call__(self, x):
        pooled = []
        for conv, relu in zip(self.convs, self.relus, strict=True):
            x = relu(conv(x))
            pooled.append(self.pool(x))
        return self.out(*(pooled if self.skip else pooled[-1:]))


class RNN(nn.Module):
    """The paper's cell (Section 5.2): an MLP of the token's embedding and the state gives logits and the next state."""

    def __init__(self, tokens, features, hidden, state):
        super().__init__()
        self.embedding = nn.Embedding(tokens, features)
        self.linear, self.relu = nn.Linear(features + state, hidden), nn.ReLU(hidden)
        self.out = nn.Linear(hidden, tokens + state)
        self.tokens, self.state = tokens, state

    def cell(self, h, token):
        hidden = self.relu(self.linear(jnp.concatenate([self.embedding(token), h], -1)))
        logits, raw = jnp.split(self.out(hidden), [self.tokens], -1)
        return jax.nn.relu(raw), logits

    def __call__(self, tokens, reverse=False, unroll=False):
        """Map tokens ``(time, batch)`` to logits ``(time, batch, tokens)``."""
        h = jnp.zeros((tokens.shape[1], self.state), self.relu.bias.dtype)
        if not unroll:
            return lax.scan(self.cell, h, tokens, reverse=reverse)[1]
        logits = [h] * len(tokens)
        for t in reversed(range(len(tokens))) if reverse else range(len(tokens)):
            h, logits[t] = self.cell(h, tokens[t])
        return jnp.stack(logits)


class QuantizedMLP(nn.Module):
    """One hidden layer whose values are rounded to nine levels."""

    def __init__(self, features, hidden, classes):
        super().__init__()
        self.linear, self.quantize, self.out = nn.Linear(features, hidden), nn.Quantize(9), nn.Linear(hidden, classes)

    def __call__(self, x):
        return self.out(self.quantize(self.linear(x)))


class ResidualMLP(nn.Module):
    """Blocks ``h + relu(h W + b) V``, each of which needs an identity (Theorem 4)."""

    def __init__(self, features, width, classes, blocks):
        super().__init__()
        self.into, self.out = nn.Linear(features, width), nn.Linear(width, classes)
        self.linears = [nn.Linear(width, width) for _ in range(blocks)]
        self.relus = [nn.ReLU(width) for _ in range(blocks)]
        self.backs = [nn.Linear(width, width) for _ in range(blocks)]

    def __call__(self, x):
        h = self.into(x)
        for linear, relu, back in zip(self.linears, self.relus, self.backs, strict=True):
            h = h + back(relu(linear(h)))
        return self.out(h)


def initial(model, dtype):
    """Parameters of a module, small random biases among them, the same numbers in every precision."""
    with jax.enable_x64(False):
        params = model.init(jax.random.key(3))
        keys = jax.random.split(jax.random.key(4), len(params))
        noise = {k: 0.1 * jax.random.normal(key, params[k].shape) for k, key in zip(params, keys, strict=True)}
    return {k: jnp.asarray(noise[k] if k.endswith("bias") else a, dtype) for k, a in params.items()}


def images(shape, classes, batch=8):
    """Blobs ``(batch, *shape)`` and their classes."""
    x, y = blobs(batch, int(np.prod(shape)), classes)
    return x.reshape(batch, *shape), y


def sentences(steps, batch, tokens):
    """Tokens ``(time, batch)`` and the next ones: a walk through the alphabet with random steps."""
    walk = np.cumsum(np.random.default_rng(1).integers(1, 3, (steps + 1, batch)), 0) % tokens
    return jnp.asarray(walk[:-1]), jnp.asarray(walk[1:])


ZOO = {  # model and data
    "MLP": lambda: (MLP((6, 8, 7, 3)), *images((6,), 3)),
    "MLP, skip": lambda: (MLP((6, 8, 7, 3), skip=True), *images((6,), 3)),
    "CNN": lambda: (CNN(2, 4, 3), *images((5, 5, 2), 3)),
    "CNN, skip": lambda: (CNN(2, 4, 3, skip=True), *images((5, 5, 2), 3)),
    "RNN": lambda: (RNN(tokens=5, features=4, hidden=6, state=4), *sentences(4, 8, 5)),
    "quantised MLP": lambda: (QuantizedMLP(6, 8, 3), *images((6,), 3)),
    "residual": lambda: (ResidualMLP(6, 8, 3, blocks=1), *images((6,), 3)),
}


def zoo(name):
    """Loss function and parameters of a network of the zoo, in the precision of the day."""
    model, x, y = ZOO[name]()
    return (lambda p: nn.cross_entropy(model.apply(p, x), y)), initial(model, jnp.zeros(()).dtype)
