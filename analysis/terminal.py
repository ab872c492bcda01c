"""What is shown to people: rich tables that stay whole, also in a pipe or a narrow window, and paths."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

_ROOT = Path(__file__).resolve().parent.parent


def shown_path(path: Path) -> str:
    """Returns a path relative to the repository where it lies inside it, so that no file names a machine's folders."""
    absolute = path.resolve()
    return (absolute.relative_to(_ROOT) if absolute.is_relative_to(_ROOT) else path).as_posix()


def existing_folder(text: str) -> Path:
    """Returns the folder that is named on a command line, where a wrong one must not look like one without records."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is {'a file' if path.exists() else 'no folder'}")
    return path


def print_table(table: Table) -> None:
    """Prints a table at its own width on standard output: no number is ever shortened to fit the window."""
    console = Console()
    wide = console.options.update(width=10_000)
    width = Measurement.get(console, wide, table).maximum
    Console(width=width).print(table)
