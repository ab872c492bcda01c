"""A tracker beside runs: a process of its own, which reads their folders and can neither slow nor stop them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO

from experiments.config import ROOT, RunConfig, WandbConfig
from experiments.records import run_id


@contextmanager
def tracked(configs: Sequence[RunConfig], say: Callable[[str], None]) -> Iterator[None]:
    """Let the tracker that the runs ask for follow them while the block lasts.

    Args:
        configs: runs with one folder of results and one tracker.
        say: gets the tracker's lines, and why there is none if it cannot start.
    """
    if not configs or not isinstance(configs[0].tracker, WandbConfig):
        yield
        return
    tracker = configs[0].tracker
    try:
        process = subprocess.Popen(
            _command(configs, tracker),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A terminal's Ctrl-C is for the runs.
            start_new_session=True,
        )
    except OSError as error:
        say(f"W&B: nothing is sent, as its process cannot start ({error}); `make wandb-sync` sends runs later")
        yield
        return
    assert process.stdin is not None
    assert process.stdout is not None
    relay = threading.Thread(target=_relay, args=(process, process.stdout, say), daemon=True)
    relay.start()
    try:
        yield
    finally:
        # Its end tells the tracker that the runs have ended; so does this process's, if it is killed.
        with suppress(OSError):
            process.stdin.close()
        relay.join(tracker.wait_s)


def _command(configs: Sequence[RunConfig], tracker: WandbConfig) -> list[str]:
    options = [
        *("--project", tracker.project),
        *(("--entity", tracker.entity) if tracker.entity else ()),
        *("--mode", tracker.mode),
        *("--start-timeout", str(tracker.start_timeout_s)),
        *("--finish-timeout", str(tracker.finish_timeout_s)),
    ]
    names = [run_id(config) for config in configs]
    folder = str(configs[0].results_dir)
    return [sys.executable, "-m", "analysis.wandb_sync", folder, "--follow", *options, "--run", *names]


def _relay(process: subprocess.Popen[str], lines: IO[str], say: Callable[[str], None]) -> None:
    for line in lines:
        say(line.rstrip())
    lines.close()
    process.wait()
