"""One run on several processes: each takes a part of every batch, and the first writes what the run leaves behind.

All processes do the same program, as JAX wants it. The first, the leader, works on run folders as it would alone; the
others know nothing of folders but to read checkpoints, and hear from it what to train and, after each evaluation,
whether to go on. With one process everything here does nothing.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.config import UsageError
from experiments.interruption import Lost
from experiments.ownership import RunBusy
from experiments.records import run_id
from experiments.storage import StorageError

if TYPE_CHECKING:
    from experiments.checkpoint import Keeper, Snapshot
    from experiments.config import RunConfig

T = TypeVar("T")
AXIS = "batch"
LOST_SECONDS = 5.0
"""How long the end of another process may take to be known here, when something has gone wrong."""
ADDRESS_BYTES = 1024
"""How long the leader's address may be."""
GO, FETCH, STOP, END, READY = "go", "fetch", "stop", "end", "ready"


class Stopped(Exception):
    """The leader trains no further."""


def join(processes: int) -> None:
    """Become one of the processes of a SLURM step."""
    if processes > 1:
        # It reads SLURM's variables.
        jax.distributed.initialize()
        _lines()


def is_follower() -> bool:
    """Whether another process leads."""
    return jax.process_index() > 0


@functools.cache
def _mesh() -> Mesh | None:
    return Mesh(np.array(jax.devices()), (AXIS,)) if jax.process_count() > 1 else None


def everywhere() -> NamedSharding | None:
    """Where all but batches are: whole on every device; None with one process, where JAX decides."""
    mesh = _mesh()
    return NamedSharding(mesh, PartitionSpec()) if mesh else None


def put(tree: Any) -> Any:
    """Arrays on the device, or on every one."""
    sharding = everywhere()
    return jax.device_put(tree) if sharding is None else jax.tree.map(lambda leaf: _put(leaf, sharding), tree)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        # Keys go to devices of other processes only as numbers.
        data = jax.device_put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return jax.device_put(leaf, sharding)


def split(batch: T) -> T:
    """A batch in a compiled program, its samples spread over the devices."""
    mesh = _mesh()
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec(AXIS))) if mesh else batch


@functools.cache
def _lines() -> list[Connection]:
    """The leader's connections to all others, or another's to the leader.

    Words may be hours apart, as the leader waits for a disk or for another run. JAX's collectives would time out.
    """
    if is_follower():
        host, port, key = _agreed(None)
        return [Client((host, port), authkey=bytes.fromhex(key))]
    found: list[Connection] = []
    key = secrets.token_hex(32)
    with Listener(("", 0), backlog=jax.process_count(), authkey=bytes.fromhex(key)) as listener:
        # As SLURM calls this node, which is how JAX has found it, too.
        host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        _agreed((host, listener.address[1], key))
        while len(found) < jax.process_count() - 1:
            # Whoever else knocks is sent away.
            with suppress(AuthenticationError, EOFError, ConnectionError):
                found.append(listener.accept())
    return found


