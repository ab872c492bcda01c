"""Memory of the paper's architectures: one number per edge, and what the compiled SGD, AP and DR take.

    python -m benchmarks.memory [--json FILE] [--limit-gb 8] [--quick]

"edges" is the formula, 4 bytes for every edge of the graph: what holding a copy per edge would take. The rest
is arguments, results and temporaries of the compiled program of 50 steps, which is not run. The paper's CNNs
have a second row with the paper's batch of 256 where all three programs fit in the limit. ``--quick`` tries the
benchmark itself, on networks too small to tell anything.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax

import pjax
from benchmarks.measure import environment, peak_mb, write
from benchmarks.networks import NETWORKS, STEPS, Network, cnn, mlp, rnn
from pjax import optim

CASES = {
    **{network: (64, 256) if "cnn" in name else (256,) for name, network in NETWORKS.items()},
    cnn("cifar10 cnn_4x64", (32, 32, 3), [64] * 4): (256,),
}
"""Networks and batches, the first always and the others where they fit; the last network is wider than the paper's."""

QUICK = {
    mlp("mlp_1x6", 8, [6]): (4,),
    cnn("cnn_1x4", (6, 6, 1), [4]): (2, 4),
    rnn("rnn_1x6", [6], characters=5): (4,),
}


def memory(network: Network, batch: int) -> dict[str, float]:
    """MB by name: "edges" by the formula, "SGD", "AP" and "DR" by the compiler. No array is made."""
    arguments = jax.eval_shape(lambda: network.arguments(batch))
    graphs: list[pjax.Graph] = []
    jax.eval_shape(lambda p, x, y: graphs.append(pjax.trace(network.losses(x, y), p)), *arguments)
    programs = {
        "SGD": network.gradient_steps(),
        "AP": network.projection_steps(optim.AlternatingProjections(STEPS)),
        "DR": network.projection_steps(optim.DouglasRachford(STEPS)),
    }
    peaks = {name: peak_mb(jax.jit(program).lower(*arguments).compile()) for name, program in programs.items()}
    return {"edges": 4 * graphs[0].edges / 1e6, **peaks}


def row(title: str, found: dict[str, float]) -> str:
    """MB, each but SGD's followed by its ratio to SGD."""
    sgd = found["SGD"]
    return f"{title:38}" + "".join(
        f"{mb:10.2f}" + ("" if name == "SGD" else f"{mb / sgd:9.2f}") for name, mb in found.items()
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers with device and versions to this file")
    parser.add_argument("--limit-gb", type=float, default=8, help="the most that a larger batch may take (default 8)")
    parser.add_argument("--quick", action="store_true", help="small networks, to try the benchmark itself")
    options = parser.parse_args(arguments)
    device = environment()
    print(f"MB and ratios to SGD, {device['device']} ({device['platform']}, jax {device['jax']})")
    print(f"{'':38}{'edges':>10}{'/ SGD':>9}{'SGD':>10}{'AP':>10}{'/ SGD':>9}{'DR':>10}{'/ SGD':>9}")
    results: dict[str, dict[str, float]] = {}
    for network, batches in QUICK.items() if options.quick else CASES.items():
        for batch in batches:
            title, found = f"{network.name}, batch {batch}", memory(network, batch)
            most = max(found[name] for name in found if name != "edges") / 1000
            if batch != batches[0] and most > options.limit_gb:
                print(f"{title:38}  left out: takes {most:.3g} GB, more than --limit-gb {options.limit_gb:g}")
                continue
            results[title] = found
            print(row(title, found), flush=True)
    if options.json:
        write(options.json, "memory", unit="MB", results=results)


if __name__ == "__main__":
    main()
