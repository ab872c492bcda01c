"""Modules: names, initial values, sharing, what each computes, and Listing 1 as printed."""

import math
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax
from pjax import nn, optim
from tests.core.networks import MLP, patches


def test_names_shapes_and_initial_values():
    params = MLP((784, 256, 10)).init(jax.random.key(0))
    shapes = {k: v.shape for k, v in params.items()}
    assert shapes == {"linears.0.weight": (784, 256), "relus.0.bias": (256,), "out.weight": (256, 10)}
    assert float(params["linears.0.weight"].std()) == pytest.approx((2 / 784) ** 0.5, rel=0.02)
    assert not np.any(params["relus.0.bias"])


def test_a_parameter_depends_on_its_name_alone():
    short, long = MLP((5, 4, 3)).init(jax.random.key(0)), MLP((5, 4, 4, 3)).init(jax.random.key(0))
    np.testing.assert_array_equal(short["linears.0.weight"], long["linears.0.weight"])
    assert not np.array_equal(long["linears.1.weight"], long["linears.0.weight"][:4])


class Shared(nn.Module):
    """One linear map used twice, under two attributes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.relu = nn.ReLU(4)

    def __call__(self, x):
        return self.again(self.relu(self.first(x)))


def test_a_shared_module_has_one_parameter():
    model = Shared()
    params = model.init(jax.random.key(0))
    assert sorted(params) == ["first.weight", "relu.bias"]
    x, y = jnp.ones((8, 4)), jnp.zeros(8, int)
    new, _ = optim.AlternatingProjections(5).update(lambda p: nn.cross_entropy(model.apply(p, x), y), params)
    assert new["first.weight"].shape == (4, 4)
    assert vars(model).keys() == vars(Shared()).keys()  # applying binds a copy


class Pair(NamedTuple):
    into: nn.Linear
    back: nn.Linear


class Nested(nn.Module):
    """Modules in a named tuple, a dictionary and lists of lists, beside what is no module and cannot be copied."""

    def __init__(self):
        super().__init__()
        self.pair = Pair(nn.Linear(4, 3), nn.Linear(3, 4))
        self.heads = {"two": nn.ReLU(4), "one": nn.ReLU(4)}
        self.grid = [[nn.Linear(4, 4)], (nn.Linear(4, 2), self.pair.into)]
        self.lock, self.names = threading.Lock(), {2: "b", "one": None}

    def __call__(self, x):
        x = self.pair.back(self.pair.into(x))
        for relu in self.heads.values():
            x = relu(x)
        return self.grid[1][0](self.grid[0][0](x))


def test_modules_are_found_in_containers_of_containers():
    model = Nested()
    params = model.init(jax.random.key(0))
    weights = ["pair.0.weight", "pair.1.weight", "grid.0.0.weight", "grid.1.0.weight"]
    assert list(params) == [*weights[:2], "heads.two.bias", "heads.one.bias", *weights[2:]]
    params["heads.two.bias"], params["heads.one.bias"] = jnp.full(4, 0.1), jnp.full(4, -0.2)
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    h = np.maximum(np.maximum(x @ params[weights[0]] @ params[weights[1]] + 0.1, 0) - 0.2, 0)
    expected = h @ params[weights[2]] @ params[weights[3]]
    np.testing.assert_allclose(model.apply(params, jnp.asarray(x)), expected, rtol=1e-4, atol=1e-6)
    assert isinstance(model.pair, Pair)
    y = jnp.zeros(8, int)
    new, _ = optim.AlternatingProjections(5).update(lambda p: nn.cross_entropy(model.apply(p, x), y), params)
    assert all(np.any(new[k] != params[k]) for k in params)


def test_modules_of_one_name_are_refused():
    model = nn.Module()
    model.layers = {1: nn.Linear(2, 2), "1": nn.Linear(2, 2)}  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"two modules of Module are named 'layers.1'; rename a key"):
        model.init(jax.random.key(0))


def test_wrong_parameter_names_are_listed():
    model = MLP((5, 4, 3))
    params = model.init(jax.random.key(0))
    params["weights"] = params.pop("out.weight")
    with pytest.raises(KeyError, match=r"missing \['out.weight'\], unexpected \['weights'\]"):
        model.apply(params, jnp.ones((2, 5)))


def _same(size, window, stride):
    """Zeros before and after an axis so that a window of this stride gives ceil(size / stride) outputs."""
    total = max((math.ceil(size / stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
@pytest.mark.parametrize(
    ("kernel_shape", "strides", "padding"),
    [
        ((3, 3), (1, 1), "SAME"),
        ((2, 3), (2, 1), "SAME"),
        ((3, 2), (1, 2), "VALID"),
        ((3, 3), (2, 2), ((0, 2), (1, 0))),
    ],
)
def test_a_convolution_is_a_product_with_patches_of_padded_images(lead, kernel_shape, strides, padding):
    conv = nn.Conv2D(2, 5, kernel_shape, strides, padding)
    params = conv.init(jax.random.key(0))
    assert {k: v.shape for k, v in params.items()} == {"weight": (*kernel_shape, 2, 5)}
    x = np.random.default_rng(0).normal(size=(*lead, 7, 6, 2)).astype("float32")
    if padding == "SAME":
        padding = [_same(*sizes) for sizes in zip((7, 6), kernel_shape, strides, strict=True)]
    zeros = ((0, 0), (0, 0)) if padding == "VALID" else padding
    padded = np.pad(x, [*[(0, 0)] * len(lead), *zeros, (0, 0)])
    expected = patches(padded, kernel_shape, strides) @ np.asarray(params["weight"]).reshape(-1, 5)
    out = conv.apply(params, jnp.asarray(x))
    assert out.shape == expected.shape
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "variance"),
    [
        (nn.Conv2D(16, 64, (3, 5)), 2 / (3 * 5 * 16)),
        (nn.SkipReadout((100, 156), 100), 2 / 256),
        (nn.Embedding(256, 100), 2 / 256),
    ],
    ids=["Conv2D", "SkipReadout", "Embedding"],
)
def test_initial_variance_is_two_over_the_inputs(module, variance):
    weight = module.init(jax.random.key(0))["weight"]
    assert weight.dtype == jnp.float32
    assert float(weight.var()) == pytest.approx(variance, rel=0.05)
    assert abs(float(weight.mean())) < 5 * (variance / weight.size) ** 0.5


@pytest.mark.parametrize("shape", [(5, 5), (5, 5, 2), (2, 5, 5, 1)])
def test_images_of_the_wrong_shape(shape):
    conv = nn.Conv2D(3, 4)
    with pytest.raises(ValueError, match=r"images \(..., height, width, 3\); it got shape"):
        conv.apply(conv.init(jax.random.key(0)), jnp.ones(shape))


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_max_pooling_is_over_space(lead):
    x = np.random.default_rng(0).normal(size=(*lead, 5, 4, 3)).astype("float32")
    pool = nn.MaxPool()
    assert pool.init(jax.random.key(0)) == {}
    expected = x.reshape(*lead, 20, 3).max(-2)
    np.testing.assert_array_equal(pool.apply({}, jnp.asarray(x)), expected)


def test_an_embedding_looks_up_rows():
    table = nn.Embedding(7, 3)
    params = table.init(jax.random.key(0))
    tokens = np.array([[0, 6, 2], [2, 2, 1]])
    for given in (tokens, tokens.tolist(), jnp.asarray(tokens), jnp.asarray(tokens, jnp.uint8)):
        np.testing.assert_array_equal(table.apply(params, given), params["weight"][tokens])
    assert table.apply(params, jnp.int32(3)).shape == (3,)
    assert table.apply(params, jnp.zeros((0,), int)).shape == (0, 3)


@pytest.mark.parametrize("kind", [jnp.asarray, np.asarray, list])
@pytest.mark.parametrize("numbers", [[0, 7], [-1, 0], [255]])
def test_tokens_and_labels_out_of_range(numbers, kind):
    """Known ones, also while a loss is traced; JAX itself would take the nearest row, or no label, in silence."""
    table, given = nn.Embedding(7, 7), kind(numbers)
    params = table.init(jax.random.key(0))
    message = rf"from {min(numbers)} to {max(numbers)} for 7 (embeddings|classes): they lie in 0 to 6"
    zeros = jnp.zeros(len(numbers), int)
    for tokens, labels in ((given, zeros), (zeros, given)):
        with pytest.raises(ValueError, match=message):
            nn.cross_entropy(table.apply(params, tokens), labels)
        with pytest.raises(ValueError, match=message):
            pjax.trace(lambda p, t=tokens, y=labels: nn.cross_entropy(table.apply(p, t), y), params)


def test_tokens_that_are_not_known_are_not_checked():
    table = nn.Embedding(7, 3)
    params = table.init(jax.random.key(0))
    out = jax.jit(table.apply)(params, jnp.array([1, 2]))
    np.testing.assert_array_equal(out, params["weight"][1:3])


@pytest.mark.parametrize("tokens", [jnp.array([0.0, 1.0]), jnp.array([True, False])])
def test_tokens_that_are_no_integers(tokens):
    table = nn.Embedding(7, 3)
    with pytest.raises(TypeError, match=f"integer tokens; it got {tokens.dtype}"):
        table.apply(table.init(jax.random.key(0)), tokens)


@pytest.mark.parametrize(("levels", "scale"), [(2, 1.0), (3, 1.0), (5, 2.0)])
def test_quantize_gives_the_nearest_level(levels, scale):
    x = jax.random.normal(jax.random.key(0), (3, 40)) * 2
    module = nn.Quantize(levels, scale)
    assert module.init(jax.random.key(0)) == {}
    points = np.linspace(-scale, scale, levels)
    nearest = points[np.abs(np.asarray(x)[..., None] - points).argmin(-1)]
    np.testing.assert_allclose(module.apply({}, x), nearest, rtol=1e-6)


def test_two_levels_are_a_sign():
    x = jax.random.normal(jax.random.key(0), (40,))
    np.testing.assert_array_equal(nn.Quantize(2).apply({}, x), jnp.sign(x))


def test_a_skip_readout_is_a_sum_of_linear_maps():
    model = nn.SkipReadout((4, 3), 5)
    params = model.init(jax.random.key(0))
    assert {k: v.shape for k, v in params.items()} == {"weight": (7, 5)}
    a, b = jax.random.normal(jax.random.key(1), (2, 6, 4)), jax.random.normal(jax.random.key(2), (2, 6, 3))
    weight = params["weight"]
    np.testing.assert_allclose(model.apply(params, a, b), a @ weight[:4] + b @ weight[4:], rtol=1e-5, atol=1e-5)


class Block(nn.Module):
    """A module of modules, one of them given from outside and shared."""

    def __init__(self, shared, channels):
        super().__init__()
        self.own = nn.Conv2D(channels, channels, (1, 1))
        self.shared = shared
        self.relus = [nn.ReLU(channels), nn.ReLU(channels)]

    def __call__(self, x):
        return self.relus[1](self.shared(self.relus[0](self.own(x))))


class Blocks(nn.Module):
    """Blocks that share a convolution, in a tuple; tokens and levels at the ends."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(6, 2)
        shared = nn.Conv2D(2, 2)
        self.blocks = (Block(shared, 2), Block(shared, 2))
        self.pool = nn.MaxPool()
        self.step = nn.Quantize(9, 2.0)
        self.readout = nn.SkipReadout((2, 2), 3)

    def __call__(self, tokens):
        x = self.table(tokens)
        maxima = []
        for block in self.blocks:
            x = block(x)
            maxima.append(self.pool(x))
        return self.readout(maxima[0], self.step(maxima[1]))


