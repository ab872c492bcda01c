"""Architectures behind their registry: sizes, what they read, initial values."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import baselines
from experiments import runner
from experiments.compose import choices, compose_run
from experiments.config import UsageError
from experiments.models import INITIALIZERS, arrange, build_model
from experiments.runner import execute, refusals

SAMPLES = {
    "mnist": np.zeros((3, 28, 28, 1), np.float32),
    "cifar10": np.zeros((3, 32, 32, 3), np.float32),
    "higgs": np.zeros((3, 28), np.float32),
    "shakespeare": np.zeros((3, 64), np.int32),
}
MLP, CNN, RNN, QUANTIZED = "mlp", "cnn", "rnn", "quantized"


def parameters(*overrides: str) -> Any:
    """Initial parameters of a cell's network."""
    config = compose_run(overrides)
    x = arrange(config, SAMPLES[config.dataset.name])
    return jax.jit(build_model(config).init)(jax.random.key(0), x)["params"]


def dense(*widths: int, bias: int) -> int:
    """Numbers in dense layers of these widths, the last with or without a bias."""
    return sum(i * o + o for i, o in itertools.pairwise(widths)) - (0 if bias else widths[-1])


def expected_parameters(data: str, model: str, bias: int) -> int:
    """Counted by hand from Section 5.2."""
    family, size, *skip = model.split("_")
    if family == QUANTIZED:  # no network of the paper
        return dense(784, 128, 10, bias=bias)
    depth, width = map(int, size.split("x"))
    classes = {"higgs": 2, "shakespeare": 65}.get(data, 10)
    if family == MLP:
        inputs = {"mnist": 784, "cifar10": 3072, "higgs": 28}[data]
    elif family == CNN:
        inputs = {"mnist": 9, "cifar10": 27}[data]
        hidden = inputs * width + width + (depth - 1) * (9 * width * width + width)
        return hidden + dense(width * (depth if skip else 1), classes, bias=bias)
    else:
        inputs, classes = 2 * width, classes + width
    hidden = dense(inputs, *[width] * depth, bias=1)
    readout = dense(width * (depth if skip else 1), classes, bias=bias)
    return hidden + readout + (65 * width if family == RNN else 0)


@pytest.mark.parametrize("task", choices("task"))
def test_every_row_of_the_tables_has_the_published_sizes(task: str) -> None:
    for method, bias in (("adam", 1), ("dr", 0)):
        config = compose_run([f"task={task}", f"method={method}"])
        x = arrange(config, SAMPLES[config.dataset.name])
        shapes = jax.eval_shape(build_model(config).init, jax.random.key(0), x)
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        assert count == expected_parameters(config.dataset.name, config.model.name, bias)


@pytest.mark.parametrize("task", ["mnist-mlp_1x128", "mnist-cnn_1x32", "shakespeare-rnn_1x256"])
def test_logits_come_by_sample_or_by_position(task: str) -> None:
    config = compose_run([f"task={task}"])
    model, x = build_model(config), arrange(config, SAMPLES[config.dataset.name])
    logits = jax.eval_shape(lambda key: model.apply(model.init(key, x), x), jax.random.key(0))
    assert isinstance(logits, jax.ShapeDtypeStruct)
    assert logits.shape == ((3, 64, 65) if config.model.family == RNN else (3, 10))


NONSENSE = [
    ("higgs", "cnn_1x32", "reads images, and data set 'higgs' has features"),
    ("shakespeare", "cnn_1x32", "reads images, and data set 'shakespeare' has tokens"),
    ("shakespeare", "mlp_1x256", "reads features, and data set 'shakespeare' has tokens"),
    ("mnist", "rnn_1x256", "reads tokens, and data set 'mnist' has images"),
    ("higgs", "rnn_1x256", "reads tokens, and data set 'higgs' has features"),
]


@pytest.mark.parametrize(("data", "model", "message"), NONSENSE)
def test_a_network_that_cannot_read_the_data_is_refused_before_they_are_read(
    data: str, model: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: object) -> None:
        pytest.fail("the data were read")

    monkeypatch.setattr("experiments.data.load", load)
    overrides = [f"dataset={data}", f"model={model}", f"paths.results={tmp_path / 'runs'}"]
    config = compose_run(overrides)
    with pytest.raises(UsageError, match=message):
        execute(config, overrides, lambda event: None)
    assert [str(error) for error in refusals([config]).values()] == [
        f"model '{model}' (model.family={model[:3]}) {message}"
    ]
    assert not runner.folder_of(config).exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("family", ["gru", "gradient", "os", "..mlp"])
def test_an_unknown_family_lists_the_known(family: str) -> None:
    with pytest.raises(UsageError, match=r"unknown model\.family=.*Known: cnn, mlp, quantized, rnn"):
        build_model(compose_run([f"model.family={family}"]))


LINEAR = '''
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax


class Linear(nn.Module):
    """No hidden layer at all."""

    reads: ClassVar[str] = "features"

    hidden: Sequence[int]
    num_classes: int
    skip: bool = False
    output_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.num_classes, use_bias=self.output_bias)(x)


ARCHITECTURE = Linear
'''


