"""Signals that ask a run to end: it ends at its next evaluation, with its state saved.

SIGINT is Ctrl-C, SIGTERM what a shutdown or a cancelled job sends, SIGUSR1 what SLURM can send before its time limit.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")


class Interrupted(KeyboardInterrupt):
    """A signal ended the work; `status` is the exit status that says which."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.status = 128 + signum


class Lost(KeyboardInterrupt):
    """What the work needs has gone, and a new start may have it again; `status` is that of sysexits.h for this."""

    status = 75


class Interruption:
    """What was asked for so far. While `deferred`, a signal is only noted, for the loop to see."""

    def __init__(self) -> None:
        self.deferred = False
        self._signum: int | None = None

    @property
    def pending(self) -> bool:
        """Whether a signal asked to end."""
        return self._signum is not None

    @property
    def signum(self) -> int:
        """The signal that asked to end; 0: none."""
        return self._signum or 0

    def check(self) -> None:
        """End now if a signal asked for it.

        Raises:
            Interrupted: one did.
        """
        if self._signum is not None:
            raise Interrupted(self._signum)

    def handle(self, signum: int, _: FrameType | None) -> None:
        """The signal handler. A second Ctrl-C ends at once; other signals are often sent twice.

        SLURM tells all processes of a job, and those that started others hand it on: what came first is being done,
        and its last words are not to be cut.
        """
        again = self._signum is not None
        if again and signum != signal.SIGINT:
            return
        if not again:
            self._signum = signum
        if again or not self.deferred:
            raise Interrupted(signum)
        # Not by print, which may be what the signal interrupted.
        name = signal.Signals(signum).name
        os.write(2, f"\n{name}: the run ends at its next evaluation, saved; Ctrl-C ends it at once\n".encode())


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Listen for the signals; handlers are as before afterwards. In a thread, which can have none, nothing is heard.

    A signal that the process was started to ignore, as a shell's background jobs ignore SIGINT, stays ignored. One that
    a launcher listens to is the launcher's: submitit waits after SIGTERM until SLURM requeues its job.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    known = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {signum: signal.getsignal(signum) for signum in known}
    ours = (signal.SIG_DFL, signal.default_int_handler)
    heard = {signum: handler for signum, handler in before.items() if handler in ours}
    try:
        for signum in heard:
            signal.signal(signum, interruption.handle)
        yield interruption
    finally:
        for signum, handler in heard.items():
            signal.signal(signum, handler)
