"""One of the processes of MNIST 1x128: `python -m tests.cluster.two_processes ADDRESS COUNT NUMBER OUT DATA`.

It writes the parameters that AP and DR end with, and how many operations a device did, into the file OUT (.npz).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Compiled

from experiments import loop, training
from experiments.checkpoint import Snapshot
from experiments.compose import compose_run
from experiments.data import Dataset, load

STEPS = {"ap": 200, "dr": 100}


class Last:
    """A keeper of the last state."""

    def begin(self) -> None:
        """Nothing."""

    def after(self, snapshots: Callable[[], list[Snapshot]]) -> None:
        """Keep it."""
        (self.last,) = snapshots()


class Doubled:
    """A network with 64-bit parameters."""

    def __init__(self, model: Any) -> None:
        self._model, self.apply = model, model.apply

    def init(self, *arguments: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), self._model.init(*arguments))


def trained(method: str, data_dir: str, x64: bool) -> dict[str, Any]:
    """The parameters after a few updates, by name, and the operations from one evaluation to the next."""
    limits = ["protocol.evaluate_every=50", f"protocol.max_steps={STEPS[method]}", f"paths.data={data_dir}"]
    config = compose_run(["task=mnist-mlp_1x128", f"method={method}", *limits])
    data, keeper, flops = load(config.dataset, config.data_dir).limited(5000), Last(), []
    build, compile_chunk = training.build_model, loop.Runs.compile_chunk

    def counted(self: loop.Runs, batch_size: int) -> Compiled:
        compiled = compile_chunk(self, batch_size)
        analysis: Any = compiled.cost_analysis()
        flops.append(analysis["flops"])
        return compiled

    loop.Runs.compile_chunk = counted
    training.published_ms_per_step = lambda *_: 0.0
    with jax.enable_x64(x64):
        if x64:
            training.build_model = lambda config: Doubled(build(config))
            data = in_64_bits(data)
        try:
            training.train(config, data, lambda _: None, keeper)
        finally:
            training.build_model, loop.Runs.compile_chunk = build, compile_chunk
    leaves, _ = jax.tree.flatten_with_path(keeper.last.state.params)
    return {f"{method}{jax.tree_util.keystr(path)}": leaf for path, leaf in leaves} | {f"{method} flops": flops[0]}


def in_64_bits(data: Dataset) -> Dataset:
    """The same data as 64-bit floats."""
    return dataclasses.replace(data, train_x=data.train_x.astype(np.float64), test_x=data.test_x.astype(np.float64))


def main() -> None:
    """Command line."""
    address, count, number, out, data_dir = sys.argv[1:]
    if int(count) > 1:
        jax.distributed.initialize(address, int(count), int(number))
    # AP forgets a rounding error. DR makes it larger from step to step, without end where a network is small, and 64
    # bits leave room for that.
    np.savez(Path(out), **trained("ap", data_dir, x64=False), **trained("dr", data_dir, x64=True))


if __name__ == "__main__":
    main()