def test_a_file_of_baselines_is_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "linear.py").write_text(LINEAR)
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path)])
    params = parameters("dataset=mnist", "model.family=linear", "model.name=linear", "method=dr")
    assert jax.tree.map(np.shape, params) == {"Dense_0": {"kernel": (784, 10)}}
    with pytest.raises(UsageError, match="Known: cnn, linear, mlp, quantized, rnn"):
        build_model(compose_run(["model.family=gru"]))


@pytest.mark.parametrize("key", ["kernel_init", "embedding_init"])
def test_an_unknown_initialiser_lists_the_known(key: str) -> None:
    with pytest.raises(UsageError, match=rf"unknown method\.{key}=zeros\. Known: he_normal, lecun_normal"):
        build_model(compose_run([f"method.{key}=zeros"]))


def test_an_unknown_kind_lists_the_known() -> None:
    with pytest.raises(UsageError, match=r"dataset\.kind=sound is unknown\. Known: features, images, tokens"):
        build_model(compose_run(["dataset.kind=sound"]))


def test_images_in_rows_are_no_images() -> None:
    with pytest.raises(UsageError, match=r"samples of data set 'mnist' are float32\[784\], not images"):
        arrange(compose_run(["task=mnist-cnn_1x32"]), np.zeros((3, 784), np.float32))


def test_images_are_flat_for_a_network_of_features_alone() -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 2, 2, 3)
    np.testing.assert_array_equal(arrange(compose_run(["task=cifar10-mlp_1x256"]), x), x.reshape(2, 12))
    assert arrange(compose_run(["task=cifar10-cnn_1x32"]), x) is x


DEVIATIONS = {
    "he_normal": lambda rows, columns: np.sqrt(2 / rows),
    "lecun_normal": lambda rows, columns: np.sqrt(1 / rows),
    "glorot_normal": lambda rows, columns: np.sqrt(2 / (rows + columns)),
    "flax_embed": lambda rows, columns: np.sqrt(1 / columns),
    "standard_normal": lambda rows, columns: 1.0,
}


@pytest.mark.parametrize("init", INITIALIZERS)
def test_initialisers_have_the_deviation_of_their_name(init: str) -> None:
    overrides = ("task=shakespeare-rnn_1x256", "method=dr", f"method.kernel_init={init}")
    params = parameters(*overrides, f"method.embedding_init={init}")
    kernel, embedding = params["ScanCell_0"]["MLP_0"]["Dense_0"]["kernel"], params["Embed_0"]["embedding"]
    assert (kernel.shape, embedding.shape) == ((512, 256), (65, 256))
    for array in (kernel, embedding):
        np.testing.assert_allclose(array.std(), DEVIATIONS[init](*array.shape), rtol=0.03)
    assert not params["ScanCell_0"]["MLP_0"]["Dense_0"]["bias"].any()


def test_convolutions_are_he_normal_unless_the_method_says_otherwise() -> None:
    deviations = [
        float(parameters("task=cifar10-cnn_1x32", *other)["Conv_0"]["kernel"].std())
        for other in ([], ["method.kernel_init=lecun_normal"])
    ]
    np.testing.assert_allclose(deviations, [np.sqrt(2 / 27), np.sqrt(1 / 27)], rtol=0.1)


DIGITS = ["dataset=digits"]


def quantised(*overrides: str) -> tuple[Any, Any, Any]:
    """The network, its parameters and a batch of the digits' size."""
    model = build_model(compose_run([*DIGITS, *overrides]))
    x = jax.random.normal(jax.random.key(1), (5, 64))
    return model, model.init(jax.random.key(0), x), x


@pytest.mark.parametrize(
    ("model", "weights"), [("quantized_2", False), ("quantized_sign", False), ("quantized_weights", True)]
)
def test_nothing_of_a_quantised_network_but_its_last_layer_has_a_gradient(model: str, weights: bool) -> None:
    network, params, x = quantised(f"model={model}", "method=adam")
    gradients = jax.grad(lambda p: (network.apply(p, x) ** 2).sum())(params)["params"]
    assert not np.any(gradients["hidden_0_kernel"])
    assert bool(np.any(gradients["output_kernel"])) != weights
    through, *_ = quantised(f"model={model}", "method=straight_through")
    passed = jax.grad(lambda p: (through.apply(p, x) ** 2).sum())(params)["params"]
    assert np.any(passed["hidden_0_kernel"])
    assert np.any(passed["output_kernel"])
    # The estimator is one of gradients: the network's values are the same, to rounding.
    np.testing.assert_allclose(through.apply(params, x), network.apply(params, x), atol=1e-5)


def test_what_has_no_steps_has_nothing_to_pass() -> None:
    with pytest.raises(
        UsageError, match=r"method.straight_through=true: nothing in model 'mlp_1x32' .* has to be passed"
    ):
        build_model(compose_run(["method=straight_through"]))


def test_an_option_that_an_architecture_does_not_have_is_named() -> None:
    config = compose_run([*DIGITS, "model=quantized_2"])
    config.model.options = {"foo": 1}  # as a file of one's own may say
    with pytest.raises(UsageError, match=r"model.family=quantized.*foo"):
        build_model(config)