def test_new_modules_nest_and_share():
    model = Blocks()
    params = model.init(jax.random.key(0))
    names = [f"blocks.{i}.{n}" for i in (0, 1) for n in ("own.weight", "relus.0.bias", "relus.1.bias")]
    assert sorted(params) == sorted([*names, "blocks.0.shared.weight", "readout.weight", "table.weight"])
    tokens = jax.random.randint(jax.random.key(1), (8, 4, 4), 0, 6)
    y = jnp.arange(8) % 3
    graph = pjax.trace(lambda p: nn.cross_entropy(model.apply(p, tokens), y), params)
    shared = next(i for i, node in enumerate(graph.nodes) if node.name == "blocks.0.shared.weight")
    assert [graph.nodes[n].name for n, _ in graph.consumers[shared]] == ["conv_general_dilated"] * 2
    start = params
    for _ in range(5):
        params, _ = optim.DouglasRachford(20).update(lambda p: nn.cross_entropy(model.apply(p, tokens), y), params)
    for name in params:
        assert np.all(np.isfinite(params[name])), name
        assert float(jnp.abs(params[name] - start[name]).max()) > 0, name


LISTING_1 = """
import jax
import pjax
from pjax import nn, optim
class MLP(nn.Module):
    def __init__(self, in_features, hidden_features, num_classes):
        super().__init__()
        self.hidden = nn.Linear(in_features, hidden_features)
        self.relu = nn.ReLU(hidden_features)
        self.out = nn.Linear(hidden_features, num_classes)
    def __call__(self, x):
        x = self.hidden(x)
        x = self.relu(x)
        x = self.out(x)
        return x
model = MLP(in_features=784, hidden_features=256, num_classes=10)
params = model.init(jax.random.key(0))
optimizer = optim.DouglasRachford(steps_per_update=50)
for (x, y) in dataloader:
    def loss_fn(params):
        logits = model.apply(params, x)
        return nn.cross_entropy(logits, y)
    params, loss = optimizer.update(loss_fn, params)
"""


