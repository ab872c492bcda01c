"""Modules: names, initial values, sharing, and Listing 1 as printed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_core as pjax
from pjax_core import nn, optim
from tests.core.networks import MLP


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


def test_wrong_parameter_names_are_listed():
    model = MLP((5, 4, 3))
    params = model.init(jax.random.key(0))
    params["weights"] = params.pop("out.weight")
    with pytest.raises(KeyError, match=r"missing \['out.weight'\], unexpected \['weights'\]"):
        model.apply(params, jnp.ones((2, 5)))


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


def test_listing_1_runs_as_printed_but_for_the_import():
    source = LISTING_1.replace("import pjax\nfrom pjax import", "import pjax_core as pjax\nfrom pjax_core import")
    rng = np.random.default_rng(0)
    y = rng.integers(10, size=(3, 32))
    x = rng.normal(size=(10, 784))[y] + 0.3 * rng.normal(size=(3, 32, 784))
    scope: dict[str, Any] = {"dataloader": [(jnp.float32(a), jnp.asarray(b)) for a, b in zip(x, y, strict=True)]}
    exec(source, scope)
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


@pytest.mark.parametrize("make", [jnp.array, np.array], ids=["jax", "numpy"])
@pytest.mark.parametrize("tokens", [[0, 5], [-1, 0]], ids=["too large", "negative"])
def test_tokens_out_of_range(tokens, make):
    model, tokens = nn.Embedding(5, 3), make(tokens)
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"tokens from -?\d to \d for 5 embeddings: they lie in 0 to 4"):
        pjax.trace(lambda p: nn.cross_entropy(model.apply(p, tokens), jnp.zeros(2, int)), params)


def test_tokens_are_integers():
    model = nn.Embedding(5, 3)
    with pytest.raises(TypeError, match="Embedding takes integer tokens; it got float32"):
        model.apply(model.init(jax.random.key(0)), jnp.ones(4))


@pytest.mark.parametrize("shape", [(4, 4), (2, 4, 4, 1), (2, 3, 4, 4)], ids=["rank", "channels", "channels first"])
def test_images_of_the_wrong_shape(shape):
    model = nn.Conv2D(3, 6)
    with pytest.raises(ValueError, match=r"Conv2D takes images \(..., height, width, 3\); it got shape \(.*\)"):
        model.apply(model.init(jax.random.key(0)), jnp.ones(shape))


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
