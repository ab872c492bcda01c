"""What the harness costs: the time of a step on the device and of the whole training loop, by method.

    python -m benchmarks suite-overhead [--steps 30000] [--json FILE]

Trains MNIST's MLP 1x128 through the harness of `experiments`, on random data of MNIST's shape, with an evaluation
every 1000 steps and checkpoints as often as by default. "device" is the blocked time of the dispatches, "end to end"
the whole loop but for evaluation, checkpoints included, each per step; "saved" how many checkpoints there were, and
"each" what one took in milliseconds. Anything that is compiled after the first evaluation ends the benchmark with an
error.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from benchmarks.measure import environment, write
from experiments.checkpoint import Saver, Snapshot, save
from experiments.compose import compose_run
from experiments.data import Dataset
from experiments.interruption import Interruption
from experiments.records import Event
from experiments.training import train

METHODS = ("sgd", "adam", "dr", "ap", "cp")


def random_mnist(samples: int = 60_000) -> Dataset:
    """Random data of MNIST's shape."""
    rng = np.random.default_rng(0)
    tests = samples // 6
    x, y = rng.normal(size=(samples + tests, 784)).astype(np.float32), rng.integers(0, 10, samples + tests, np.int32)
    return Dataset("random", 10, x[:samples], y[:samples], x[samples:], y[samples:], "")


def overhead(method: str, data: Dataset, steps: int) -> dict[str, float]:
    """Milliseconds per step: "device", "end_to_end"; number of checkpoints, "saved", and milliseconds of all, "saving".

    Raises:
        SystemExit: something was compiled after the first evaluation.
    """
    every = min(1000, steps)
    sizes = [f"protocol.max_steps={steps}", f"protocol.evaluate_every={every}", "protocol.patience=1000000"]
    config = compose_run(["dataset=mnist", "model=mlp_1x128", f"method={method}", *sizes])
    compiled: list[str] = []
    heard: list[int] = []
    saved: list[int] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if "backend_compile" in event:
            compiled.append(f"{event} {duration_secs:.3g} s")

    def note(_: Event) -> None:
        heard.append(len(compiled))

    def keep(snapshot: Snapshot) -> None:
        save(Path(folder), snapshot)
        saved.append(snapshot.step)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with tempfile.TemporaryDirectory() as folder:
            saver = Saver([keep], config.checkpoint_every_s, Interruption())
            clocks = train(config, data, note, saver).clocks
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    if heard[-1] != heard[0]:
        raise SystemExit(f"error: {method} compiled {heard[-1] - heard[0]} times after its first evaluation")
    assert clocks is not None
    assert clocks.checkpoint_s is not None
    times = {"device": clocks.device_ms_per_step, "end_to_end": clocks.end_to_end_ms_per_step}
    return {**times, "saved": len(saved), "saving": 1e3 * clocks.checkpoint_s}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps", type=int, default=30_000, help="counted steps: a multiple of 1000, or of 50 below it"
    )
    parser.add_argument("--samples", type=int, default=60_000, help="training samples (default 60000)")
    parser.add_argument("--json", type=Path, help="write the numbers with device and versions to this file")
    options = parser.parse_args(arguments)
    device = environment()
    print(f"Milliseconds per step, MLP 1x128, batch 256, {device['device']} ({device['platform']})")
    print(f"{'':6}{'device':>10}{'/ SGD':>8}{'end to end':>12}{'/ device':>10}{'saved':>8}{'each':>7}")
    data, results = random_mnist(options.samples), dict[str, dict[str, float]]()
    for method in METHODS:
        results[method] = found = overhead(method, data, options.steps)
        sgd = found["device"] / results["sgd"]["device"]
        ratio = found["end_to_end"] / found["device"]
        saves = f"{found['saved']:8.0f}" + (f"{found['saving'] / found['saved']:7.0f}" if found["saved"] else "")
        print(f"{method:6}{found['device']:10.3f}{sgd:8.2f}{found['end_to_end']:12.3f}{ratio:10.3f}{saves}", flush=True)
    print("nothing was compiled after the first evaluation")
    if options.json:
        write(options.json, "suite-overhead", results=results)


if __name__ == "__main__":
    main()