def listing_as_printed(shared) -> str:
    """The code block that precedes "Listing 1" in the paper's text."""
    text = (shared / "paper" / "pjax-paper.txt").read_text()
    return text[: text.index("\nListing 1:")].rsplit("```\n", 2)[1]


def test_listing_1_runs_as_printed():
    rng = np.random.default_rng(0)
    y = rng.integers(10, size=(3, 32))
    x = rng.normal(size=(10, 784))[y] + 0.3 * rng.normal(size=(3, 32, 784))
    scope: dict[str, Any] = {"dataloader": [(jnp.float32(a), jnp.asarray(b)) for a, b in zip(x, y, strict=True)]}
    exec(LISTING_1, scope)
    assert set(scope["params"]) == {"hidden.weight", "relu.bias", "out.weight"}
    losses = pjax.nn.cross_entropy(scope["model"].apply(scope["params"], x[0].astype("float32")), jnp.asarray(y[0]))
    assert float(losses.mean()) < float(scope["loss"])


def test_the_listing_is_the_papers(shared):
    printed, ours = (s.split() for s in (listing_as_printed(shared), LISTING_1))
    assert printed == ours


def test_parameters_of_another_tree_are_refused():
    model = MLP((5, 4, 3))
    params = model.init(jax.random.key(0))
    x, y = jnp.ones((2, 5)), jnp.zeros(2, int)
    for wrong in ({"params": params}, MLP((5, 4, 4, 3)).init(jax.random.key(0)), {}):
        with pytest.raises((KeyError, TypeError), match=r"params of MLP: missing|params holds no array"):
            optim.AlternatingProjections(1).update(lambda p: nn.cross_entropy(model.apply(p, x), y), wrong)


