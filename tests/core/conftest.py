"""What the engine's tests share beside networks."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile(request: pytest.FixtureRequest) -> Iterator[None]:
    """Most files compile many small programs and run each for a moment: half of their time would make them fast.

    A file that trains for long, or looks at what was compiled, has programs as users do: `OPTIMIZED = True`.
    """
    quick = not getattr(request.module, "OPTIMIZED", False)
    jax.config.update("jax_disable_most_optimizations", quick)
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
