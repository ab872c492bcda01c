"""Seeds as one program: the time of five vmapped training runs over that of five runs one after the other.

    python -m benchmarks seeds [--network NAME ...] [--seeds 5] [--batch 256] [--json FILE]

Every run takes 50 steps from parameters and on a batch of its own; a step of the batched program is a step of all.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import pjax_core as pjax
from benchmarks.measure import environment, measure, write
from benchmarks.networks import NETWORKS, STEPS, Network, Program
from pjax_core import optim


def cases(network: Network, seeds: int) -> dict[str, tuple[Program, int]]:
    """Functions of stacked (params, x, y) and their steps: a method's first run alone, and all as one."""
    programs = {
        "SGD": network.gradient_steps(),
        "AP": network.projection_steps(optim.AlternatingProjections(STEPS, pjax.PUBLISHED)),
        "DR": network.projection_steps(optim.DouglasRachford(STEPS, pjax.PUBLISHED)),
    }
    found: dict[str, tuple[Program, int]] = {}
    for name, program in programs.items():

        def alone(*arguments: Any, program: Program = program) -> Any:
            return program(*jax.tree.map(lambda a: a[0], arguments))

        found |= {name: (alone, STEPS), f"{name}, {seeds} seeds": (jax.vmap(program), STEPS)}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ["mnist mlp_1x128", "higgs mlp_1x256", "mnist mlp_4x128"]
    parser.add_argument("--network", nargs="+", choices=list(NETWORKS), default=default, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--json", type=Path, help="write the numbers with device and versions to this file")
    options = parser.parse_args(arguments)
    device, results = environment(), dict[str, Any]()
    for name in options.network:
        network = NETWORKS[name]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[network.arguments(options.batch)] * options.seeds)
        measured = measure(cases(network, options.seeds), stacked)
        print(f"{name}, batch {options.batch}, {device['device']} ({device['platform']}, {device['cores']} cores)")
        print(f"{'':6}{'ms/step':>10}{f'{options.seeds} seeds':>10}{'/ alone':>10}{'MB':>10}{'/ alone':>10}")
        for method in ("SGD", "AP", "DR"):
            alone, all_ = measured[method], measured[f"{method}, {options.seeds} seeds"]
            times = f"{alone.step_ms:10.3f}{all_.step_ms:10.3f}{all_.step_ms / alone.step_ms:9.2f}x"
            print(f"{method:6}{times}{all_.peak_mb:10.1f}{all_.peak_mb / alone.peak_mb:9.2f}x", flush=True)
        results[name] = {case: dataclasses.asdict(m) for case, m in measured.items()}
    if options.json:
        write(options.json, "seeds", seeds=options.seeds, batch=options.batch, results=results)


if __name__ == "__main__":
    main()