def _agreed(address: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """The leader's host, port and key, on all processes."""
    said = np.zeros(ADDRESS_BYTES, np.uint8)
    if address is not None:
        content = json.dumps(address).encode()
        said[: len(content)] = np.frombuffer(content, np.uint8)
    heard = np.asarray(multihost_utils.broadcast_one_to_all(said), np.uint8)
    return tuple(json.loads(heard.tobytes().rstrip(b"\0")))


def _say(word: Any) -> None:
    for line in _lines():
        line.send(word)


def _hear() -> Any:
    (line,) = _lines()
    return line.recv()


@contextmanager
def leading(
    configs: Sequence[RunConfig], folders: Sequence[Path], resumed: Sequence[Snapshot], keeper: Keeper
) -> Iterator[Keeper]:
    """Let the other processes train the same while the block lasts.

    Args:
        configs: the runs that become a program.
        folders: theirs.
        resumed: the checkpoints they go on from, or none.
        keeper: the leader's own.

    Yields:
        The keeper to train with.

    Raises:
        UsageError: one of them cannot read the data.
        Lost: one of them has ended, or could not do what others could.
    """
    if jax.process_count() == 1:
        yield keeper
        return
    leader = _Leader(keeper)
    try:
        _say(([run_id(config) for config in configs], [*folders], [snapshot.step for snapshot in resumed]))
        # None trains before all can: it would wait for the others without end.
        answers = [_answer(line) for line in _lines()]
        for error in answers:
            if error is not None:
                raise error
        _say(GO)
        yield leader
    except (StorageError, RunBusy):
        # The leader's alone, as it alone writes, and the others wait for its word.
        raise
    except Exception as error:
        if isinstance(error, _Refused) or _all_failed(_Failure.of(error, leader.evaluations)):
            raise
        # Whatever that has led to here.
        raise Lost("another process of the run has ended, or failed alone") from error
    finally:
        for line in _lines():
            with suppress(OSError):
                line.send(STOP)


class _Failure(NamedTuple):
    """An error of a process in training, as the others can compare it: its kind, and after how many evaluations.

    Not its text, which may name a device.
    """

    kind: str
    evaluations: int

    @classmethod
    def of(cls, error: Exception, evaluations: int) -> _Failure:
        return cls(type(error).__name__, evaluations)


class _Refused(UsageError):
    """What another process says it cannot read."""


def _answer(line: Connection) -> UsageError | None:
    """Why another process cannot train; None if it can."""
    answer = line.recv()
    # An error after the last run's end.
    while isinstance(answer, _Failure):
        answer = line.recv()
    return None if answer == READY else _Refused(answer)


def _all_failed(failure: _Failure) -> bool:
    """Whether all other processes tell of the same failure within a while."""
    silent = set(_lines())
    deadline = time.monotonic() + LOST_SECONDS
    try:
        while silent:
            ready = [line for line in wait(silent, deadline - time.monotonic()) if isinstance(line, Connection)]
            if not ready or any(line.recv() != failure for line in ready):
                return False
            silent -= set(ready)
    except (EOFError, OSError):
        return False
    return True


@contextmanager
def led() -> Iterator[None]:
    """End the other processes when the block ends."""
    try:
        yield
    finally:
        if jax.process_count() > 1:
            with suppress(OSError):
                _say(END)


class _Leader:
    """The leader's keeper, which says after each evaluation that it goes on."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper, self.evaluations = keeper, 0

    def begin(self) -> None:
        self._keeper.begin()

    def after(self, snapshots: Callable[[], list[Snapshot]]) -> None:
        def fetched() -> list[Snapshot]:
            # What is spread over processes is fetched by all of them.
            _say(FETCH)
            return snapshots()

        self._keeper.after(fetched)
        self.evaluations += 1
        _say(GO)


class _Follower:
    """A keeper that saves nothing, and goes on as long as the leader does."""

    def __init__(self) -> None:
        self.evaluations = 0

    def begin(self) -> None:
        """Nothing."""

    def after(self, snapshots: Callable[[], list[Snapshot]]) -> None:
        while (word := _hear()) == FETCH:
            snapshots()
        if word != GO:
            raise Stopped
        self.evaluations += 1


def follow(runs: Mapping[str, RunConfig]) -> None:
    """Train what the leader trains, until it ends. Signals are for the leader, which stops all.

    Args:
        runs: what it may name, as they are done on this node.

    Raises:
        Lost: the leader has ended without a word, or something failed here alone.
    """
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)
    try:
        while (word := _hear()) != END:
            names, folders, steps = word
            _train([runs[name] for name in names], folders, steps)
    except (EOFError, OSError) as error:
        raise Lost("the process that leads the run has ended") from error
    except Exception as error:
        # The leader cannot go on without this process, and hears of its end.
        traceback.print_exc()
        raise Lost("this process of the run has failed alone") from error


def _train(configs: Sequence[RunConfig], folders: Sequence[Path], steps: Sequence[int]) -> None:
    """Do as the leader does, and end when it stops."""
    from experiments.checkpoint import load
    from experiments.data import load as load_data
    from experiments.training import train_seeds

    (leader,) = _lines()
    # The leader has read the checkpoints, so that one which cannot be read is no damaged one, but not there yet.
    resumed = [load(folder, step) for folder, step in zip(folders, steps, strict=False)]
    try:
        data = load_data(configs[0].dataset, configs[0].data_dir)
    except UsageError as error:
        leader.send(str(error))
    else:
        leader.send(READY)
        if _hear() == STOP:
            return
        keeper = _Follower()
        try:
            train_seeds(configs, data, lambda *_: None, resumed, keeper)
        except Stopped:
            return
        except (EOFError, OSError):
            raise
        except Exception as error:
            leader.send(_Failure.of(error, keeper.evaluations))
            # If it is so for the leader, that stops. If not, it waits for this process, which has to end.
            deadline = time.monotonic() + 2 * LOST_SECONDS
            while leader.poll(max(0, deadline - time.monotonic())):
                if leader.recv() == STOP:
                    return
            raise
    while _hear() != STOP:
        pass
