"""W&B's client as this package uses it: told nothing of the machine, and never waited for longer than was said."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any


class NotSent(Exception):
    """W&B cannot be reached, or refuses; the message says what to do. The folders still have everything."""


def begin(name: str, folder: Path, timeout: float, *, offline: bool, **options: Any) -> Any:
    """A W&B run with this name as id, or the one that has it already.

    Args:
        name: of the run.
        folder: for W&B's files.
        timeout: seconds for the first answer.
        offline: write W&B's files instead of sending.
        options: of `wandb.init`.

    Raises:
        NotSent: W&B does not answer or refuses.
    """
    import wandb

    settings = wandb.Settings(
        console="off",
        silent=True,
        init_timeout=timeout,
        # Machine and versions are in a run's environment; hosts and paths are nobody's business.
        disable_git=True,
        disable_code=True,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    try:
        return wandb.init(
            id=name,
            name=name,
            dir=folder,
            mode="offline" if offline else "online",
            resume="allow",
            reinit="create_new",
            settings=settings,
            **options,
        )
    except wandb.Error as error:
        raise NotSent(f"{name} cannot begin: {' '.join(str(error).split()).rstrip('.:')}") from error


def finish(run: Any, name: str, timeout: float, exit_code: int = 0) -> None:
    """End a run at W&B, with all that was given to it.

    Raises:
        NotSent: it was not taken within so many seconds, or not at all.
    """
    errors: list[Exception] = []

    def end() -> None:
        try:
            run.finish(exit_code=exit_code)
        except Exception as error:
            errors.append(error)

    # Not a thread that is waited for when this process ends: it may hang.
    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise NotSent(f"the end of {name} was not taken within {timeout:g} s")
    if errors:
        raise NotSent(f"the end of {name} was not taken: {errors[0]}") from errors[0]
