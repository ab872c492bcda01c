"""Memory of the paper's architectures: one number per edge, and what the compiled SGD, AP and DR take.

    python -m benchmarks.memory [--json FILE] [--limit-gb 8] [--quick]

"edges" is the formula, 4 bytes for every edge of the graph: what holding a copy per edge would take. The rest
is arguments, results and temporaries of the compiled program of 50 steps, which is not run. CNNs have a
second row with the paper's batch of 256 where all three programs fit in the limit. ``--quick`` tries the
benchmark itself, on networks too small to tell anything.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import Array, lax

import pjax_core as pjax
from benchmarks.measure import environment, peak_mb, write
from benchmarks.step import MLP, STEPS, gradient_steps, losses, projection_steps
from pjax_core import nn, optim


class CNN(nn.Module):
    """3x3 convolutions with ReLU, the maximum over space, a linear output (Section 5.2)."""

    def __init__(self, layers: int, channels: int, classes: int = 10) -> None:
        super().__init__()
        self.convs = [nn.Conv2D(1 if i == 0 else channels, channels) for i in range(layers)]
        self.relus = [nn.ReLU(channels) for _ in range(layers)]
        self.pool = nn.MaxPool()
        self.out = nn.Linear(channels, classes)

    def __call__(self, x: Array) -> Array:
        """Logits ``(batch, classes)`` of images ``(batch, height, width, 1)``."""
        for conv, relu in zip(self.convs, self.relus, strict=True):
            x = relu(conv(x))
        return self.out(self.pool(x))


class RNN(nn.Module):
    """An MLP cell over an embedding and the last state: out come logits and the next state before its ReLU."""

    def __init__(self, symbols: int, width: int) -> None:
        super().__init__()
        self.symbols = symbols
        self.table = nn.Embedding(symbols, width)
        self.hidden = nn.Linear(2 * width, width)
        self.relu = nn.ReLU(width)
        self.out = nn.Linear(width, symbols + width)
        self.state_relu = nn.ReLU(width)

    def __call__(self, tokens: Array) -> Array:
        """Logits ``(batch, characters, symbols)`` of tokens ``(batch, characters)``, by ``lax.scan``."""
        embedded = jnp.swapaxes(self.table(tokens), 0, 1)

        def cell(state: Array, x: Array) -> tuple[Array, Array]:
            out = self.out(self.relu(self.hidden(jnp.concatenate([x, state], -1))))
            return self.state_relu(out[..., self.symbols :]), out[..., : self.symbols]

        _, logits = lax.scan(cell, jnp.zeros_like(embedded[0]), embedded)
        return jnp.swapaxes(logits, 0, 1)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and one sample of its data."""

    name: str
    model: nn.Module
    x: jax.ShapeDtypeStruct
    y: jax.ShapeDtypeStruct
    batches: tuple[int, ...]  # the first always, the others where they fit


def cases(*, quick: bool) -> list[Case]:
    """Return the networks of Tables 2 to 4, in sizes for the task or for a test."""

    def numbers(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def integers(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    if quick:
        tokens = integers(5)
        return [
            Case("MLP 1x6", MLP(8, 6, 3), numbers(8), integers(), (4,)),
            Case("CNN 1x4", CNN(1, 4, 3), numbers(6, 6, 1), integers(), (2, 4)),
            Case("RNN 1x6, 5 characters", RNN(7, 6), tokens, tokens, (4,)),
        ]
    image, tokens = numbers(28, 28, 1), integers(64)
    return [
        Case("MLP 1x128", MLP(), numbers(784), integers(), (256,)),
        Case("CNN 1x32", CNN(1, 32), image, integers(), (64, 256)),
        Case("CNN 4x16", CNN(4, 16), image, integers(), (64, 256)),
        Case("RNN 1x256, 64 characters", RNN(65, 256), tokens, tokens, (256,)),
    ]


def memory(case: Case, batch: int) -> dict[str, float]:
    """MB by name: "edges" by the formula, "SGD", "AP" and "DR" by the compiler. No array is made."""
    arguments = (
        jax.eval_shape(case.model.init, jax.random.key(0)),
        *(jax.ShapeDtypeStruct((batch, *sample.shape), sample.dtype) for sample in (case.x, case.y)),
    )
    graphs: list[pjax.Graph] = []
    jax.eval_shape(lambda p, x, y: graphs.append(pjax.trace(losses(case.model, x, y), p)), *arguments)
    programs = {
        "SGD": gradient_steps(case.model),
        "AP": projection_steps(case.model, optim.AlternatingProjections(STEPS)),
        "DR": projection_steps(case.model, optim.DouglasRachford(STEPS)),
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
    for case in cases(quick=options.quick):
        for batch in case.batches:
            title, found = f"{case.name}, batch {batch}", memory(case, batch)
            most = max(found[name] for name in found if name != "edges") / 1000
            if batch != case.batches[0] and most > options.limit_gb:
                print(f"{title:38}  left out: takes {most:.3g} GB, more than --limit-gb {options.limit_gb:g}")
                continue
            results[title] = found
            print(row(title, found), flush=True)
    if options.json:
        write(options.json, "memory", unit="MB", results=results)


if __name__ == "__main__":
    main()
