"""What a run pays for being heard of at W&B, whatever the server does.

    python -m benchmarks tracker [--dataset mnist] [--model mlp_1x128] [--steps 200000] [--rounds 1] [--json FILE]

Trains a cell of the suite by AP in processes of their own, evaluated as often as its protocol says: without a tracker,
and with tracker=wandb where there is no key, no network, a server that never answers, one that answers everything with
an error, and one that takes everything. All of them in every round, each beginning with another one.

Two runs differ by more than a tracker costs, so "loop" compares a run with itself: its tracker is stopped for some
evaluations and continued for as many, in which it also does what it has missed, and so on. It is the median time from
one evaluation to the next, checkpoints included, with the tracker over that while it is stopped, and the standard error
of that ratio; without a tracker nothing is stopped, and the ratio says how well this measures. "start" is the time from
the process's start to its first evaluation, "end" that from the last one to the process's end, medians over the rounds.
"""

import argparse
import itertools
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import environment, write
from experiments.cells import Planned
from experiments.compose import compose_run
from experiments.runner import folder_of
from tests.wandb_server import serving

PERIOD = 4
"""Evaluations after which the tracker is stopped or continued."""
LOOK_SECONDS = 0.005
SERVERS = ("no tracker", "no key", "no network", "never answers", "errors", "answers")


class Times(NamedTuple):
    """A run's times in seconds; those between evaluations with its tracker and while that is stopped."""

    start: float
    end: float
    with_it: list[float]
    without: list[float]


def times(server: str, cell: Sequence[str], steps: int, folder: Path, url: str | None) -> Times:
    """Do a run.

    Raises:
        SystemExit: the run did not finish, or had too few evaluations to compare.
    """
    waits = ["tracker.start_timeout_s=5", "tracker.finish_timeout_s=5"]
    tracker = ["tracker=none"] if server == "no tracker" else ["tracker=wandb", *waits]
    sizes = [f"protocol.max_steps={steps}", "protocol.patience=1000000"]
    overrides = (*cell, "method=ap", *sizes, *tracker, f"paths.results={folder}")
    path = folder_of(Planned("tracker", compose_run(overrides), overrides).config)
    own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    own |= {f"WANDB_{name}_DIR": str(folder) for name in ("CONFIG", "CACHE", "DATA")}
    own |= {"HOME": str(folder), "NETRC": str(folder / "netrc")}
    own |= {"WANDB_BASE_URL": url} if url else {}
    own |= {} if server == "no key" else {"WANDB_API_KEY": "0" * 40}
    command = [sys.executable, "-m", "experiments.run", *overrides]
    # A file, as nobody would empty a pipe while the run goes on.
    log = folder / "output"
    before = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(command, env=own, stdout=output, stderr=subprocess.STDOUT)
        seen = _alternate(process, path / "events.jsonl", folder)
    after = time.perf_counter()
    _wait_for_the_tracker(folder)
    if process.returncode or not (path / "record.json").exists():
        raise SystemExit(f"error: the run with {server!r} did not finish:\n{log.read_text()}")
    with_it, without = _periods(seen)
    if not with_it or not without:
        raise SystemExit(f"error: {len(seen)} evaluations are too few to compare, at least {3 * PERIOD}: more --steps")
    return Times(seen[0][0] - before, after - seen[-1][0], with_it, without)


