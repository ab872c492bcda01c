"""What the engine's tests share beside networks."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="module")
def quick_to_compile() -> Iterator[None]:
    """For files that compile many small networks and compare iterates: they run in no time however compiled.

    The other files compile as users do.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
