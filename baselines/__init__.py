"""Networks as Flax modules, gradient methods, and whatever a user puts beside them: a file each."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any


def member(file: str, name: str) -> Any:
    """What a file of this folder calls by a name; None if there is no such file, or no such name in it."""
    # Only a file of the folder is imported, whatever is asked for.
    return getattr(importlib.import_module(f"baselines.{file}"), name, None) if file in _files() else None


def having(name: str) -> list[str]:
    """The files of this folder that call something by a name."""
    return [file for file in _files() if member(file, name) is not None]


def _files() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))
