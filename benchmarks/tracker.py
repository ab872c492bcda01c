"""What a run pays for being heard of at W&B, whatever the server does.

    python -m benchmarks tracker [--steps 100000] [--rounds 3] [--json FILE]

Trains MLP 1x32 on digits by AP in processes of their own, an evaluation every 1000 steps: without a tracker, and with
tracker=wandb where there is no key, no network, a server that never answers, one that answers everything with an error,
and one that takes everything. All of them in every round, each beginning with another one. "loop" is the training
loop's time, checkpoints included, over that without a tracker in the same round, "process" that of the whole process;
medians over the rounds.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.measure import environment, write
from experiments.cells import Planned
from experiments.compose import compose_run
from experiments.runner import folder_of
from tests.wandb_server import serving

SERVERS = ("no tracker", "no key", "no network", "never answers", "errors", "answers")


def times(server: str, steps: int, folder: Path, url: str | None) -> tuple[float, float]:
    """Seconds of a run's training loop and of its process.

    Raises:
        SystemExit: the run did not finish.
    """
    waits = ["tracker.start_timeout_s=5", "tracker.finish_timeout_s=5"]
    tracker = ["tracker=none"] if server == "no tracker" else ["tracker=wandb", *waits]
    sizes = [f"protocol.max_steps={steps}", "protocol.evaluate_every=1000", "protocol.patience=1000000"]
    overrides = ("dataset=digits", "model=mlp_1x32", "method=ap", *sizes, *tracker, f"paths.results={folder}")
    run = Planned("tracker", compose_run(overrides), overrides)
    own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    own |= {f"WANDB_{name}_DIR": str(folder) for name in ("CONFIG", "CACHE", "DATA")}
    own |= {"HOME": str(folder), "NETRC": str(folder / "netrc")}
    own |= {"WANDB_BASE_URL": url} if url else {}
    own |= {} if server == "no key" else {"WANDB_API_KEY": "0" * 40}
    before = time.perf_counter()
    command = [sys.executable, "-m", "experiments.run", *overrides]
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - before
    _wait_for_the_tracker(folder)
    path = folder_of(run.config) / "record.json"
    if done.returncode or not path.exists():
        raise SystemExit(f"error: the run with {server!r} did not finish:\n{done.stdout}{done.stderr}")
    return json.loads(path.read_text())["clocks"]["end_to_end_ms_per_step"] * steps / 1e3, wall


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000, help="counted steps, a multiple of 1000")
    parser.add_argument("--rounds", type=int, default=3, help="how often each of them runs")
    parser.add_argument("--json", type=Path, help="write the numbers with device and versions to this file")
    options = parser.parse_args(arguments)
    found: dict[str, list[tuple[float, float]]] = {server: [] for server in SERVERS}
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
                    found[server].append(times(server, options.steps, Path(folder), urls.get(server)))
    device = environment()
    print(f"{options.steps:,} steps, {options.rounds} rounds, {device['device']} ({device['platform']})")
    print(f"{'':15}{'loop, s':>9}{'/ none':>8}{'process, s':>12}{'/ none':>8}")
    results: dict[str, dict[str, float]] = {}
    for server, runs in found.items():
        columns = {}
        for i, column in enumerate(("loop", "process")):
            columns[column] = statistics.median(run[i] for run in runs)
            ratios = [run[i] / none[i] for run, none in zip(runs, found["no tracker"], strict=True)]
            columns[f"{column}_ratio"] = statistics.median(ratios)
        results[server] = columns
        loop, process = columns["loop"], columns["process"]
        print(f"{server:15}{loop:9.1f}{columns['loop_ratio']:8.3f}{process:12.1f}{columns['process_ratio']:8.3f}")
    if options.json:
        write(options.json, "tracker", results=results)


if __name__ == "__main__":
    main()
