"""Seeds as one program: the time of five runs' steps over that of one, batched (vmap) and one after the other (map).

    python -m benchmarks seeds [--network NAME ...] [--seeds 5] [--batch 256] [--json FILE]

Every run takes 50 steps, all of them from the same parameters on the same batch; a step of the program is a step of
all. A time alone is that of as many runs in turn as there are seeds, as long as the others. Below that number it
pays to have one program. On a processor the harness takes map for DR and vmap for the rest.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import pjax
from benchmarks.measure import environment, measure, write
from benchmarks.networks import NETWORKS, STEPS, Network, Program
from pjax import optim

METHODS = "SGD", "AP", "DR"


def cases(network: Network) -> dict[str, tuple[Program, int]]:
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

        def mapped(*arguments: Any, program: Program = program) -> Any:
            return jax.lax.map(lambda own: program(*own), arguments)

        found |= {name: (alone, STEPS), f"{name}, vmap": (jax.vmap(program), STEPS), f"{name}, map": (mapped, STEPS)}
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
        measured = measure(cases(network), stacked, rounds=15, calls=dict.fromkeys(METHODS, options.seeds))
        print(f"{name}, batch {options.batch}, {device['device']} ({device['platform']}, {device['cores']} cores)")
        print(
            f"{options.seeds} seeds{'ms/step':>9}{'vmap':>9}{'/ alone':>9}{'map':>9}{'/ alone':>9}{'vmap MB/alone':>15}"
        )
        for method in METHODS:
            alone, vmap, mapped = (measured[f"{method}{way}"] for way in ("", ", vmap", ", map"))
            times = "".join(f"{m.step_ms:9.3f}{m.step_ms / alone.step_ms:8.2f}x" for m in (vmap, mapped))
            print(f"{method:7}{alone.step_ms:9.3f}{times}{vmap.peak_mb / alone.peak_mb:14.2f}x", flush=True)
        results[name] = {case: dataclasses.asdict(m) for case, m in measured.items()}
    if options.json:
        write(options.json, "seeds", seeds=options.seeds, batch=options.batch, results=results)


if __name__ == "__main__":
    main()
