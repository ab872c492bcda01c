"""Original files: what each set consists of, found in a folder or downloaded, and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.config import UsageError
from experiments.data.download import download

Source = Literal["files", "tfds"]
"""Read the original files, or have TFDS read them."""


@dataclass(frozen=True)
class Original:
    """A file as it was published: its name, bytes, SHA-256, and address."""

    name: str
    size: int
    sha256: str
    url: str


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def command(dataset: str, files: str = "original files", **options: str) -> str:
    """The command that imports a data set, for messages."""
    given = "".join(f" {name}={value}" for name, value in options.items())
    return f"make data DATASET={dataset}{given} RAW=<folder with the {files}>"


def find(raw: Path, names: Iterable[str]) -> dict[str, Path]:
    """The files of these names in a folder, or up to two folders below it; those that are missing are left out.

    Raises:
        UsageError: no such folder, or a name is there more than once.
    """
    if not raw.is_dir():
        raise UsageError(f"raw={raw} is not a folder. Put these files into one:\n  " + "\n  ".join(names))
    found: dict[str, Path] = {}
    for name in names:
        paths = [path for level in ("", "*/", "*/*/") for path in sorted(raw.glob(level + name)) if path.is_file()]
        if len(paths) > 1:
            raise UsageError(
                f"{name} is there more than once; name the folder of one:\n  " + "\n  ".join(map(str, paths))
            )
        if paths:
            found[name] = paths[0]
    return found


def originals(dataset: str, files: Sequence[Original], data_dir: Path, raw: Path | None) -> dict[str, Path]:
    """The original files of a set by name, each with the right checksum.

    Args:
        dataset: its name.
        files: what it consists of.
        data_dir: the folder of prepared data; downloads are kept in `downloads/<dataset>` there.
        raw: where the files are; None: download those that are not there yet.

    Raises:
        UsageError: a file is missing, incomplete or another one, or cannot be downloaded.
    """
    if raw is None:
        folder = data_dir / "downloads" / dataset
        found = {file.name: folder / file.name for file in files}
        for file in files:
            if not found[file.name].exists():
                _download(dataset, file, found[file.name])
    else:
        found = find(raw, [file.name for file in files])
        missing = [file.name for file in files if file.name not in found]
        if missing:
            raise UsageError(f"{raw} lacks {', '.join(missing)}. Put the files there, then:\n  {command(dataset)}")
    for file in files:
        check(found[file.name], file.sha256)
    return found


def _download(dataset: str, file: Original, path: Path) -> None:
    try:
        download(file.url, path, size=file.size, sha256=file.sha256)
    except UsageError as error:
        raise UsageError(
            f"{error}\nWith a copy from elsewhere: put {file.name} ({file.size:,} bytes) into a folder, then:\n"
            f"  {command(dataset)}"
        ) from error


def check(path: Path, sha256: str) -> None:
    """Compare a file with its checksum.

    Raises:
        UsageError: it is another file, or not all of it.
    """
    found = sha256_of(path)
    if found != sha256:
        raise UsageError(
            f"checksum of {path} is wrong: SHA-256 expected {sha256}, found {found} ({path.stat().st_size} bytes). "
            "The file is incomplete or not the original; get it again."
        )
