"""Checkpoints: all that a run needs to go on from an evaluation, written by Orbax whole or not at all, and checksummed.

`checkpoint/<step>` in a run's folder holds the arrays, everything else as JSON, and the checksums of all its files. The
newest two are kept, so that there is one to go back to when the newest is damaged.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

from experiments.interruption import Interruption
from experiments.records import Event, saved_steps, write_json
from experiments.stopping import Patience
from experiments.storage import discard, storage_error, sync

FORMAT = 2
KEPT = 2
SUMS = "sha256.json"
SHARE = 20
"""Checkpoints take at most a twentieth of the time, however slow the disk."""


class Damaged(Exception):
    """A checkpoint that cannot be used; the message says why, without the machine's folders."""


@dataclass
class Snapshot:
    """A run after an evaluation.

    Attributes:
        step: counted steps so far.
        state: the `TrainState`, with arrays on the host. Read from a checkpoint it is nested dicts; see `fitted`.
        best: parameters with the best validation accuracy; the same holds.
        patience: of the early stopping.
        events: all so far.
        clocks: seconds so far, by name, over all attempts.
        device: that they are of; another one's cannot be added to them.
        diverged: why and at which step the run diverged, if it did while it shared its program with others.
    """

    step: int
    state: Any
    best: Any
    patience: Patience
    events: list[Event]
    clocks: dict[str, float]
    device: str
    diverged: tuple[str, int] | None = None

    def fitted(self, state: Any, best: Any) -> Snapshot:
        """The same with the arrays in trees like these.

        Raises:
            Damaged: other names, shapes or types: the code has changed since.
        """
        try:
            like = {"state": state, "best": best}
            found = serialization.from_state_dict(like, {"state": self.state, "best": self.best})
        except (KeyError, ValueError) as error:
            raise Damaged("it has other arrays than this code") from error
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(like), strict=True)
        if any(np.shape(a) != np.shape(b) or np.dtype(a.dtype) != np.dtype(b.dtype) for a, b in pairs):
            raise Damaged("its arrays have other shapes or types than this code's")
        return dataclasses.replace(self, state=found["state"], best=found["best"])


def save(folder: Path, snapshot: Snapshot) -> None:
    """Write a checkpoint into a run's folder, and remove those beyond the newest two.

    Raises:
        StorageError: it could not be written; earlier ones are as they were.
    """
    arrays = serialization.to_state_dict({"state": snapshot.state, "best": snapshot.best})
    rest: dict[str, Any] = {
        item.name: getattr(snapshot, item.name)
        for item in dataclasses.fields(snapshot)
        if item.name not in ("state", "best")
    }
    rest |= {"patience": dataclasses.asdict(snapshot.patience), "events": list(map(dataclasses.asdict, rest["events"]))}
    rest |= {"format": FORMAT, "run_id": folder.name}
    path = folder / "checkpoint" / str(snapshot.step)
    scratch = path.with_name(f"{path.name}.new")
    try:
        path.parent.mkdir(exist_ok=True)
        sync(folder)
        args = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), rest=ocp.args.JsonSave(rest))
        _checkpointer().save(scratch.resolve(), args=args)
        write_json(scratch / SUMS, _sums(scratch))
        for written in [*scratch.rglob("*"), scratch]:
            sync(written)
        scratch.rename(path)
        sync(path.parent)
    except Exception as error:  # Orbax and what is below it raise all kinds
        for left in path.parent.glob(f"{path.name}.*"):
            shutil.rmtree(left, ignore_errors=True)
        raise storage_error(path.parent, error) from error
    for old in saved_steps(folder)[KEPT:]:
        discard(path.with_name(str(old)))


def load(folder: Path, step: int) -> Snapshot:
    """Read a checkpoint.

    Raises:
        Damaged: it is not what was written, or is another run's or another version's.
        StorageError: the disk cannot be read, which says nothing of the checkpoint.
    """
    path = folder / "checkpoint" / str(step)
    # First, because what reads the arrays is not made for damaged files.
    try:
        expected, found = dict(json.loads((path / SUMS).read_text())), _sums(path)
    except (FileNotFoundError, NotADirectoryError, TypeError, ValueError) as error:
        raise Damaged(f"its checksums cannot be read ({type(error).__name__})") from error
    except OSError as error:
        raise storage_error(path.parent, error, "read") from error
    if found != expected:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise Damaged(f"its checksums do not fit: {wrong[0]}")
    args = ocp.args.Composite(arrays=ocp.args.StandardRestore(), rest=ocp.args.JsonRestore())
    try:
        content = _checkpointer().restore(path.resolve(), args=args)
    except Exception as error:  # another version of Orbax and what is below it may raise anything
        raise Damaged(f"it cannot be read ({type(error).__name__})") from error
    try:
        arrays, rest = content["arrays"], dict(content["rest"])
        if rest.pop("format") != FORMAT:
            raise Damaged("it was written by another version of this code")
        if rest.pop("run_id") != folder.name:
            raise Damaged("it is another run's")
        rest |= {"patience": Patience(**rest["patience"]), "events": [Event(**event) for event in rest["events"]]}
        rest["diverged"] = tuple(rest["diverged"]) if rest["diverged"] else None
        return Snapshot(state=arrays["state"], best=arrays["best"], **rest)
    except (KeyError, TypeError) as error:
        raise Damaged("it has other fields than this code's") from error


def _sums(path: Path) -> dict[str, str]:
    """SHA-256 of every file in a checkpoint, by its name there."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file != path / SUMS)
    return {file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@functools.cache
def _checkpointer() -> ocp.Checkpointer:
    # Of several processes of a run one writes, and each reads for itself, so none waits for the others.
    alone = ocp.options.MultiprocessingOptions(primary_host=jax.process_index(), active_processes={jax.process_index()})
    composite = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        arrays=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
        rest=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
    )
    return ocp.Checkpointer(composite, multiprocessing_options=alone)


class Keeper(Protocol):
    """What the training loop tells of itself."""

    def begin(self) -> None:
        """The loop begins."""
        ...

    def after(self, snapshots: Callable[[], list[Snapshot]]) -> None:
        """An evaluation was made; `snapshots` copies the state of all runs to the host.

        Raises:
            Interrupted: a signal asked to end, and the state is saved.
            StorageError: it could not be saved.
        """
        ...


class Saver:
    """Saves at evaluations, but not so often that it costs: a `Keeper`.

    Args:
        savers: for each run, what saves its snapshot.
        every_s: seconds from one checkpoint to the next, at least; with 0 one is saved at every evaluation. Otherwise
            checkpoints take at most a twentieth of the time, too.
        interruption: the signals that ask to save now and end.
    """

    def __init__(
        self, savers: Sequence[Callable[[Snapshot], None]], every_s: float, interruption: Interruption
    ) -> None:
        self._savers, self._every, self._interruption = savers, every_s, interruption
        self._next = time.monotonic()

    def begin(self) -> None:
        """From here on a signal waits for the next evaluation."""
        self._interruption.deferred = True
        self._next = time.monotonic() + self._every

    def after(self, snapshots: Callable[[], list[Snapshot]]) -> None:
        """Save if it is time, or if a signal asks to end."""
        before = time.monotonic()
        if before < self._next and not self._interruption.pending:
            return
        for save_one, snapshot in zip(self._savers, snapshots(), strict=True):
            save_one(snapshot)
        if self._every:
            now = time.monotonic()
            self._next = now + max(self._every, SHARE * (now - before))
        self._interruption.check()
