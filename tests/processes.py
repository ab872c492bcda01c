"""Processes of this machine, as Linux's /proc tells of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def running() -> Iterator[tuple[int, bytes, list[bytes]]]:
    """Number, command line and environment of each process that can be looked at."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command, variables = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
            yield int(folder.name), command, variables.split(b"\0")


def send(signum: int, pids: list[int]) -> None:
    """Send a signal to processes that may be gone already."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signum)
