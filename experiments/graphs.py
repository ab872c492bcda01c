"""Trace the graphs of the paper's Figures 5 and 7, for `analysis` to draw.

    python -m experiments.graphs [--out results/graphs]

`mlp` is Listing 1 with a batch of 32 MNIST images and 16 hidden units (Figure 7). `rnn` is the RNN 1 x 256 on one text
of three characters (Figure 5), as the paper constructs it: the cell is called once per character, with the same
parameters. The engine itself traces `lax.scan` without unrolling; called in a Python loop, each cell has nodes of its
own, and a parameter's edges lead to all of them. An edge carries a local copy; the parameter's node makes them agree.
Each graph becomes an SVG picture and a JSON file with its nodes: kind, name, shape, side, the nodes that each operand
reads, and, in the RNN, the cell that they belong to.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp

import pjax
from baselines.rnn import Cell
from pjax import nn

CHARACTERS, HIDDEN, SYMBOLS = 3, 256, 65


class MLP(nn.Module):
    """Listing 1."""

    def __init__(self, in_features: int, hidden_features: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_features, hidden_features)
        self.relu = nn.ReLU(hidden_features)
        self.out = nn.Linear(hidden_features, num_classes)

    def __call__(self, x: Any) -> Any:
        """Logits (batch, num_classes) of x (batch, in_features)."""
        x = self.hidden(x)
        x = self.relu(x)
        return self.out(x)


def listing_1() -> pjax.Graph:
    """The graph of Listing 1: 32 images of 784 pixels, 16 hidden units, 10 classes."""
    model = MLP(in_features=784, hidden_features=16, num_classes=10)
    x, y = jnp.zeros((32, 784)), jnp.zeros(32, jnp.int32)
    params = model.init(jax.random.key(0))
    return pjax.trace(lambda params: nn.cross_entropy(model.apply(params, x), y), params)


def unrolled_rnn() -> pjax.Graph:
    """The graph of three cells that share their parameters, on one text."""
    cell = Cell([HIDDEN], SYMBOLS, output_bias=False)
    embed = flax.linen.Embed(SYMBOLS, HIDDEN)
    text, targets = jnp.arange(CHARACTERS)[None], jnp.arange(1, CHARACTERS + 1)[None]
    state = jnp.zeros((1, HIDDEN))
    key_cell, key_embed = jax.random.split(jax.random.key(0))
    params = {
        "cell": cell.init(key_cell, state, jnp.zeros((1, HIDDEN)))["params"],
        "embedding": embed.init(key_embed, text)["params"],
    }

    def loss_fn(params: Any) -> Any:
        state, logits = jnp.zeros((1, HIDDEN)), []
        for t in range(CHARACTERS):
            embedded = embed.apply({"params": params["embedding"]}, text[:, t])
            state, out = cell.apply({"params": params["cell"]}, state, embedded)
            logits.append(out)
        return nn.cross_entropy(jnp.stack(logits, axis=1), targets)

    return pjax.trace(loss_fn, params)


def describe(graph: pjax.Graph, cells: int = 0) -> dict[str, Any]:
    """The graph's nodes as plain data; `cells` is how many unrolled cells it has."""
    side_a, nodes = set(graph.sides[0]), []
    step: dict[int, int] = {}
    for number, node in enumerate(graph.nodes):
        reads = [list(operand.producers) for operand in node.operands]
        if cells and node.kind == "constraint":
            # A cell begins where the embedded character is read beside the state.
            before = [step[p] for operand in reads for p in operand if p in step]
            embedded = any(graph.nodes[p].name.startswith("embedding") for operand in reads for p in operand)
            step[number] = max(before, default=0) + embedded
        nodes.append(
            {
                "kind": node.kind,
                "name": node.name,
                "shape": list(node.shape),
                "side": "A" if number in side_a else "B",
                "reads": reads,
                "cell": step.get(number),
            }
        )
    assert max(step.values(), default=0) == cells
    return {"command": "python -m experiments.graphs", "nodes": nodes}


def write(out: Path) -> list[Path]:
    """Write pictures and data of both graphs to a folder; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, graph, cells in (("rnn", unrolled_rnn(), CHARACTERS), ("mlp", listing_1(), 0)):
        graph.draw(out / f"{name}.svg")
        text = json.dumps(describe(graph, cells), indent=1)
        (out / f"{name}.json").write_text(text + "\n", encoding="utf-8", newline="\n")
        written += [out / f"{name}.svg", out / f"{name}.json"]
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.graphs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/graphs"), help="folder for pictures and data")
    try:
        written = write(parser.parse_args(arguments).out)
    except OSError as error:
        print(f"error: the graphs cannot be written: {error}", file=sys.stderr)
        return 2
    print(f"written: {', '.join(map(str, written))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
