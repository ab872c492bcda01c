"""Time and memory of one step: SGD, AP, CP, DR and the edges representation, MLP 1x128 on 784 inputs.

    python -m benchmarks.step [--json FILE] [--batch 256]

Every function takes 50 steps on one batch that is on the device: SGD scans value_and_grad and its update,
the projection methods run one update (K = 50). AP on edges takes 3 (time per step does not depend on K).
"""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import pjax_core as pjax
from benchmarks.measure import Measurement, environment, measure, write
from pjax_core import nn, optim

STEPS, EDGE_STEPS = 50, 3


class MLP(nn.Module):
    """One hidden layer: 128 neurons on 784 inputs, 10 classes, as in Table 2 on MNIST."""

    def __init__(self, inputs: int = 784, width: int = 128, classes: int = 10) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, width)
        self.relu = nn.ReLU(width)
        self.out = nn.Linear(width, classes)

    def __call__(self, *xs: jax.Array) -> jax.Array:
        """Logits ``(batch, classes)`` of inputs ``(batch, inputs)``."""
        return self.out(self.relu(self.hidden(*xs)))


Step = Callable[[Any, jax.Array, jax.Array], Any]  # of (params, x, y)


def losses(model: nn.Module, x: jax.Array, y: jax.Array) -> Callable[[Any], jax.Array]:
    """Return the loss of every sample as a function of the parameters."""
    return lambda params: nn.cross_entropy(model.apply(params, x), y)


def gradient_steps(model: nn.Module, steps: int = STEPS) -> Step:
    """SGD: steps of ``value_and_grad`` and its update, scanned; returns parameters and the last loss."""
    sgd = optax.sgd(1e-3)

    def train(params: Any, x: jax.Array, y: jax.Array) -> Any:
        def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
            params, state = carry
            loss, grads = jax.value_and_grad(lambda p: losses(model, x, y)(p).mean())(params)
            updates, state = sgd.update(grads, state)
            return (optax.apply_updates(params, updates), state), loss

        (params, _), means = jax.lax.scan(step, (params, sgd.init(params)), length=steps)
        return params, means[-1]

    return train


def projection_steps(model: nn.Module, method: optim.ProjectionMethod) -> Step:
    """One update of a projection method."""
    return lambda params, x, y: method.update(losses(model, x, y), params)


def cases(model: MLP) -> dict[str, tuple[Step, int]]:
    """Functions of (params, x, y) and their steps, by name; "SGD" first."""

    def projections(method: optim.ProjectionMethod) -> tuple[Step, int]:
        return projection_steps(model, method), method.steps_per_update

    found = {"SGD": (gradient_steps(model), STEPS)}
    for name, operators in (("published", pjax.PUBLISHED), ("exact", pjax.EXACT)):
        found[f"AP {name}"] = projections(optim.AlternatingProjections(STEPS, operators))
        found[f"CP {name}"] = projections(optim.CyclicProjections(STEPS, operators))
        found[f"DR {name}"] = projections(optim.DouglasRachford(STEPS, operators))
        found[f"AP {name}, edges"] = projections(optim.AlternatingProjections(EDGE_STEPS, operators, "edges"))
    return found


def table(results: dict[str, Measurement]) -> str:
    """Times, memory and their ratios to SGD and to the edges representation."""
    sgd = results["SGD"]
    lines = [f"{'':22}{'ms/step':>9}{'quartiles':>16}{'/ SGD':>8}{'edges /':>9}{'MB':>9}{'/ SGD':>8}{'compile s':>11}"]
    for name, m in results.items():
        edges = results.get(f"AP {name.split()[-1]}, edges")
        faster = f"{edges.step_ms / m.step_ms:.0f}x" if edges and "edges" not in name else ""
        quartiles = f"{m.spread_ms[0]:.2f}-{m.spread_ms[1]:.2f}"
        lines.append(
            f"{name:22}{m.step_ms:9.3f}{quartiles:>16}{m.step_ms / sgd.step_ms:8.2f}{faster:>9}"
            f"{m.peak_mb:9.2f}{m.peak_mb / sgd.peak_mb:8.2f}{m.compile_s:11.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers with device and versions to this file")
    parser.add_argument("--batch", type=int, default=256, help="samples per batch (default 256)")
    options = parser.parse_args()
    model = MLP()
    key = jax.random.key(0)
    x = jax.random.normal(key, (options.batch, 784))
    y = jnp.arange(options.batch) % 10
    device = environment()
    print(f"MLP 784-128-10, batch {options.batch}, {device['device']} ({device['platform']}, {device['cores']} cores)")
    results = measure(cases(model), (model.init(key), x, y))
    print(table(results))
    if options.json:
        rows = {name: dataclasses.asdict(m) for name, m in results.items()}
        write(options.json, "step", batch=options.batch, results=rows)


if __name__ == "__main__":
    main()
