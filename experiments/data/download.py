"""Downloads that go on where they were cut, and that end: with a checked file, or soon with an error.

The standard library's client is enough: what is not in it, to go on from what is there already, is not in the smaller
download libraries either.
"""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path

from rich.progress import Progress, TaskID

from experiments.config import UsageError
from experiments.progress import byte_bars
from experiments.storage import refused

PIECE = 2**18
"""Bytes at a time."""

PATIENCE_S = 5.0
"""How long a download goes on without a new byte."""


def download(url: str, path: Path, *, size: int, sha256: str, patience_s: float = PATIENCE_S) -> None:
    """Bring a file from `url` to `path`, where it appears whole and checked or not at all.

    What came so far is kept in `<name>.part` beside it, and a second call goes on from there. A connection that is
    refused or cut is tried again, until `patience_s` seconds have passed without a new byte.

    Args:
        url: where it is.
        path: where it goes.
        size: its bytes.
        sha256: its checksum.
        patience_s: time limit; an answer may take twice as long.

    Raises:
        UsageError: no connection, no such file, or another one than expected.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with byte_bars() as progress:
        task = progress.add_task(path.name, total=size)
        last, pause = time.monotonic(), 0.25
        while (before := _size(part)) < size:
            try:
                _fetch(url, part, size, 2 * patience_s, progress, task)
                reason = "the connection was cut"
            except urllib.error.HTTPError as error:
                # 4xx: asking again changes nothing. 416 says that there is nothing after what we have.
                if error.code < 500 and error.code not in (408, 416, 429):
                    raise UsageError(f"{url} cannot be downloaded: HTTP {error.code} {error.reason}") from error
                if error.code == 416:
                    part.unlink(missing_ok=True)
                reason = f"HTTP {error.code} {error.reason}"
            except urllib.error.URLError as error:
                reason = str(error.reason)
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.filename:
                    raise  # not the network's: no permission, say
                reason = str(error) or type(error).__name__
            if _size(part) > before:
                last, pause = time.monotonic(), 0.25
            elif time.monotonic() - last + pause > patience_s:
                raise UsageError(
                    f"{url} cannot be downloaded ({reason}; {_size(part):,} of {size:,} bytes are there, and the same "
                    "command goes on from them)"
                )
            if _size(part) < size:
                time.sleep(pause)
                pause *= 2
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        # Going on from wrong bytes would never end well.
        part.unlink()
        raise UsageError(f"what {url} sent is not the original: SHA-256 expected {sha256}, found {found}")
    part.replace(path)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fetch(url: str, part: Path, size: int, timeout_s: float, progress: Progress, task: TaskID) -> None:
    """Append what is missing, as far as it comes; a server that cannot start in the middle starts over."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        if answer.status != 206:
            start = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise http.client.HTTPException("the server sends another part of the file than it was asked for")
        # Past every buffer, which would be written once more when the file is closed.
        with part.open("ab" if start else "wb", buffering=0) as file:
            progress.update(task, completed=start)
            while piece := answer.read1(min(PIECE, size - start)):
                try:
                    written = 0
                    while written < len(piece):
                        written += file.write(piece[written:])
                except OSError as error:
                    raise UsageError(f"{refused(part, error)}; make room, and the same command goes on") from error
                start += len(piece)
                progress.update(task, completed=start)
