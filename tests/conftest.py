"""The environment of all tests, stricter than a user's."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

# Before JAX is imported anywhere: tests mean the same on a machine with an accelerator.
os.environ["JAX_PLATFORMS"] = "cpu"
# Most tests compile many small programs and run each for a moment: half of the suite's time would be spent in making
# them fast. Files that train for long, or look at what was compiled, ask for `optimized`.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest

# Shapes that match only by adding leading dimensions are mistakes here.
jax.config.update("jax_numpy_rank_promotion", "raise")

QUICK = "JAX_DISABLE_MOST_OPTIMIZATIONS"
ROOT = Path(__file__).resolve().parent.parent


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


@pytest.fixture(scope="module")
def optimized() -> Iterator[None]:
    """Programs as users have them, here and in processes that the file's tests start."""
    before = os.environ[QUICK]
    os.environ[QUICK] = "0"
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    os.environ[QUICK] = before
    jax.config.update("jax_disable_most_optimizations", before == "1")


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The fixture brings its marker: a test cannot have one without the other."""
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker("shared")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A test that needs the real data and is skipped for any reason fails where they are required."""
    report = yield
    if report.skipped and item.get_closest_marker("shared") and os.environ.get("PJAX_REQUIRE_SHARED"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped although PJAX_REQUIRE_SHARED is set"
    return report
