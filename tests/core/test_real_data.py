"""Convolutions and recurrence on real data: 1,000 steps of AP and DR improve on data that they have not seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax
from experiments.data.idx import parse_idx
from pjax import nn, optim

pytestmark = [pytest.mark.slow, pytest.mark.shared]
OPTIMIZED = True

BATCH, CHARACTERS, SYMBOLS = 16, 32, 65
UPDATES = 20  # of 50 steps


class CNN(nn.Module):
    """Table 3's CNN 1x32."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(1, 32)
        self.relu = nn.ReLU(32)
        self.pool = nn.MaxPool()
        self.out = nn.Linear(32, 10)

    def __call__(self, x):
        return self.out(self.pool(self.relu(self.conv(x))))


class RNN(nn.Module):
    """Table 4's RNN 1x256: an MLP cell on the embedding and the state, by one scan."""

    def __init__(self, features=256, hidden=256):
        super().__init__()
        self.hidden = hidden
        self.embedding = nn.Embedding(SYMBOLS, features)
        self.linear, self.relu = nn.Linear(features + hidden, hidden), nn.ReLU(hidden)
        self.out, self.state = nn.Linear(hidden, SYMBOLS + hidden), nn.ReLU(hidden)

    def __call__(self, tokens):
        def cell(h, token):
            out = self.out(self.relu(self.linear(jnp.concatenate([self.embedding(token), h], -1))))
            return self.state(out[..., SYMBOLS:]), out[..., :SYMBOLS]

        _, logits = jax.lax.scan(cell, jnp.zeros((tokens.shape[0], self.hidden)), tokens.T)
        return logits


def _images(shared):
    folder = shared / "data" / "mnist"
    x, y = (
        parse_idx((folder / f"train-{name}.gz").read_bytes(), folder)
        for name in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    x = (x[..., None] / np.float32(255) - np.float32(0.1307)) / np.float32(0.3081)
    return jnp.asarray(x[:3000]), jnp.asarray(y[:3000].astype(np.int32))


def _text(shared):
    text = np.frombuffer((shared / "data" / "tiny_shakespeare" / "input.txt").read_bytes(), np.uint8)
    tokens = np.searchsorted(np.unique(text), text)[: 600 * (CHARACTERS + 1)].reshape(600, -1)
    return jnp.asarray(tokens[:, :-1], jnp.int32), jnp.asarray(tokens[:, 1:].swapaxes(0, 1), jnp.int32)


CASES = {"CNN 1x32 on MNIST": (CNN, _images, 0), "RNN 1x256 on Shakespeare": (RNN, _text, 1)}


@pytest.mark.parametrize("method", [optim.AlternatingProjections, optim.DouglasRachford])
@pytest.mark.parametrize("case", CASES)
def test_a_thousand_steps_improve(shared, case, method, capsys):
    make, load, axis = CASES[case]
    model, (x, y) = make(), load(shared)
    params = model.init(jax.random.key(0))
    test_x, test_y = x[-200:], jnp.take(y, jnp.arange(x.shape[0] - 200, x.shape[0]), axis)
    optimizer = method(50)

    @jax.jit
    def update(params, x, y):
        return optimizer.update(lambda p: nn.cross_entropy(model.apply(p, x), y), params)

    @jax.jit
    def evaluate(params):
        logits = model.apply(params, test_x)
        return nn.cross_entropy(logits, test_y).mean(), (logits.argmax(-1) == test_y).mean()

    start, before = evaluate(params)
    compiled = update.lower(params, x[:BATCH], jnp.take(y, jnp.arange(BATCH), axis)).compile()
    for i in range(UPDATES):
        rows = jnp.arange(i * BATCH, (i + 1) * BATCH)
        params, loss = compiled(params, x[rows], jnp.take(y, rows, axis))
        assert bool(jnp.isfinite(loss))
    end, after = evaluate(params)
    graph = pjax.trace(
        lambda p: nn.cross_entropy(model.apply(p, x[:BATCH]), jnp.take(y, jnp.arange(BATCH), axis)), params
    )
    memory = compiled.memory_analysis()
    assert memory is not None
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    with capsys.disabled():
        print(
            f"\n{case}, {method.__name__}: loss {start:.3f} -> {end:.3f}, accuracy {before:.1%} -> {after:.1%}; "
            f"{peak / 1e6:.0f} MB, edges alone {4 * graph.edges / 1e6:.0f} MB"
        )
    assert float(after) > float(before) + 0.02
    if method is optim.AlternatingProjections:
        assert peak < 4 * graph.edges
