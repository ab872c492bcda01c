"""Time and memory of an update by displacements over one by Adam.

    python -m benchmarks displacement [--network NAME ...|all] [--batch 256] [--steps 10] [--rounds 15] [--json FILE]

An update reads a batch of its own (--steps of them, which are on the device): value_and_grad and Adam's step, or a
forward pass, a backward sweep and Adam's step.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import optax
from jax import Array

from benchmarks.measure import Measurement, environment, measure, write
from benchmarks.networks import NETWORKS, Network, Program
from pjax.displacement import Displacement, Gain

GAINS: tuple[Gain, ...] = get_args(Gain)
DEFAULT = ["mnist mlp_1x128", "mnist mlp_4x128", "mnist mlp_4x128_skip", "cifar10 mlp_1x256"]


def adam(network: Network) -> Program:
    """Updates of (params, xs, ys), a batch each."""
    rule = optax.adam(1e-3)

    def train(params: Any, xs: Array, ys: Array) -> Any:
        def step(carry: Any, batch: tuple[Array, Array]) -> tuple[Any, Array]:
            params, state = carry
            loss, grads = jax.value_and_grad(lambda p: network.losses(*batch)(p).mean())(params)
            updates, state = rule.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (params, rule.init(params)), (xs, ys))

    return train


def displacement(network: Network, gain: Gain) -> Program:
    """The same by displacements."""
    method = Displacement(optax.adam(1e-3), gain=gain)

    def train(params: Any, xs: Array, ys: Array) -> Any:
        def step(carry: Any, batch: tuple[Array, Array]) -> tuple[Any, Array]:
            *carry, loss = method.update(network.losses(*batch), *carry)
            return tuple(carry), loss

        return jax.lax.scan(step, (params, method.init(params)), (xs, ys))

    return train


def table(results: dict[str, Measurement]) -> str:
    """Times and memory, and their ratios to Adam's."""
    first = results["Adam"]
    lines = [f"{'':24}{'ms/update':>10}{'quartiles':>16}{'/ Adam':>8}{'MB':>9}{'/ Adam':>8}{'compile s':>11}"]
    for name, m in results.items():
        quartiles = f"{m.spread_ms[0]:.2f}-{m.spread_ms[1]:.2f}"
        lines.append(
            f"{name:24}{m.step_ms:10.3f}{quartiles:>16}{m.step_ms / first.step_ms:8.2f}"
            f"{m.peak_mb:9.2f}{m.peak_mb / first.peak_mb:8.2f}{m.compile_s:11.1f}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers with device and versions to this file")
    parser.add_argument("--batch", type=int, default=256, help="samples per batch (default 256)")
    parser.add_argument("--steps", type=int, default=10, help="batches, an update each (default 10)")
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each (default 15)")
    parser.add_argument(
        "--network", nargs="+", choices=[*NETWORKS, "all"], default=DEFAULT, metavar="NAME", help="which networks"
    )
    options = parser.parse_args(arguments)
    device = environment()
    found = {}
    for name in NETWORKS if "all" in options.network else options.network:
        network = NETWORKS[name]
        params, xs, ys = network.arguments(options.steps * options.batch)
        xs, ys = (a.reshape(options.steps, options.batch, *a.shape[1:]) for a in (xs, ys))
        print(f"{name}, batch {options.batch}, {device['device']} ({device['platform']}, {device['cores']} cores)")
        programs = {f"displacement {gain}": (displacement(network, gain), options.steps) for gain in GAINS}
        results = measure({"Adam": (adam(network), options.steps), **programs}, (params, xs, ys), options.rounds)
        print(table(results), flush=True)
        found[name] = {case: dataclasses.asdict(m) for case, m in results.items()}
        if options.json:
            write(options.json, "displacement", batch=options.batch, results=found)


if __name__ == "__main__":
    main()
