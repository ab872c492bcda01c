"""Step time against depth (Figure 6): SGD, CP and AP on MLPs of width 16 and one sample of 784 inputs.

    python -m benchmarks.depth [--layers 1 2 4 8 16 32 64] [--json FILE]

Layers of one shape are stacked by the engine where a method projects them at the same time (AP), so that a deep
network takes about as many operations as a shallow one; gradients and cyclic projections go through one layer
after the other. The slope is that of a line through the times, in microseconds per layer.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.measure import Measurement, environment, measure, write
from benchmarks.networks import STEPS, Program, mlp
from pjax import optim

INPUTS, WIDTH = 784, 16


def cases(layers: int) -> dict[str, tuple[Program, int]]:
    """Functions of (params, x, y) and their steps, by method."""
    network = mlp(f"mlp_{layers}x{WIDTH}", INPUTS, [WIDTH] * layers)
    return {
        "SGD": (network.gradient_steps(), STEPS),
        "CP": (network.projection_steps(optim.CyclicProjections(STEPS)), STEPS),
        "AP": (network.projection_steps(optim.AlternatingProjections(STEPS)), STEPS),
    }


def slope(times: dict[int, Measurement]) -> float:
    """Least-squares slope of the time over the number of layers, microseconds per layer."""
    return 1e3 * float(np.polyfit(list(times), [m.step_ms for m in times.values()], 1)[0])


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="hidden layers")
    parser.add_argument("--json", type=Path, help="write the numbers with device and versions to this file")
    options = parser.parse_args(arguments)
    device = environment()
    print(f"Microseconds per step, width {WIDTH}, one sample, {device['device']} ({device['platform']})")
    found: dict[str, dict[int, Measurement]] = {"SGD": {}, "CP": {}, "AP": {}}
    print(f"{'layers':>8}" + "".join(f"{name:>10}" for name in found))
    for layers in options.layers:
        sample = mlp("mlp", INPUTS, [WIDTH] * layers).arguments(1)
        for name, m in measure(cases(layers), sample, rounds=15).items():
            found[name][layers] = m
        print(f"{layers:8}" + "".join(f"{1e3 * times[layers].step_ms:10.1f}" for times in found.values()), flush=True)
    if len(options.layers) > 1:
        print(f"{'slope':>8}" + "".join(f"{slope(times):10.2f}" for times in found.values()))
    if options.json:
        rows = {name: {n: dataclasses.asdict(m) for n, m in times.items()} for name, times in found.items()}
        write(options.json, "depth", width=WIDTH, results=rows)


if __name__ == "__main__":
    main()
