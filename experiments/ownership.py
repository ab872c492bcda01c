"""Who works on a run: one process at a time, and a rule for owners that died.

Two locks of the library `filelock`. `run.lock` is the kernel's: it dies with its process, and is exact on one machine.
`owner.lock` is a lease: a file that its owner refreshes every ten seconds and removes at the end. It counts where the
kernel's locks do not reach, as between machines on some network file systems: a process that finds another machine's
lease takes it over once it has watched it for `LEASE_SECONDS` without a refresh. No clocks are compared.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLease, Timeout

from experiments.storage import relative

LOCK_SECONDS = 1.0
"""How long a run waits for its lock: a process that asks for the status holds it for a moment."""
LEASE_SECONDS = 30.0
"""An owner on another machine that does not refresh its lease for so long is dead."""
SILENT_SECONDS = 300.0
"""A lease that is older than this is not shown as a running process's."""


class RunBusy(Exception):
    """Another process works on the run; `silent` if it gives no sign of life, so that there is no use in waiting."""

    def __init__(self, message: str, silent: bool = False) -> None:
        super().__init__(message)
        self.silent = silent


class Owner:
    """The claim of this process on a run."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lost = folder, threading.Event()

    def lose(self, _: object) -> None:
        """Another process took the run over, or the claim can no longer be refreshed."""
        self._lost.set()

    def check(self) -> None:
        """Refuse to write once the run is another's.

        Raises:
            RunBusy: this process was silent for so long, suspended for example, that another took the run over.
        """
        if self._lost.is_set():
            raise RunBusy(
                f"{self._folder.name} was lost to another process, because {relative(self._folder / 'owner.lock')} "
                f"could not be refreshed for {LEASE_SECONDS:.0f} s"
            )


@contextmanager
def owned(folder: Path) -> Iterator[Owner]:
    """Hold a run's folder, which exists.

    Raises:
        RunBusy: another process holds it; the message says how long it has been silent.
        OSError: the locks cannot be written.
    """
    owner = Owner(folder)
    # The heartbeat is a thread of its own, so the lease must not be this thread's alone.
    lease = SoftFileLease(
        folder / "owner.lock", lease_duration=LEASE_SECONDS, on_compromise=owner.lose, thread_local=False
    )
    with ExitStack() as stack:
        try:
            _lock(folder, LOCK_SECONDS, stack)
            lease.acquire(timeout=LEASE_SECONDS + LOCK_SECONDS)
        except Timeout as error:
            raise _busy(folder) from error
        stack.callback(lease.release)
        yield owner


def is_owned(folder: Path) -> bool:
    """Whether a process works on the run. Looks for a moment and waits for nobody."""
    marker = folder / "owner.lock"
    if not (folder / "run.lock").exists() and not marker.exists():
        return False
    with ExitStack() as stack:
        try:
            _lock(folder, 0, stack)
            if marker.exists():
                # Takes over what a dead process of this machine left behind.
                stack.enter_context(SoftFileLease(marker, lease_duration=LEASE_SECONDS, timeout=0))
        except Timeout:
            silent = _silence(marker)
            return silent is None or silent < SILENT_SECONDS
        except PermissionError:
            # Another person's run, whose locks are not for us to take. Its lease tells by its age.
            silent = _silence(marker)
            return silent is not None and silent < SILENT_SECONDS
    return False


def _lock(folder: Path, seconds: float, stack: ExitStack) -> None:
    lock: BaseFileLock = FileLock(folder / "run.lock", timeout=seconds, fallback_to_soft=False)
    try:
        stack.enter_context(lock)
    except OSError as error:
        # A file system without such locks, as Lustre may be: the lease is all there is.
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
            raise


def _silence(marker: Path) -> float | None:
    """Seconds since an owner's last sign of life, by its file's time; None if there is none."""
    try:
        return max(0.0, time.time() - marker.stat().st_mtime)
    except OSError:
        return None


def _busy(folder: Path) -> RunBusy:
    silent = _silence(folder / "owner.lock")
    found = f"{folder.name} is being worked on by another process"
    if silent is None or silent < SILENT_SECONDS:
        return RunBusy(found)
    # A file server may keep the lock of a machine that is gone. Nobody can know from here, so a person decides.
    locks = f"{relative(folder / 'run.lock')} {relative(folder / 'owner.lock')}"
    return RunBusy(
        f"{found}, which has given no sign of life for {silent / 60:.0f} minutes; if its machine is gone, free the "
        f"run: rm {locks}",
        silent=True,
    )
