"""Time and memory of one step: SGD, Adam, the matrix products alone, AP, CP, DR and the edges representation.

    python -m benchmarks step [--network NAME ...|all] [--batch 256] [--steps 50] [--rounds 9] [--json FILE]

Every function takes 50 steps (--steps) on one batch that is on the device: SGD and Adam scan value_and_grad and update,
"products" scans the matrix products (convolutions) of AP's step and nothing else, the projection methods run one
update. AP on edges takes 3 (time per step does not depend on K) and is left out where its edges need more
than --edges-gb. FILE grows with every network.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import optax

import pjax
from benchmarks.measure import Measurement, environment, measure, write
from benchmarks.networks import NETWORKS, OPERATORS, STEPS, Network, Program
from pjax import optim

EDGE_STEPS = 3


def cases(
    network: Network, *, edges: bool = True, steps: int = STEPS, operators: Sequence[str] = tuple(OPERATORS)
) -> dict[str, tuple[Program, int]]:
    """Functions of (params, x, y) and their steps, by name; "SGD" first."""

    def projections(method: optim.ProjectionMethod) -> tuple[Program, int]:
        return network.projection_steps(method), method.steps_per_update

    found = {
        "SGD": (network.gradient_steps(steps), steps),
        "Adam": (network.gradient_steps(steps, optax.adam), steps),
        "products": (network.products(steps), steps),
    }
    for name in operators:
        found[f"AP {name}"] = projections(optim.AlternatingProjections(steps, OPERATORS[name]))
        found[f"CP {name}"] = projections(optim.CyclicProjections(steps, OPERATORS[name]))
        found[f"DR {name}"] = projections(optim.DouglasRachford(steps, OPERATORS[name]))
        if edges:
            oracle = optim.AlternatingProjections(EDGE_STEPS, OPERATORS[name], "edges")
            found[f"AP {name}, edges"] = projections(oracle)
    return found


def table(results: dict[str, Measurement]) -> str:
    """Times, memory and their ratios to SGD, to the products alone and to the edges representation."""
    sgd, products = results["SGD"], results["products"]
    head = ("ms/step", 9), ("quartiles", 16), ("/ SGD", 8), ("/ products", 12), ("edges /", 9), ("MB", 9), ("/ SGD", 8)
    lines = [f"{'':22}" + "".join(f"{title:>{width}}" for title, width in (*head, ("compile s", 11)))]
    for name, m in results.items():
        edges = results.get(f"AP {name.split()[-1]}, edges")
        faster = f"{edges.step_ms / m.step_ms:.0f}x" if edges and "edges" not in name else ""
        quartiles = f"{m.spread_ms[0]:.2f}-{m.spread_ms[1]:.2f}"
        lines.append(
            f"{name:22}{m.step_ms:9.3f}{quartiles:>16}{m.step_ms / sgd.step_ms:8.2f}"
            f"{m.step_ms / products.step_ms:12.2f}{faster:>9}"
            f"{m.peak_mb:9.2f}{m.peak_mb / sgd.peak_mb:8.2f}{m.compile_s:11.1f}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers with device and versions to this file")
    parser.add_argument("--batch", type=int, default=256, help="samples per batch (default 256)")
    parser.add_argument("--steps", type=int, default=STEPS, help="of a program (default 50, as in the paper)")
    parser.add_argument("--rounds", type=int, default=9, help="timed calls of each (default 9)")
    parser.add_argument("--edges-gb", type=float, default=0.5, help="most memory of the edges' copies (default 0.5)")
    parser.add_argument(
        "--network",
        nargs="+",
        choices=[*NETWORKS, "all"],
        default=["mnist mlp_1x128"],
        metavar="NAME",
        help=f"which networks (default mnist mlp_1x128), or all: {', '.join(map(repr, NETWORKS))}",
    )
    parser.add_argument("--operators", nargs="+", choices=list(OPERATORS), default=list(OPERATORS))
    options = parser.parse_args(arguments)
    device = environment()
    found = {}
    for name in NETWORKS if "all" in options.network else options.network:
        network = NETWORKS[name]
        params, x, y = network.arguments(options.batch)
        print(f"{name}, batch {options.batch}, {device['device']} ({device['platform']}, {device['cores']} cores)")
        graph = pjax.trace(network.losses(x, y), params)
        edges = 4 * graph.edges < 1e9 * options.edges_gb
        programs = cases(network, edges=edges, steps=options.steps, operators=options.operators)
        results = measure(programs, (params, x, y), options.rounds)
        print(table(results), flush=True)
        found[name] = {case: dataclasses.asdict(m) for case, m in results.items()}
        if options.json:
            write(options.json, "step", batch=options.batch, results=found)


if __name__ == "__main__":
    main()
