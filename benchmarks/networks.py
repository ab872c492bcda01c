"""The networks that are measured: the Flax modules of Tables 2 to 4, and training programs of theirs."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen
from jax import Array

from baselines.cnn import CNN
from baselines.mlp import MLP
from baselines.rnn import RNN
from pjax import EXACT, PUBLISHED, nn, optim
from pjax_core.bilinear import Dots
from pjax_core.graph import Graph
from pjax_core.trace import trace_with_arrays

STEPS = 50  # of one program: K of Algorithm 1
CHARACTERS, SYMBOLS = 64, 65  # of Shakespeare's windows (Section 5.1) and his works

Program = Callable[[Any, Array, Array], Any]  # of (params, x, y)

OPERATORS = {"published": PUBLISHED, "exact": EXACT}


@dataclasses.dataclass(frozen=True)
class Network:
    """An architecture and one sample of its data; the output layer has no bias, as projections have it."""

    name: str
    model: linen.Module
    x: jax.ShapeDtypeStruct
    classes: int

    def arguments(self, batch: int) -> tuple[Any, Array, Array]:
        """Parameters, inputs and labels of a batch: random, on the device."""
        keys = jax.random.split(jax.random.key(0), 3)
        shape = (batch, *self.x.shape)
        if jnp.issubdtype(self.x.dtype, jnp.integer):
            x = jax.random.randint(keys[0], shape, 0, self.classes)
            labels = shape
        else:
            x, labels = jax.random.normal(keys[0], shape), (batch,)
        return self.model.init(keys[1], x), x, jax.random.randint(keys[2], labels, 0, self.classes)

    def losses(self, x: Array, y: Array) -> Callable[[Any], Array]:
        """Return the loss of every sample as a function of the parameters."""
        return lambda params: nn.cross_entropy(jnp.asarray(self.model.apply(params, x)), y)

    def gradient_steps(
        self, steps: int = STEPS, optimizer: Callable[[float], optax.GradientTransformation] = optax.sgd
    ) -> Program:
        """Steps of ``value_and_grad`` and an Optax update, scanned; returns parameters and the last loss."""
        rule = optimizer(1e-3)

        def train(params: Any, x: Array, y: Array) -> Any:
            def step(carry: Any, _: None) -> tuple[Any, Array]:
                params, state = carry
                loss, grads = jax.value_and_grad(lambda p: self.losses(x, y)(p).mean())(params)
                updates, state = rule.update(grads, state, params)
                return (optax.apply_updates(params, updates), state), loss

            (params, _), means = jax.lax.scan(step, (params, rule.init(params)), length=steps)
            return params, means[-1]

        return train

    def projection_steps(self, method: optim.ProjectionMethod) -> Program:
        """One update of a projection method."""
        return lambda params, x, y: method.update(self.losses(x, y), params)

    def products(self, steps: int = STEPS) -> Program:
        """The matrix products and convolutions of steps of AP alone: forward, and back to what is not constant.

        What they make is added, scaled to nothing, to what they read, so that no step can be left out.
        """

        def train(params: Any, x: Array, y: Array) -> Any:
            graph, program, captured, constants, indices = trace_with_arrays(self.losses(x, y), params)
            values = graph.values(program.values(captured, jax.tree.leaves(params)), constants, indices)
            nodes = [n for n in graph.numbers("constraint") if _is_product(graph, n)]
            moving = {n: [i for i in (0, 1) if not _is_constant(graph, n, i)] for n in nodes}

            def step(operands: dict[int, list[Array]], _: None) -> tuple[dict[int, list[Array]], None]:
                for n, pair in operands.items():

                    def product(*own: Array, n: int = n, pair: list[Array] = pair) -> Array:
                        known = dict(enumerate(pair)) | dict(zip(moving[n], own, strict=True))
                        return Dots(graph.nodes[n]).product(known[0], known[1])

                    output, pull = jax.vjp(product, *(pair[i] for i in moving[n]))
                    pulled = dict(zip(moving[n], pull(output), strict=True))
                    new = [own + 1e-30 * pulled[i] if i in pulled else own for i, own in enumerate(pair)]
                    operands = {**operands, n: new}
                return operands, None

            return jax.lax.scan(step, {n: [*graph.nodes[n].read(values, indices)] for n in nodes}, length=steps)[0]

        return train


def _is_product(graph: Graph, number: int) -> bool:
    return graph.nodes[number].name in ("dot_general", "conv_general_dilated")


def _is_constant(graph: Graph, number: int, position: int) -> bool:
    return all(graph.nodes[p].kind == "constant" for p in graph.nodes[number].operands[position].producers)


def mlp(name: str, inputs: int, hidden: Sequence[int], *, skip: bool = False, classes: int = 10) -> Network:
    """Multilayer perceptron."""
    sample = jax.ShapeDtypeStruct((inputs,), jnp.float32)
    return Network(name, MLP(tuple(hidden), classes, skip=skip, output_bias=False), sample, classes)


def cnn(name: str, image: tuple[int, int, int], channels: Sequence[int], *, skip: bool = False) -> Network:
    """Convolutional network on images (height, width, channels)."""
    sample = jax.ShapeDtypeStruct(image, jnp.float32)
    return Network(name, CNN(tuple(channels), 10, skip=skip, output_bias=False), sample, 10)


def rnn(name: str, hidden: Sequence[int], *, skip: bool = False, characters: int = CHARACTERS) -> Network:
    """Recurrent network on windows of characters."""
    sample = jax.ShapeDtypeStruct((characters,), jnp.int32)
    return Network(name, RNN(tuple(hidden), SYMBOLS, skip=skip, output_bias=False), sample, SYMBOLS)


_MNIST, _CIFAR = (28, 28, 1), (32, 32, 3)
NETWORKS = {
    network.name: network
    for network in (
        *(
            mlp(f"{data} {name}", inputs, [width] * layers, skip=skip, classes=classes)
            for data, inputs, width, classes in (
                ("mnist", 784, 128, 10),
                ("cifar10", 3072, 256, 10),
                ("higgs", 28, 256, 2),
            )
            for name, layers, skip in (
                (f"mlp_1x{width}", 1, False),
                (f"mlp_4x{width}", 4, False),
                (f"mlp_4x{width}_skip", 4, True),
            )
        ),
        *(
            cnn(f"{data} {name}", image, channels, skip=skip)
            for data, image in (("mnist", _MNIST), ("cifar10", _CIFAR))
            for name, channels, skip in (
                ("cnn_1x32", [32], False),
                ("cnn_4x16", [16] * 4, False),
                ("cnn_4x16_skip", [16] * 4, True),
            )
        ),
        rnn("shakespeare rnn_1x256", [256]),
        rnn("shakespeare rnn_4x128", [128] * 4),
        rnn("shakespeare rnn_4x128_skip", [128] * 4, skip=True),
    )
}
"""The architectures of Tables 2 to 4 on their data sets, by ``"data set model"``."""
