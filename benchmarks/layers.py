"""What reaches each layer: the displacements of its weights, how large, and how near to the direction of backprop.

    python -m benchmarks layers [--task mnist-mlp_4x128] [--hidden 128 128 ...] [--batch 256] [--json FILE]

One batch of real data, the network as a run begins with it. "CP" is one cycle of cyclic projections, which goes from
the losses to the parameters as a sweep does, in 32 bits: the root mean square of a layer's move, and the share of its
weights that move at all. Then for each gain the root mean square of the displacements (over the target scale), and for
each target scale the cosine between displacements and the negative gradient of the mean loss. Where "none", which is
the true size of CP's moves but for the scale, is far below them, those are rounding.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from benchmarks.measure import environment, write
from experiments.compose import compose_run
from experiments.data import load
from experiments.keys import key_for
from experiments.models import arrange, build_model
from pjax import EXACT, nn, optim
from pjax.displacement import Gain

GAINS: tuple[Gain, ...] = get_args(Gain)
SCALES = (1e-3, 1e-1, 1.0)
Layers = dict[str, Array]  # weights in the order of the network


def layers(params: Any) -> Layers:
    """The weights of all layers, biases left out."""
    leaves, _ = jax.tree.flatten_with_path(params)
    return {jax.tree_util.keystr(path[-2:], simple=True, separator="/"): leaf for path, leaf in leaves if leaf.ndim > 1}


def rms(x: Array) -> float:
    """Root mean square, in 64 bits, as squares of small numbers are none in 32."""
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


def cosine(x: Array, y: Array) -> float:
    """Of the angle between two tensors."""
    a, b = (np.asarray(each, np.float64).ravel() for each in (x, y))
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def measured(model: Any, params: Any, x: Array, y: Array) -> dict[str, dict[str, float]]:
    """All numbers, by layer and name."""

    def losses(params: Any) -> Array:
        return nn.cross_entropy(jnp.asarray(model.apply(params, x)), y)

    found: dict[str, dict[str, float]] = {name: {} for name in layers(params)}
    moved, *_ = optim.CyclicProjections(1, EXACT).update(losses, params)
    for name, move in layers(jax.tree.map(jnp.subtract, moved, params)).items():
        found[name] |= {"CP": rms(move), "CP moved": float(jnp.mean(move != 0))}
    gradients = layers(jax.grad(lambda p: losses(p).mean())(params))
    for gain in GAINS:
        for scale in SCALES:
            method = optim.Displacement(_kept(), scale, gain)
            displaced = layers(method.update(losses, params, method.init(params)).state)
            for name, negated in displaced.items():
                found[name][f"{gain} {scale:g}"] = rms(negated)
                found[name][f"{gain} {scale:g} cosine"] = cosine(negated, gradients[name])
    return found


def _kept() -> optax.GradientTransformation:
    """Keeps what it is given as its state, and makes no step."""

    def update(updates: Any, _: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(jnp.zeros_like, updates), updates

    return optax.GradientTransformation(lambda params: params, update)  # type: ignore[arg-type]


def table(results: dict[str, dict[str, float]]) -> str:
    """Sizes at the smallest target scale, and cosines at all."""
    scale = SCALES[0]
    head = [f"{'':18}{'CP':>9}{'moved':>8}", *(f"{gain:>9}" for gain in GAINS)]
    head += [f"{f'{gain} {each:g}':>15}" for gain in GAINS for each in SCALES]
    lines = ["".join(head)]
    for name, found in results.items():
        sizes = "".join(f"{found[f'{gain} {scale:g}']:9.1e}" for gain in GAINS)
        cosines = "".join(f"{found[f'{gain} {each:g} cosine']:15.4f}" for gain in GAINS for each in SCALES)
        lines.append(f"{name:18}{found['CP']:9.1e}{100 * found['CP moved']:7.1f}%{sizes}{cosines}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers with device and versions to this file")
    parser.add_argument("--task", default="mnist-mlp_4x128", help="a file of conf/task (default mnist-mlp_4x128)")
    parser.add_argument("--hidden", nargs="+", type=int, help="widths of other hidden layers than the task's")
    parser.add_argument("--batch", type=int, default=256, help="samples (default 256)")
    options = parser.parse_args(arguments)
    hidden = [f"model.hidden={options.hidden}"] if options.hidden else []
    config = compose_run([f"task={options.task}", "method=displacement", *hidden])
    data, model = load(config.dataset, config.data_dir), build_model(config)
    x, y = jnp.asarray(arrange(config, data.train_x[: options.batch])), jnp.asarray(data.train_y[: options.batch])
    params = model.init(key_for(0, "init"), x[:1])
    results = measured(model, params, x, y)
    device = environment()
    print(f"{options.task}, {len(config.model.hidden)} hidden layers, batch {options.batch}, {device['device']}")
    print(table(results), flush=True)
    if options.json:
        kept = {"task": options.task, "hidden": list(config.model.hidden), "batch": options.batch}
        write(options.json, "layers", **kept, results=results)


if __name__ == "__main__":
    main()