def test_parameters_of_another_shape_are_refused():
    params = MLP((5, 6, 3)).init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"'linears.0.weight' of MLP has shape \(5, 6\); expected \(5, 4\)"):
        MLP((5, 4, 3)).apply(params, jnp.ones((2, 5)))


@pytest.mark.parametrize("make", [jnp.array, np.array, list], ids=["jax", "numpy", "list"])
@pytest.mark.parametrize("loss", [nn.cross_entropy, nn.margin_loss])
def test_labels_out_of_range_in_training(loss, make):
    model, y = MLP((5, 4, 3)), make([0, 3])
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match="labels from 0 to 3 for 3 classes"):
        optim.DouglasRachford(1).update(lambda p: loss(model.apply(p, jnp.ones((2, 5))), y), params)


def test_a_network_that_meets_no_loss():
    """Its output is returned beside a loss, or the loss does not depend on the parameters."""
    model, x, y = MLP((5, 4, 3)), jnp.ones((2, 5)), jnp.zeros(2, int)
    params = model.init(jax.random.key(0))
    for loss_fn in (
        lambda p: (nn.cross_entropy(model.apply(p, x), y), model.apply(p, x)),
        lambda p: nn.cross_entropy(model.apply(params, x), y),
    ):
        with pytest.raises(TypeError, match="returns something that is not a loss"):
            optim.AlternatingProjections(1).update(loss_fn, params)
