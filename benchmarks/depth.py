"""Step time against depth (Figure 6): SGD, CP and AP on MLPs of width 16 and one sample of 784 inputs.

    python -m benchmarks.depth [--layers 1 2 4 8 16 32 64] [--json FILE]
    taskset --cpu-list 0 python -m benchmarks.depth ...   # one core of a processor

Layers of one shape are stacked by the engine where a method projects them at the same time (AP), so that a deep
network takes about as many operations as a shallow one; gradients and cyclic projections go through one layer
after the other. As in training, a program takes several updates. All depths take turns, so that a disturbance hits all
of them. XLA divides the largest operations among the threads of a processor: on one core it does not. The slope is
that of a line through the times, in microseconds per layer.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from benchmarks.measure import Measurement, environment, measure, write
from benchmarks.networks import STEPS, Network, Program, mlp
from pjax import optim

INPUTS, WIDTH = 784, 16
UPDATES = 10  # of a program, each of STEPS
DEEP, SHALLOW = 64, 4  # whose times are compared


def network(layers: int) -> Network:
    """MLP of the figure."""
    return mlp(f"mlp_{layers}x{WIDTH}", INPUTS, [WIDTH] * layers)


def updates(net: Network, method: optim.ProjectionMethod) -> Program:
    """Several updates on one batch."""

    def train(params: Any, x: Array, y: Array) -> Any:
        return jax.lax.fori_loop(0, UPDATES, lambda _, p: method.update(net.losses(x, y), p).params, params)

    return train


def cases(layers: int) -> dict[str, tuple[Program, int]]:
    """Functions of (params, x, y) and their steps, by method."""
    net, steps = network(layers), UPDATES * STEPS
    return {
        "SGD": (net.gradient_steps(steps), steps),
        "CP": (updates(net, optim.CyclicProjections(STEPS)), steps),
        "AP": (updates(net, optim.AlternatingProjections(STEPS)), steps),
    }


def slope(times: dict[int, Measurement]) -> float:
    """Least-squares slope of the time over the number of layers, microseconds per layer."""
    return 1e3 * float(np.polyfit(list(times), [m.step_ms for m in times.values()], 1)[0])


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="hidden layers")
    parser.add_argument("--rounds", type=int, default=25, help="timed calls of each (default 25)")
    parser.add_argument("--json", type=Path, help="write the numbers with device and versions to this file")
    options = parser.parse_args(arguments)
    device = environment()
    print(
        f"Microseconds per step, width {WIDTH}, one sample, {device['device']} ({device['platform']}, "
        f"{device['cores']} core{'s' * (device['cores'] != 1)})"
    )
    each, samples = dict[str, tuple[Program, int]](), dict[str, tuple[Any, ...]]()
    for n in options.layers:
        sample = network(n).arguments(1)
        for name, case in cases(n).items():
            each[f"{name} {n}"], samples[f"{name} {n}"] = case, sample
    measured = measure(each, samples, options.rounds)
    found = {name: {n: measured[f"{name} {n}"] for n in options.layers} for name in ("SGD", "CP", "AP")}
    print(f"{'layers':>8}" + "".join(f"{name:>10}" for name in found))
    for n in options.layers:
        print(f"{n:8}" + "".join(f"{1e3 * times[n].step_ms:10.1f}" for times in found.values()))
    if len(options.layers) > 1:
        print(f"{'slope':>8}" + "".join(f"{slope(times):10.2f}" for times in found.values()))
    if {DEEP, SHALLOW} <= {*options.layers}:
        ratios = (times[DEEP].step_ms / times[SHALLOW].step_ms for times in found.values())
        print(f"{f'{DEEP} / {SHALLOW}':>8}" + "".join(f"{ratio:10.2f}" for ratio in ratios))
    if options.json:
        rows = {name: {n: dataclasses.asdict(m) for n, m in times.items()} for name, times in found.items()}
        write(options.json, "depth", width=WIDTH, results=rows)


if __name__ == "__main__":
    main()
