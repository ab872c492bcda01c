"""Short runs on the digits, in folders of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.cells import Planned
from experiments.config import compose_run

SHORT = ("dataset=digits", "model=mlp_1x32", "protocol.evaluate_every=50", "protocol.max_steps=200")


def compose_short(folder: Path, *overrides: str) -> Planned:
    """A run of 200 steps with results in `folder`; further overrides come after."""
    arguments = (*SHORT, f"paths.results={folder}", *overrides)
    return Planned("test", compose_run(arguments), arguments)


@pytest.fixture
def short(tmp_path: Path) -> Callable[..., Planned]:
    """`compose_short` with results under `tmp_path`."""
    return lambda *overrides: compose_short(tmp_path / "runs", *overrides)


@pytest.fixture(scope="session")
def compose_in() -> Callable[..., Planned]:
    """`compose_short`, for fixtures that outlive a test."""
    return compose_short
