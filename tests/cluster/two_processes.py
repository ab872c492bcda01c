"""One of the processes of a run: python -m tests.suite.two_processes ADDRESS COUNT NUMBER OUT RESULTS ARGUMENT..."""

from __future__ import annotations

import sys
from collections.abc import Callable

import jax
import numpy as np

from experiments.checkpoint import Snapshot
from experiments.compose import compose_run
from experiments.data import load
from experiments.training import train


class Last:
    """A keeper of the last state."""

    def begin(self) -> None:
        pass

    def after(self, snapshots: Callable[[], list[Snapshot]]) -> None:
        (self.last,) = snapshots()


def main() -> None:
    address, count, number, out, *arguments = sys.argv[1:]
    if int(count) > 1:
        jax.distributed.initialize(address, int(count), int(number))
    config, keeper = compose_run(arguments), Last()
    outcome = train(config, load(config.dataset, config.data_dir), lambda _: None, keeper)
    leaves, _ = jax.tree.flatten_with_path(keeper.last.state.params)
    np.savez(out, **{jax.tree_util.keystr(path): leaf for path, leaf in leaves})
    print(outcome.metrics)


if __name__ == "__main__":
    main()
