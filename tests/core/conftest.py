"""What the engine's tests share beside networks."""

from collections.abc import Iterator

import jax
import pytest


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
