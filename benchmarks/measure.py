"""Timing of compiled functions side by side, and their memory from the compiler."""

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.stages import Compiled


@dataclass(frozen=True)
class Measurement:
    """One compiled function.

    Attributes:
        step_ms: median over rounds of the blocked wall-clock time per step.
        spread_ms: quartiles of the same.
        peak_mb: arguments, results and temporaries of the compiled program, MB (10^6 bytes).
        compile_s: tracing and compilation.
    """

    step_ms: float
    spread_ms: tuple[float, float]
    peak_mb: float
    compile_s: float


def peak_mb(compiled: Compiled) -> float:
    """Arguments, results and temporaries of a compiled program, MB (10^6 bytes); it need not have run."""
    memory = compiled.memory_analysis()
    if memory is None:
        raise RuntimeError(f"the compiler for {jax.default_backend()} reports no memory")
    return (memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes) / 1e6


def measure(
    cases: Mapping[str, tuple[Callable[..., Any], int]],
    arguments: tuple[Any, ...] | Mapping[str, tuple[Any, ...]],
    rounds: int = 9,
    calls: Mapping[str, int] | None = None,
) -> dict[str, Measurement]:
    """Time functions in turn, round after round, so that a disturbance hits all of them.

    Args:
        cases: by name the function of ``arguments`` and the number of steps that it takes.
        arguments: arrays on the device, the same for all or each case's own by name.
        rounds: times of each after a call that warms up.
        calls: of how many calls by name a time is, 1 where none is given: what ends sooner meets fewer disturbances.
    """
    calls = calls or {}
    given = arguments if isinstance(arguments, Mapping) else dict.fromkeys(cases, arguments)
    compiled, compile_s = {}, {}
    for name, (fun, _) in cases.items():
        start = time.perf_counter()
        compiled[name] = jax.jit(fun).lower(*given[name]).compile()
        compile_s[name] = time.perf_counter() - start
        jax.block_until_ready(compiled[name](*given[name]))
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, (_, steps) in cases.items():
            start, n = time.perf_counter(), calls.get(name, 1)
            for _ in range(n):
                jax.block_until_ready(compiled[name](*given[name]))
            times[name].append(1e3 * (time.perf_counter() - start) / (n * steps))
    result = {}
    for name in cases:
        low, high = np.quantile(times[name], [0.25, 0.75])
        result[name] = Measurement(
            statistics.median(times[name]), (float(low), float(high)), peak_mb(compiled[name]), compile_s[name]
        )
    return result


def environment() -> dict[str, Any]:
    """Device and versions that the numbers belong to."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "cores": cores,
        "jax": jax.__version__,
        "numpy": np.__version__,
    }


def write(path: Path, benchmark: str, **numbers: Any) -> None:
    """Write a benchmark's numbers as JSON, with device and versions."""
    document = {"benchmark": benchmark, "environment": environment(), **numbers}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
