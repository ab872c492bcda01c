"""The networks of Tables 2 to 4: what they compute, and that gradients and projections train the same module."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baselines.cnn import CNN
from baselines.mlp import MLP
from baselines.rnn import RNN
from pjax import nn, optim

IMAGES = np.random.default_rng(0).normal(size=(6, 8, 8, 2)).astype(np.float32)
TOKENS = np.random.default_rng(0).integers(0, 7, (6, 5))
NETWORKS = {
    "MLP": (MLP((9, 9), 7), IMAGES.reshape(6, -1)),
    "MLP, skip": (MLP((9, 9), 7, skip=True), IMAGES.reshape(6, -1)),
    "CNN": (CNN((9, 9), 7), IMAGES),
    "CNN, skip": (CNN((9, 9), 7, skip=True), IMAGES),
    "RNN": (RNN((9, 9), 7), TOKENS),
    "RNN, skip": (RNN((9, 9), 7, skip=True), TOKENS),
}


def _dense(params, x):
    return x @ params["kernel"] + params.get("bias", 0)


def _mlp(params, x, *, skip):
    *hidden, last = (params[f"Dense_{i}"] for i in range(len(params)))
    layers = [x]
    for layer in hidden:
        layers.append(np.maximum(_dense(layer, layers[-1]), 0))
    return _dense(last, np.concatenate(layers[1:], -1) if skip else layers[-1])


@pytest.mark.parametrize("skip", [False, True])
def test_rnn_is_the_loop_of_section_5(skip):
    model = RNN((9, 9), 7, skip=skip, output_bias=False)
    params = model.init(jax.random.key(0), TOKENS)
    logits = np.asarray(model.apply(params, TOKENS))
    tree = jax.tree.map(np.asarray, params["params"])
    state, expected = np.zeros((6, 9)), []
    for tokens in TOKENS.T:
        out = _mlp(
            tree["ScanCell_0"]["MLP_0"], np.concatenate([tree["Embed_0"]["embedding"][tokens], state], -1), skip=skip
        )
        state = np.maximum(out[:, 7:], 0)
        expected.append(out[:, :7])
    np.testing.assert_allclose(logits, np.stack(expected, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("skip", [False, True])
def test_cnn_pools_over_space(skip):
    """A pattern anywhere in the image, off the border, gives the same logits."""
    model = CNN((9, 9), 7, skip=skip)
    image = np.zeros((2, 12, 12, 2), np.float32)
    image[0, 3:6, 4:7], image[1, 6:9, 5:8] = IMAGES[0, :3, :3], IMAGES[0, :3, :3]
    logits = np.asarray(model.apply(model.init(jax.random.key(0), image), image))
    one, other = logits
    np.testing.assert_allclose(one, other, rtol=1e-5)
    assert np.abs(one).max() > 1e-3


@pytest.mark.matrix
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", [optim.AlternatingProjections, optim.CyclicProjections, optim.DouglasRachford])
def test_projections_train_every_architecture(network, method):
    model, x = NETWORKS[network]
    params = model.clone(output_bias=False).init(jax.random.key(0), x)
    labels = jnp.asarray(TOKENS if x is TOKENS else TOKENS[:, 0])

    def loss_fn(p):
        return nn.cross_entropy(jnp.asarray(model.clone(output_bias=False).apply(p, x)), labels)

    losses = []
    for _ in range(4):
        params, loss = method(20).update(loss_fn, params)
        losses.append(float(loss))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("network", NETWORKS)
def test_an_output_bias_is_one_array_more(network):
    model, x = NETWORKS[network]
    with_bias, without = (model.clone(output_bias=b).init(jax.random.key(0), x) for b in (True, False))
    assert len(jax.tree.leaves(with_bias)) == len(jax.tree.leaves(without)) + 1
