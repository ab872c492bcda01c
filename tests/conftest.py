"""The environment of all tests, stricter than a user's."""

from __future__ import annotations

import gc
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

# Before JAX is imported anywhere: tests mean the same on a machine with an accelerator.
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

# Workers keep what they compiled, millions of objects: by its defaults the collector goes through them too often.
gc.set_threshold(50_000, 20, 100)

# Shapes that match only by adding leading dimensions are mistakes here.
jax.config.update("jax_numpy_rank_promotion", "raise")

SHARE = 8
"""One of so many cases of a `matrix` is this commit's."""
ROOT = Path(__file__).resolve().parent.parent
REQUIRED = {"shared": "PJAX_REQUIRE_SHARED", "slurm": "PJAX_REQUIRE_SLURM"}
"""Fixtures of what not every machine has, and the variables that make their absence a failure."""


@pytest.fixture(autouse=True)
def few_mappings() -> Iterator[None]:
    """Compiled programs are forgotten before they exhaust the process's memory mappings.

    Each takes about a dozen, and past Linux's limit (`vm.max_map_count`, 65,530) LLVM ends the process; a worker of
    this suite compiles thousands.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def x64() -> Iterator[None]:
    """64-bit floats for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def shared() -> Path:
    """The folder with the real data, `../shared` or PJAX_SHARED.

    Skips where there is none, and fails instead if PJAX_REQUIRE_SHARED is set, as `.ci/run` does beside `../shared`.
    """
    folder = Path(os.environ.get("PJAX_SHARED", ROOT.parent / "shared"))
    if folder.is_dir():
        return folder
    reason = f"no real data: {folder} is not a folder"
    if os.environ.get("PJAX_REQUIRE_SHARED"):
        pytest.fail(f"PJAX_REQUIRE_SHARED is set but there are {reason}")
    pytest.skip(reason)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="all cases of tests marked matrix, not this commit's part")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave this commit's part of the cases of each `matrix`; fixtures that not all machines have bring markers."""
    for item in items:
        for name in REQUIRED:
            if name in getattr(item, "fixturenames", ()):
                item.add_marker(name)
    if config.getoption("--all"):
        return
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("matrix"):
            groups.setdefault(item.nodeid.partition("[")[0], []).append(item)
    # The same in every process. A case that is asked for by its name is alone in its group.
    turn = random.Random(head())
    left_out = {case for cases in groups.values() for case in turn.sample(cases, len(cases) - -(-len(cases) // SHARE))}
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def head() -> str:
    """The commit that is checked out, or nothing."""
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A test that needs the real data, or SLURM, and is skipped for any reason fails where they are required."""
    report = yield
    for name, variable in REQUIRED.items():
        if report.skipped and item.get_closest_marker(name) and os.environ.get(variable):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped although {variable} is set"
    return report
