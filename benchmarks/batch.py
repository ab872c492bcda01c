"""Step time and memory against the batch size: SGD, the products alone, AP, DR, and AP on edges while they fit.

    python -m benchmarks batch [--network NAME] [--batches 32 128 512 2048] [--edges-gb 2] [--json FILE]

Milliseconds per step and the ratio to SGD's at the same batch; the last column says how much faster AP is than on
edges, at every batch whose edges' copies take no more than --edges-gb.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pjax
from benchmarks.measure import environment, measure, write
from benchmarks.networks import NETWORKS
from benchmarks.step import EDGE_STEPS
from pjax import optim


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(NETWORKS), default="mnist mlp_1x128", metavar="NAME")
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128, 512, 2048])
    parser.add_argument("--steps", type=int, default=20, help="of a program (default 20)")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each (default 5)")
    parser.add_argument("--edges-gb", type=float, default=2, help="most memory of the edges' copies (default 2)")
    parser.add_argument("--json", type=Path, help="write the numbers with device and versions to this file")
    options = parser.parse_args(arguments)
    network, device, results = NETWORKS[options.network], environment(), dict[str, Any]()
    print(f"{network.name}, ms/step, {device['device']} ({device['platform']}, {device['cores']} cores)")
    print(
        f"{'batch':>6}{'SGD':>9}{'products':>10}{'AP':>9}{'/ SGD':>7}{'DR':>9}{'/ SGD':>7}{'MB':>9}{'edges / AP':>12}"
    )
    for batch in options.batches:
        sample = network.arguments(batch)
        steps, edges = options.steps, pjax.trace(network.losses(*sample[1:]), sample[0]).edges
        cases = {
            "SGD": (network.gradient_steps(steps), steps),
            "products": (network.products(steps), steps),
            "AP": (network.projection_steps(optim.AlternatingProjections(steps)), steps),
            "DR": (network.projection_steps(optim.DouglasRachford(steps)), steps),
        }
        if 4 * edges < 1e9 * options.edges_gb:
            oracle = optim.AlternatingProjections(EDGE_STEPS, representation="edges")
            cases["AP, edges"] = network.projection_steps(oracle), EDGE_STEPS
        found = measure(cases, sample, options.rounds)
        sgd, products, ap, dr = (found[name].step_ms for name in ("SGD", "products", "AP", "DR"))
        faster = f"{found['AP, edges'].step_ms / ap:.0f}x" if "AP, edges" in found else "too large"
        print(
            f"{batch:6}{sgd:9.3f}{products:10.3f}{ap:9.3f}{ap / sgd:7.2f}{dr:9.3f}{dr / sgd:7.2f}"
            f"{found['DR'].peak_mb:9.1f}{faster:>12}",
            flush=True,
        )
        results[str(batch)] = {name: dataclasses.asdict(m) for name, m in found.items()}
    if options.json:
        write(options.json, "batch", network=network.name, results=results)


if __name__ == "__main__":
    main()
