"""The claims of the paper's text, judged by the paper's own tables and by our records."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from scipy import stats

from analysis.compare import Comparison, Row
from analysis.published import UNITS, CellKey, Claim, Published
from analysis.statistics import ALPHA, MIN_SEEDS, Estimate, Sample, at_least, contrast, logarithm, sample

DEFAULT_BENCHMARKS = Path("results/benchmarks")
TIMES = ("ms_per_step", "device_ms")
DEPTH = ("depth_us", "depth_slope")


class BenchmarkError(ValueError):
    """A benchmark file that cannot be used; the message names it and what is wrong."""


class Outcome(StrEnum):
    """What is said of a claim."""

    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    NOT_ENOUGH_DATA = "not enough data"


class State(StrEnum):
    """What one context says of a claim; ``MISSING`` has no cell with enough runs."""

    AGREES = "agree"
    CONTRADICTS = "contradict"
    UNDECIDED = "undecided"
    MISSING = "missing"


@dataclass(frozen=True)
class Trial:
    """One context of a claim: its name, the cells it needs, and the estimate (None: missing)."""

    context: str
    cells: tuple[CellKey, ...]
    estimate: Estimate | None
    state: State


@dataclass(frozen=True)
class Finding:
    """A claim with its outcome and the contexts that it rests on; ``device`` where it is about a benchmark."""

    claim: Claim
    outcome: Outcome
    trials: tuple[Trial, ...]
    device: str | None = None

    def counts(self) -> str:
        """Returns in words how many contexts say what, without those that none does."""
        counts = Counter(trial.state for trial in self.trials)
        return ", ".join(f"{counts[state]} {state}" for state in State if counts[state]) or "no context"


@dataclass(frozen=True)
class DepthTimes:
    """Figure 6's benchmark on one device: microseconds per step with their quartiles, by method and hidden layers."""

    device: str
    width: int
    times: dict[str, dict[int, tuple[float, float, float]]]

    def slope(self, method: str) -> Sample:
        """Returns the least-squares slope in microseconds per layer, as a sample with its standard error."""
        layers = list(self.times[method])
        fit: Any = stats.linregress(layers, [self.times[method][n][0] for n in layers])
        free = len(layers) - 1  # a line has two parameters, a mean one
        return Sample(float(fit.slope), float(fit.stderr) * math.sqrt(free), free)

    def intercept(self, method: str) -> float:
        """Returns the intercept of the same line, in microseconds."""
        layers = list(self.times[method])
        fit: Any = stats.linregress(layers, [self.times[method][n][0] for n in layers])
        return float(fit.intercept)


def load_depth(folder: Path) -> list[DepthTimes]:
    """Reads ``depth-*.json`` of ``python -m benchmarks.depth --json``, one per device, in the order of their names.

    A folder that does not exist holds none. Raises BenchmarkError, naming the file, for one that cannot be used.
    """
    found: list[DepthTimes] = []
    for path in sorted(folder.glob("depth-*.json")):
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            device, cores = raw["environment"]["device"], raw["environment"]["cores"]
            number = f"{cores} core{'s' * (cores != 1)}"
            name = f"{device}, {number}" if raw["environment"]["platform"] == "cpu" else str(device)
            times = {
                method.lower(): {
                    int(layers): (1e3 * m["step_ms"], 1e3 * m["spread_ms"][0], 1e3 * m["spread_ms"][1])
                    for layers, m in sorted(rows.items(), key=lambda item: int(item[0]))
                }
                for method, rows in raw["results"].items()
            }
            width = int(raw["width"])
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise BenchmarkError(f"{path}: not a file of `python -m benchmarks.depth --json` ({error!r})") from error
        if len({tuple(rows) for rows in times.values()}) != 1 or any(len(rows) < 3 for rows in times.values()):
            raise BenchmarkError(f"{path}: a slope needs the same three depths or more of every method")
        found.append(DepthTimes(name, width, times))
    return found


def judge_ours(published: Published, comparisons: Sequence[Comparison], depths: Sequence[DepthTimes]) -> list[Finding]:
    """Judges every claim by our runs, the judged rows of each table; one about depth by each device's benchmark."""
    rows: dict[CellKey, Row] = {key: row for comparison in comparisons for key, row in comparison.judged.items()}

    def get(metric: str, keys: Sequence[CellKey]) -> list[Sample] | None:
        chosen = [rows[key].ours for key in keys if key in rows]
        present = [ours for ours in chosen if ours is not None]
        if len(present) < len(keys):
            return None
        # What the limit of steps ended is not what the paper's runs are.
        if metric not in TIMES and any(ours.cut for ours in present):
            return None
        # Times of different devices compare with nothing.
        if metric in TIMES and len({ours.device for ours in present}) > 1:
            return None
        found: list[Sample] = [getattr(ours, metric) for ours in present]
        return found if all(value.n >= MIN_SEEDS for value in found) else None

    findings: list[Finding] = []
    for claim in published.claims:
        of = depths if claim.metric in DEPTH and depths else [None]
        found = [(depth, _judge(claim, published, get, depth)) for depth in of]
        findings += [replace(finding, device=depth.device if depth else None) for depth, finding in found]
    return findings


