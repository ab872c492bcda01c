"""SIGKILL at random moments over a run, relaunched each time: it ends as if nothing had happened.

    python -m tests.kill [--cases mlp cnn rnn] [--methods sgd adam dr ap cp] [--kills 10] [--seed 0] [--data FOLDER]

Each run is done once undisturbed and once cut, in processes of their own, saved at every evaluation. A
quarter of the kills hit the start of a process, before it trains; the others come a random time after a random number
of evaluations, so that most hit training or a checkpoint that is being written. The final record, but for clocks,
times and environment, and all events, but for clocks, must agree to the bit. `make test` does the same with two kills.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.cells import Planned
from experiments.compose import choices, compose_run
from experiments.config import ROOT
from experiments.runner import folder_of

CASES = {
    "mlp": ("dataset=digits", "model=mlp_1x32"),
    "cnn": ("dataset=digits", "model=cnn_1x32", "model.hidden=[4]", "protocol.batch_size=8"),
    "rnn": (
        "dataset=shakespeare",
        "model=rnn_1x256",
        "model.hidden=[8]",
        "dataset.limit=64",
        "protocol.batch_size=8",
        "engine=exact",
    ),
}
"""Data sets and networks, small: one line each. DR with published operators diverges on the RNN (docs/cells.md)."""
EVALUATIONS = 40
POLL_SECONDS = 0.003


def planned(arguments: Sequence[str], folder: Path) -> Planned:
    """A run with many evaluations, each of them saved."""
    limits = ("protocol.evaluate_every=50", f"protocol.max_steps={50 * EVALUATIONS}", "protocol.patience=1000")
    overrides = (*arguments, *limits, f"paths.results={folder}", "checkpoint_every_s=0")
    return Planned("kill", compose_run(overrides), overrides)


def launch(run: Planned, cache: Path, output: int) -> subprocess.Popen[str]:
    """Start the run's process. Programs are compiled once for all of them, and each that is loaded may print a line."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-m", "experiments.run", *run.overrides]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True)


def finish(run: Planned, cache: Path) -> float:
    """Let the run end; returns the seconds it took."""
    before = time.monotonic()
    output, _ = launch(run, cache, subprocess.PIPE).communicate()
    if not (folder_of(run.config) / "record.json").exists():
        raise SystemExit(f"error: {folder_of(run.config).name} has no record:\n{output}")
    return time.monotonic() - before


def evaluations(run: Planned) -> int:
    """Lines of its `events.jsonl`."""
    path = folder_of(run.config) / "events.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill(run: Planned, cache: Path, seconds: float, further: int) -> str:
    """Start the run and kill it `seconds` after so many further evaluations; returns where it was."""
    # Nobody reads its output while it runs, and a process waits where a pipe is full.
    process, before = launch(run, cache, subprocess.DEVNULL), None
    attempts = folder_of(run.config) / "attempts.jsonl"
    known = attempts.read_bytes() if attempts.exists() else b""
    while further and process.poll() is None:
        if before is None:
            # The events are cut back to the checkpoint's before the attempt is noted.
            begun = attempts.exists() and attempts.read_bytes() != known
            before = evaluations(run) if begun else None
        elif evaluations(run) >= before + further:
            break
        time.sleep(POLL_SECONDS)
    time.sleep(seconds)
    process.kill()
    process.wait()
    saved = sorted(path.name for path in folder_of(run.config).glob("checkpoint/*"))
    return f"{evaluations(run)} evaluations, checkpoints {' '.join(saved) or 'none'}"


def outcome(run: Planned) -> dict[str, Any]:
    """What a cut may not change: the record and the events without clocks, times and environment."""
    folder = folder_of(run.config)
    record = json.loads((folder / "record.json").read_text())
    for key in ("clocks", "started", "finished", "environment"):
        del record[key]
    del record["metrics"]["time_to_99_s"]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    for event in events:
        del event["train_s"], event["wall_s"]
    return {"record": record, "events": events}


def check(arguments: Sequence[str], folder: Path, kills: int, rng: random.Random) -> list[str]:
    """Do a run undisturbed and cut, and compare; returns a line for each kill.

    Raises:
        AssertionError: the outcomes differ, or a start went on from less than was saved.
    """
    undisturbed, cut = planned(arguments, folder / "undisturbed"), planned(arguments, folder / "cut")
    finish(undisturbed, folder / "cache")
    lines = []
    for i in range(kills):
        left = max(1, (EVALUATIONS - evaluations(cut)) // (kills - i) - 1)
        if rng.random() < 0.25:
            seconds, further = rng.uniform(0, 3), 0
        else:
            seconds, further = rng.uniform(0, 0.15), rng.randint(1, left)
        found = kill(cut, folder / "cache", seconds, further)
        lines.append(f"killed {seconds:.3f} s after {further} more: {found}")
    finish(cut, folder / "cache")
    assert outcome(cut) == outcome(undisturbed), f"{' '.join(arguments)}: the cut run ended differently"
    log = [json.loads(line) for line in (folder_of(cut.config) / "attempts.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in log if line["what"] in ("started", "resumed")]
    assert steps == sorted(steps), f"an attempt began before the one it followed: {steps}"
    assert not any(line["what"] == "checkpoint of no use" for line in log), log
    lines.append(f"began at steps {steps}")
    return lines


METHODS = [method for method in choices("method") if method != "straight_through"]
"""That one needs a network with something to pass."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", default="data", help="where `make data` prepared Shakespeare (default data)")
    options = parser.parse_args(arguments)
    for case in options.cases:
        for method in options.methods:
            run = (*CASES[case], f"method={method}", f"paths.data={options.data}")
            with tempfile.TemporaryDirectory() as folder:
                for line in check(run, Path(folder), options.kills, random.Random(f"{options.seed} {case} {method}")):
                    print(f"  {line}")
            print(f"{case} {method}: equal to the bit after {options.kills} kills", flush=True)


if __name__ == "__main__":
    main()
