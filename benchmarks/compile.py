"""Tracing and compilation: seconds until the first step of SGD, AP and DR, and of the RNN at two lengths.

    python -m benchmarks.compile [--batch 256] [--json FILE]

Nothing is run. "trace" is from the function to the compiler's input, "compile" the compiler itself. Recurrence is
not unrolled, so 256 characters take about as long as 64.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.measure import environment, write
from benchmarks.networks import NETWORKS, STEPS, Network, Program, rnn
from pjax import optim


def seconds(program: Program, arguments: Any) -> dict[str, float]:
    """Seconds of tracing and of compilation, with nothing remembered from before."""
    jax.clear_caches()
    start = time.perf_counter()
    lowered = jax.jit(program).lower(*arguments)
    traced = time.perf_counter()
    lowered.compile()
    return {"trace": traced - start, "compile": time.perf_counter() - traced}


def measure(network: Network, batch: int) -> dict[str, dict[str, float]]:
    """Seconds by method."""
    arguments = jax.eval_shape(lambda: network.arguments(batch))
    programs = {
        "SGD": network.gradient_steps(),
        "AP": network.projection_steps(optim.AlternatingProjections(STEPS)),
        "DR": network.projection_steps(optim.DouglasRachford(STEPS)),
    }
    return {name: seconds(program, arguments) for name, program in programs.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256, help="samples per batch (default 256)")
    parser.add_argument("--json", type=Path, help="write the numbers with device and versions to this file")
    parser.add_argument("--network", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), metavar="NAME")
    options = parser.parse_args(arguments)
    device = environment()
    print(f"Seconds to trace + compile, {device['device']} ({device['platform']}, jax {device['jax']})")
    print(f"{'':38}{'SGD':>14}{'AP':>14}{'DR':>14}")
    networks = [NETWORKS[name] for name in options.network]
    if NETWORKS["shakespeare rnn_1x256"] in networks:
        networks.append(rnn("rnn_1x256, 256 characters", [256], characters=256))
    found = {}
    for network in networks:
        found[network.name] = measure(network, options.batch)
        cells = (f"{s['trace']:.2f} + {s['compile']:.2f}" for s in found[network.name].values())
        print(f"{network.name:38}" + "".join(f"{cell:>14}" for cell in cells), flush=True)
    if options.json:
        write(options.json, "compile", unit="s", batch=options.batch, results=found)


if __name__ == "__main__":
    main()
