"""What a run pays for being heard of at W&B, whatever the server does.

    python -m benchmarks tracker [--dataset mnist] [--model mlp_1x128] [--steps 200000] [--rounds 1] [--json FILE]

Trains a cell of the suite by AP in processes of their own, evaluated as often as its protocol says: without a tracker,
and with tracker=wandb where there is no key, no network, a server that never answers, one that answers everything with
an error, and one that takes everything. All of them in every round, each beginning with another one.

Two runs differ by more than a tracker costs, so "loop" compares a run with itself: its tracker is stopped for some
evaluations and continued for as many, in which it also does what it has missed, and so on. It is the time from one
evaluation to the next, checkpoints included, with the tracker over that while it is stopped next (the speed of a
machine drifts), the median of these ratios and its standard error. Without a tracker nothing is stopped, and the ratio
says how well this measures. "start" is the time from the process's start to its first evaluation, "end" that from the
last one to the process's end, medians over the rounds.
"processor" is what all processes of the tracker computed from the first to the last evaluation, over that time: the
most that training could lose of one of its processors, if the tracker did not wait until one is idle, as it does. The
start of W&B's client, some seconds once, is part of it.
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

PERIOD = 2
"""Evaluations after which the tracker is stopped or continued."""
LOOK_SECONDS = 0.005
SERVERS = ("no tracker", "no key", "no network", "never answers", "errors", "answers")


class Times(NamedTuple):
    """A run's times in seconds, and its evaluations' with its tracker over those while that is stopped."""

    start: float
    end: float
    processor: float  # of the tracker, over the time between the first evaluation and the last
    ratios: list[float]


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
        seen, computed = _alternate(process, path / "events.jsonl", folder)
    after = time.perf_counter()
    _wait_for_the_tracker(folder)
    if process.returncode or not (path / "record.json").exists():
        raise SystemExit(f"error: the run with {server!r} did not finish:\n{log.read_text()}")
    ratios = _ratios(seen)
    if len(ratios) < 2:
        raise SystemExit(
            f"error: {len(seen)} evaluations are too few to compare, at least {5 * PERIOD + 1}: more --steps"
        )
    loop = seen[-1][0] - seen[0][0]
    return Times(seen[0][0] - before, after - seen[-1][0], computed / loop, ratios)


def _alternate(process: subprocess.Popen[Any], events: Path, folder: Path) -> tuple[list[tuple[float, bool]], float]:
    """Stop and continue a run's tracker in turn.

    Returns:
        When each evaluation was seen, and whether the tracker worked then; and the seconds of processor time that it
        used between the first and the last of them.
    """
    seen: list[tuple[float, bool]] = []
    works = True
    used: list[float] = []
    ended = False
    while not ended:
        # Before the last look, which must not miss what came before the end.
        ended = process.poll() is not None
        found = len(_read(events).splitlines())
        if found > len(seen):
            seen += [(time.perf_counter(), works)] * (found - len(seen))
            used.append(_computed(folder, process.pid))
        if seen and works != (len(seen) // PERIOD % 2 == 0):
            works = not works
            _signal_the_tracker(folder, process.pid, signal.SIGCONT if works else signal.SIGSTOP)
        time.sleep(LOOK_SECONDS)
    _signal_the_tracker(folder, process.pid, signal.SIGCONT)
    return seen, max(used, default=0.0) - min(used, default=0.0)


def _ratios(seen: Sequence[tuple[float, bool]]) -> list[float]:
    """Time from one evaluation to the next while the tracker worked, over that while it was stopped next."""
    times = [(works, now - before) for (before, _), (now, works) in itertools.pairwise(seen)]
    blocks = [
        (works, [each for _, each in group]) for works, group in itertools.groupby(times, key=lambda each: each[0])
    ]
    pairs = [(with_it, without) for (works, with_it), (_, without) in itertools.pairwise(blocks) if works]
    return [statistics.fmean(with_it) / statistics.fmean(without) for with_it, without in pairs]


def _trackers(folder: Path, run: int) -> list[int]:
    """The processes that the run has started, and theirs."""
    found = [path for path in Path("/proc").glob("[0-9]*") if int(path.name) != run]
    return [int(path.name) for path in found if f"HOME={folder}".encode() in _read(path / "environ").split(b"\0")]


def _computed(folder: Path, run: int) -> float:
    """Seconds of processor time that the tracker has used."""
    ticks = 0
    for pid in _trackers(folder, run):
        # Behind the name, which may hold anything, the 12th and 13th are its time and the system's for it.
        after = _read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
        ticks += sum(map(int, after[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _signal_the_tracker(folder: Path, run: int, signum: int) -> None:
    for pid in _trackers(folder, run):
        with suppress(ProcessLookupError):
            os.kill(pid, signum)


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


def growth(ratios: Sequence[float]) -> tuple[float, float]:
    """The median of ratios and its standard error, by the bootstrap."""
    draw = random.Random(0)
    drawn = [statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(1000)]
    return statistics.median(ratios), statistics.stdev(drawn)


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
    print(f"{'':15}{'loop, with / without':>26}{'processor':>11}{'start, s':>10}{'end, s':>8}")
    results: dict[str, dict[str, float]] = {}
    for server, runs in found.items():
        ratio, error = growth([each for run in runs for each in run.ratios])
        start, end, share = (statistics.median(getattr(r, key) for r in runs) for key in ("start", "end", "processor"))
        columns = {"processor": share, "start_s": start, "end_s": end}
        results[server] = {"loop_ratio": ratio, "loop_ratio_error": error, **columns}
        print(f"{server:15}{ratio:18.4f} +-{error:.4f}{100 * share:10.2f}%{start:10.1f}{end:8.1f}")
    ratio, error = growth([each for server in SERVERS[1:] for run in found[server] for each in run.ratios])
    results["all trackers"] = {"loop_ratio": ratio, "loop_ratio_error": error}
    print(f"{'all trackers':15}{ratio:18.4f} +-{error:.4f}")
    if options.json:
        write(options.json, "tracker", cell=cell, steps=options.steps, rounds=options.rounds, results=results)


if __name__ == "__main__":
    main()