def _alternate(process: subprocess.Popen[Any], events: Path, folder: Path) -> list[tuple[float, bool]]:
    """Stop and continue a run's tracker in turn; returns when each evaluation was seen, and whether it worked then."""
    seen: list[tuple[float, bool]] = []
    works = True
    ended = False
    while not ended:
        # Before the last look, which must not miss what came before the end.
        ended = process.poll() is not None
        found = len(_read(events).splitlines())
        seen += [(time.perf_counter(), works)] * (found - len(seen))
        if seen and works != (len(seen) // PERIOD % 2 == 0):
            works = not works
            _signal_the_tracker(folder, process.pid, signal.SIGCONT if works else signal.SIGSTOP)
        time.sleep(LOOK_SECONDS)
    _signal_the_tracker(folder, process.pid, signal.SIGCONT)
    return seen


def _periods(seen: Sequence[tuple[float, bool]]) -> tuple[list[float], list[float]]:
    """Times between evaluations while the tracker worked, and while it was stopped; not those when that changed."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for (before, was), (now, works) in itertools.pairwise(seen):
        if was == works:
            found[works].append(now - before)
    return found[True], found[False]


def _signal_the_tracker(folder: Path, run: int, signum: int) -> None:
    for path in Path("/proc").glob("[0-9]*"):
        if int(path.name) != run and f"HOME={folder}".encode() in _read(path / "environ").split(b"\0"):
            with suppress(ProcessLookupError):
                os.kill(int(path.name), signum)


def _wait_for_the_tracker(folder: Path) -> None:
    """Let the process that the run left behind end, so that the next run has the machine for itself."""
    deadline = time.monotonic() + 120
    while any(str(folder).encode() in _read(path) for path in Path("/proc").glob("[0-9]*/cmdline")):
        if time.monotonic() > deadline:
            raise SystemExit("error: the tracker of a run does not end")
        time.sleep(0.5)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def growth(with_it: Sequence[float], without: Sequence[float]) -> tuple[float, float]:
    """The ratio of two medians and its standard error, by the bootstrap."""
    draw = random.Random(0)

    def ratio(first: Sequence[float], second: Sequence[float]) -> float:
        return statistics.median(first) / statistics.median(second)

    drawn = [ratio(*(draw.choices(each, k=len(each)) for each in (with_it, without))) for _ in range(1000)]
    return ratio(with_it, without), statistics.stdev(drawn)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--model", default="mlp_1x128")
    parser.add_argument("--steps", type=int, default=200_000, help="counted steps, a multiple of evaluate_every")
    parser.add_argument("--rounds", type=int, default=1, help="how often each of them runs")
    parser.add_argument("--json", type=Path, help="write the numbers with device and versions to this file")
    options = parser.parse_args(arguments)
    cell = (f"dataset={options.dataset}", f"model={options.model}")
    found: dict[str, list[Times]] = {server: [] for server in SERVERS}
    with ExitStack() as stack:
        hole = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        good, bad = (stack.enter_context(serving()) for _ in range(2))
        bad.broken = True
        urls = {"never answers": f"http://127.0.0.1:{hole.getsockname()[1]}", "no network": "http://127.0.0.1:9"}
        urls |= {"errors": bad.url, "answers": good.url, "no key": good.url}
        for i in range(options.rounds):
            # None always comes after the same one.
            for server in (*SERVERS[i % len(SERVERS) :], *SERVERS[: i % len(SERVERS)]):
                with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                    found[server].append(times(server, cell, options.steps, Path(folder), urls.get(server)))
    device = environment()
    what = f"{options.dataset} {options.model} ap, {options.steps:,} steps, {options.rounds} round(s)"
    print(f"{what}, {device['device']} ({device['platform']})")
    print(f"{'':15}{'loop, with / without':>26}{'start, s':>10}{'end, s':>8}")
    results: dict[str, dict[str, float]] = {}
    for server, runs in found.items():
        ratio, error = growth([t for r in runs for t in r.with_it], [t for r in runs for t in r.without])
        columns = {"start_s": statistics.median(r.start for r in runs), "end_s": statistics.median(r.end for r in runs)}
        results[server] = {"loop_ratio": ratio, "loop_ratio_error": error, **columns}
        print(f"{server:15}{ratio:18.4f} +-{error:.4f}{columns['start_s']:10.1f}{columns['end_s']:8.1f}")
    if options.json:
        write(options.json, "tracker", cell=cell, steps=options.steps, rounds=options.rounds, results=results)


if __name__ == "__main__":
    main()
