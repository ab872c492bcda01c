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


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """Events of compilation, as they come."""
    events: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if "backend_compile" in event and duration_secs:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)