def judge_published(published: Published) -> list[Finding]:
    """Judges every claim by the paper's own tables; what they do not print is missing."""
    cells = {cell.key: cell for cell in published.cells}

    def get(metric: str, keys: Sequence[CellKey]) -> list[Sample] | None:
        return [cells[key].sample(metric) for key in keys] if metric in UNITS else None

    return [_judge(claim, published, get, None) for claim in published.claims]


_Get = Callable[[str, Sequence[CellKey]], "list[Sample] | None"]


def _judge(claim: Claim, published: Published, get: _Get, depth: DepthTimes | None) -> Finding:
    estimates: list[tuple[str, tuple[CellKey, ...], Estimate | None]] = []
    for context in _contexts(claim):
        name = " ".join(context.values())
        if claim.metric in DEPTH:
            estimates.append((name, (), _depth_estimate(claim, context, depth) if depth else None))
            continue
        keys = _cells(claim, context, published)
        if keys is None:
            continue
        values = get(claim.metric, keys)
        if values is not None and claim.metric in TIMES:
            logs = [logarithm(value) for value in values]
            values = [value for value in logs if value is not None] if None not in logs else None
        terms = None if values is None else list(zip((times for times, _ in claim.terms), values, strict=True))
        estimates.append((name, keys, None if terms is None else contrast(terms)))
    return _conclude(claim, estimates)


def _contexts(claim: Claim) -> list[dict[str, str]]:
    return [dict(zip(claim.over, values, strict=True)) for values in itertools.product(*claim.over.values())]


def _cells(claim: Claim, context: dict[str, str], published: Published) -> tuple[CellKey, ...] | None:
    """The cells of a context's terms, None where the paper does not have them all."""
    places = {(c.dataset, *kind(c.model), c.method): c.key for c in published.cells}
    found: list[CellKey] = []
    for _, term in claim.terms:
        chosen = context | {key: context[value[1:]] if value.startswith("$") else value for key, value in term.items()}
        key = places.get((chosen["dataset"], chosen["family"], chosen["variant"], chosen["method"]))
        if key is None:
            return None
        found.append(key)
    return tuple(found)


def kind(model: str) -> tuple[str, str]:
    """Returns family and variant of an architecture: ``mlp_4x128_skip`` is an ``mlp``, ``skip``."""
    family, size, *skip = model.split("_")
    return family, "skip" if skip else "shallow" if size.startswith("1x") else "deep"


def _depth_estimate(claim: Claim, context: Mapping[str, str], depth: DepthTimes) -> Estimate | None:
    terms = [
        (times, context[name[1:]] if name.startswith("$") else name)
        for times, name in ((times, term.get("method", context.get("method", ""))) for times, term in claim.terms)
    ]
    if any(name not in depth.times for _, name in terms):
        return None
    if claim.metric == "depth_slope":
        return contrast([(times, depth.slope(name)) for times, name in terms])
    # Methods were timed in turns at each depth: pairs, which share a depth's disturbances.
    layers = depth.times[terms[0][1]]
    pairs = [sum(times * math.log(depth.times[name][n][0]) for times, name in terms) for n in layers]
    return contrast([(1.0, sample(pairs))])


def _conclude(claim: Claim, estimates: Sequence[tuple[str, tuple[CellKey, ...], Estimate | None]]) -> Finding:
    agree: list[float] = []
    against: list[float] = []
    trials: list[Trial] = []
    for name, cells, estimate in estimates:
        if estimate is None:
            p, q, state = 1.0, 1.0, State.MISSING
        else:
            if claim.within is None:
                p, q = estimate.p_above(claim.above), estimate.p_below(claim.above)
            else:
                p = estimate.p_within(claim.within)
                q = min(1.0, 2 * min(estimate.p_above(claim.within), estimate.p_below(-claim.within)))
            state = State.AGREES if p < ALPHA else State.CONTRADICTS if q < ALPHA else State.UNDECIDED
        agree.append(p)
        against.append(q)
        trials.append(Trial(name, cells, estimate, state))
    total = len(trials)
    least = total if claim.every == "all" else total // 2 + 1
    # Fewer than `least` agree exactly if more than `total - least` do not.
    outcome = Outcome.NOT_ENOUGH_DATA
    if total and at_least(least, agree) < ALPHA:
        outcome = Outcome.HOLDS
    elif total and at_least(total - least + 1, against) < ALPHA:
        outcome = Outcome.DOES_NOT_HOLD
    return Finding(claim, outcome, tuple(trials))
