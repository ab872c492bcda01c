"""W&B's client as this package uses it: told nothing of the machine, and never waited for longer than was said."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn


class NotSent(Exception):
    """W&B cannot be reached, or refuses; the message says what to do. The folders still have everything."""


def leave(status: int) -> NoReturn:
    """End this process at once: W&B's threads and its service may hang on a server that does not answer."""
    sys.stdout.flush()
    os._exit(status)


@dataclass(frozen=True)
class Client:
    """A project at W&B, as one that sends to it needs it.

    Attributes:
        project: of W&B.
        entity: a user or a team; None: the key's own.
        folder: for W&B's files and the notes of what has been sent.
        offline: write W&B's files instead of sending.
        start_timeout: seconds for the first answer.
        finish_timeout: seconds for a run's last sending.
    """

    project: str
    entity: str | None
    folder: Path
    offline: bool
    start_timeout: float
    finish_timeout: float

    @functools.cached_property
    def notes(self) -> Path:
        """The folder of what has been sent whole: to this server and project, or written for them."""
        target = json.dumps([os.environ.get("WANDB_BASE_URL", ""), self.entity, self.project, self.offline])
        return self.folder / hashlib.sha256(target.encode()).hexdigest()[:8]

    def begin(self, name: str, **options: Any) -> Any:
        """A W&B run with this name as id, or the one that has it already.

        Args:
            name: of the run.
            options: of `wandb.init`.

        Raises:
            NotSent: W&B does not answer or refuses.
        """
        import wandb

        settings = wandb.Settings(
            console="off",
            silent=True,
            init_timeout=self.start_timeout,
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
                project=self.project,
                entity=self.entity,
                dir=self.folder,
                mode="offline" if self.offline else "online",
                resume="allow",
                reinit="create_new",
                settings=settings,
                **options,
            )
        except wandb.Error as error:
            raise NotSent(f"{name} cannot begin: {' '.join(str(error).split()).rstrip('.:')}") from error

    def finish(self, run: Any, name: str, exit_code: int = 0) -> None:
        """End a run at W&B, with all that was given to it.

        Raises:
            NotSent: it was not taken in time, or not at all.
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
        thread.join(self.finish_timeout)
        if thread.is_alive():
            raise NotSent(f"the end of {name} was not taken within {self.finish_timeout:g} s")
        if errors:
            raise NotSent(f"the end of {name} was not taken: {errors[0]}") from errors[0]
