"""What a step's time is: every instruction of the compiled program, the longest first.

    python -m benchmarks profile [--network NAME] [--method AP] [--operators published] [--batch 256] [--top 20]

Times are the profiler's, summed over threads: two instructions at once count twice, and a product that shares its
threads with others takes longer than alone. "what" is the JAX operation that an instruction comes from.
"""

import argparse
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax

from benchmarks.measure import environment
from benchmarks.networks import NETWORKS, OPERATORS, Network, Program
from pjax import optim

METHODS = {
    "AP": optim.AlternatingProjections,
    "CP": optim.CyclicProjections,
    "DR": optim.DouglasRachford,
}
_INSTRUCTION = re.compile(r'\s+(?:ROOT )?%(\S+) = (\([^=]*\)|\S+) [\w-]+\((?:.*op_name="([^"]*)")?')


def program(network: Network, method: str, operators: str, steps: int) -> Program:
    """The steps of a method; "SGD" is one."""
    if method == "SGD":
        return network.gradient_steps(steps)
    return network.projection_steps(METHODS[method](steps, OPERATORS[operators]))


def instructions(fun: Program, arguments: tuple[object, ...]) -> tuple[Counter[str], dict[str, tuple[str, str]]]:
    """Nanoseconds in every instruction of one call, and the instructions' shapes and operations."""
    compiled = jax.jit(fun).lower(*arguments).compile()
    matches = filter(None, map(_INSTRUCTION.match, (compiled.as_text() or "").splitlines()))
    known = {m[1]: (m[2].partition("{")[0], "/".join((m[3] or "").split("/")[-2:])) for m in matches}
    jax.block_until_ready(compiled(*arguments))
    spent: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(compiled(*arguments))
        for path in Path(folder).rglob("*.xplane.pb"):
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
                for event in (event for line in plane.lines for event in line.events):
                    if event.name in known:
                        spent[event.name] += round(event.duration_ns)
    return spent, known


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(NETWORKS), default="mnist mlp_1x128", metavar="NAME")
    parser.add_argument("--method", choices=["SGD", *METHODS], default="AP")
    parser.add_argument("--operators", choices=list(OPERATORS), default="published")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=50, help="of the program (default 50)")
    parser.add_argument("--top", type=int, default=20, help="how many instructions (default 20)")
    options = parser.parse_args(arguments)
    network, device = NETWORKS[options.network], environment()
    fun = program(network, options.method, options.operators, options.steps)
    spent, known = instructions(fun, network.arguments(options.batch))
    whole = sum(spent.values())
    name = options.method if options.method == "SGD" else f"{options.method} {options.operators}"
    print(f"{network.name}, batch {options.batch}, {name}, {device['device']} ({device['platform']})")
    print(f"{'us/step':>9}{'share':>8}  {'shape':22}{'what':44}instruction")
    for instruction, ns in spent.most_common(options.top):
        shape, what = known[instruction]
        times = f"{ns / 1e3 / options.steps:9.1f}{ns / whole:8.1%}"
        print(f"{times}  {shape[:21]:22}{what[:43]:44}{instruction}")
    print(f"{whole / 1e3 / options.steps:9.1f}  all, summed over threads")


if __name__ == "__main__":
    main()
