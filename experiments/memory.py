"""Memory of a compiled program, known before it runs, and of the device that is to run it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax.stages import Compiled

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Where Linux says what a container may take."""


def peak_bytes(compiled: Compiled) -> int | None:
    """Arguments, results and temporaries of a compiled program, as far as they are not the same buffers.

    None where the compiler does not tell.
    """
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    buffers = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return buffers - memory.alias_size_in_bytes


def device_bytes() -> int | None:
    """What JAX may take of the default device; of a processor the main memory, or a container's share of it.

    None where nobody tells.
    """
    # Imported late, so that `make plan`'s help comes at once.
    import jax

    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):
        found = []
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        found.append(int(CGROUP_LIMIT.read_text()))
    return min(found, default=None)


def limit_bytes(memory_gb: float | None, jobs: int = 1) -> float | None:
    """What a run may take: what its configuration says (10^9 bytes), or its share of what the device has."""
    if memory_gb is not None:
        return 1e9 * memory_gb
    from jax import default_backend

    found = device_bytes()
    # On a GPU that several processes share, each may have been given its share when it started.
    given = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION")
    if given and float(given) * jobs <= 1 and default_backend() != "cpu":
        return found
    return None if found is None else found / jobs


def gigabytes(size: float) -> str:
    """A size in words."""
    return f"{size / 1e9:.3g} GB"
