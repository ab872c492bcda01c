"""Writing to a disk that may be full: errors that name the file and the space left."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from experiments.config import ROOT


class StorageError(Exception):
    """A run's file could not be written, or read. The run is not failed: what was saved before is as it was."""


def relative(path: Path) -> str:
    """A path as people and files should see it: from the repository's root where it lies in there."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def storage_error(path: Path, error: Exception, verb: str = "write") -> StorageError:
    """What to tell of a file that could not be written, or read."""
    return StorageError(
        f"{path.parent.name} stopped: {refused(path, error, verb)}; "
        "make room or repair it, then repeat the command: the run goes on from its last checkpoint"
    )


def refused(path: Path, error: Exception, verb: str = "write") -> str:
    """Which file the system refused, why, and how much room there is."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
    try:
        free = f"{shutil.disk_usage(path.parent).free / 1e6:.1f} MB free there"
    except OSError:
        free = "its folder cannot be looked at"
    return f"cannot {verb} {relative(path)}: {reason} ({free})"


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk, so that they outlast a loss of power.

    Raises:
        OSError: the disk did not take it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems know no such thing of a folder.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file in what goes wrong while it is written.

    Raises:
        StorageError: the system could not write it.
    """
    try:
        yield
    except OSError as error:
        raise storage_error(path, error) from error


def append(path: Path, line: str) -> None:
    """Add a line to a file, past every buffer of this process, so that nothing is left to fail later.

    Raises:
        StorageError: the line could not be written whole.
    """
    content = f"{line}\n".encode()
    with writing(path), path.open("ab", buffering=0) as file:
        written = file.write(content)
        while written < len(content):
            # The system reports what is wrong, such as a full disk, when the rest is written.
            written += file.write(content[written:])


def write_whole(path: Path, content: str) -> None:
    """Write a file so that it is there complete or not at all.

    Raises:
        StorageError: it could not be written; an older one is as it was.
    """
    scratch = path.with_name(f".{path.name}.part")
    with writing(path):
        try:
            with scratch.open("w") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
            sync(path.parent)
        except OSError:
            scratch.unlink(missing_ok=True)
            raise


def discard(folder: Path) -> None:
    """Remove a folder, if it can be. Under another name first: a kill meanwhile leaves no half of it by its own."""
    gone = folder.with_name(f"{folder.name}.gone")
    with suppress(OSError):
        shutil.rmtree(gone, ignore_errors=True)
        shutil.rmtree(folder.rename(gone))
