"""The statistics behind every verdict: contrasts of means with Welch's interval, equivalence, Holm, power.

``python -m analysis.statistics`` prints the power of the verdicts, which docs/verdicts.md explains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy.special import stdtr, stdtrit

ALPHA = 0.05
# Fewer seeds have too few degrees of freedom: with two, the intervals cover less than they say.
MIN_SEEDS = 3
PAPER_SEEDS = 5


class Verdict(StrEnum):
    """The answer to "did it reproduce?" for one number."""

    REPRODUCED = "reproduced"
    INCONCLUSIVE = "inconclusive"
    DIFFERS = "differs"


@dataclass(frozen=True)
class Sample:
    """Mean and standard deviation (``ddof=1``) of ``n`` values; one value has no deviation, no value no mean.

    ``unit`` is the step to which the mean is rounded (0: it is not), in the values' unit.
    """

    mean: float | None
    std: float | None
    n: int
    unit: float = 0.0


def sample(values: Sequence[float], unit: float = 0.0) -> Sample:
    """Returns the sample of the values; NaN is no value."""
    known = np.array([value for value in values if not math.isnan(value)], dtype=float)
    std = float(known.std(ddof=1)) if known.size > 1 else None
    return Sample(float(known.mean()) if known.size else None, std, int(known.size), unit)


def published_sample(mean: float, std: float, unit: float) -> Sample:
    """Returns a number of the paper, mean ± standard deviation with ``ddof=0`` of 5 runs, printed to ``unit``."""
    return Sample(mean, std * math.sqrt(PAPER_SEEDS / (PAPER_SEEDS - 1)), PAPER_SEEDS, unit)


def logarithm(value: Sample) -> Sample | None:
    """Returns the sample of the logarithm, by the delta method; None where the mean is not positive."""
    if value.mean is None or value.mean <= 0:
        return None
    std = None if value.std is None else value.std / value.mean
    return Sample(math.log(value.mean), std, value.n, value.unit / value.mean)


@dataclass(frozen=True)
class Estimate:
    """An estimated quantity with its standard error and degrees of freedom (Student's t)."""

    value: float
    error: float
    df: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Returns the two-sided confidence interval."""
        half = _quantile(0.5 + level / 2, self.df) * self.error
        return self.value - half, self.value + half

    def p_above(self, bound: float = 0.0) -> float:
        """Returns the p-value against "the quantity is at most ``bound``"; small: it lies above."""
        return float(stdtr(self.df, -self._t(bound)))

    def p_below(self, bound: float = 0.0) -> float:
        """Returns the p-value against "the quantity is at least ``bound``"; small: it lies below."""
        return float(stdtr(self.df, self._t(bound)))

    def p_not_zero(self) -> float:
        """Returns the two-sided p-value against "the quantity is zero"."""
        return float(2 * stdtr(self.df, -abs(self._t(0.0))))

    def p_within(self, margin: float) -> float:
        """Returns the p-value against "the quantity lies outside ±margin" (two one-sided tests, Schuirmann 1987)."""
        return max(self.p_above(-margin), self.p_below(margin))

    def _t(self, bound: float) -> float:
        distance = self.value - bound
        if self.error == 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / self.error


def contrast(terms: Sequence[tuple[float, Sample]]) -> Estimate | None:
    """Returns the sum of coefficient times mean over independent samples, by Welch and Satterthwaite.

    Rounding to ``unit`` adds its variance, ``unit²/12``, to that of the mean. None where a sample has no deviation.
    """
    value, variances, frees = 0.0, [], []
    for coefficient, term in terms:
        if term.mean is None or term.std is None:
            return None
        value += coefficient * term.mean
        variances.append(coefficient**2 * (term.std**2 / term.n + term.unit**2 / 12))
        frees.append(term.n - 1)
    total = sum(variances)
    # Without any spread the degrees of freedom mean nothing; all of them, then.
    df = total**2 / sum(v**2 / f for v, f in zip(variances, frees, strict=True)) if total else float(sum(frees))
    return Estimate(value, math.sqrt(total), df)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns Holm's adjusted p-values, in the order given: all below α together err with probability α at most."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def at_least(number: int, p_values: Sequence[float]) -> float:
    """Returns the p-value for "at least ``number`` of these hold" (partial conjunction, Benjamini and Heller 2008).

    With all of them it is the largest p-value, with one it is Bonferroni's.
    """
    return min(1.0, (len(p_values) - number + 1) * sorted(p_values)[number - 1])


@dataclass(frozen=True)
class Margin:
    """How far a mean may lie from the published one and still be the same result.

    ``stds`` published standard deviations, but at least ``floor`` and at most ``cap``, or ``cap_fraction`` of the
    published mean where that is more than ``floor``; all in the metric's unit.
    """

    stds: float
    floor: float
    cap: float = math.inf
    cap_fraction: float | None = None

    def of(self, published: Sample) -> float:
        """Returns the margin of one number."""
        assert published.mean is not None
        assert published.std is not None
        cap = self.cap if self.cap_fraction is None else min(self.cap, self.cap_fraction * published.mean)
        return max(self.floor, min(cap, self.stds * published.std))


# Accuracy in percentage points; steps in thousands, the distance of two evaluations.
MARGINS = {
    "accuracy": Margin(stds=2.0, floor=0.25, cap=5.0),
    "steps_k": Margin(stds=2.0, floor=1.0, cap_fraction=0.5),
}


@dataclass(frozen=True)
class Judgement:
    """One number of ours beside the published: what is said, and what it rests on.

    ``margin`` is in the metric's unit, ``p_holm`` corrected over the table. Both p-values are None where nothing was
    tested, and ``reason`` says why. One seed has no estimate.
    """

    verdict: Verdict
    reason: str
    ours: Sample
    published: Sample
    margin: float
    estimate: Estimate | None
    p_holm: float | None = None
    p_within: float | None = None

    @property
    def power(self) -> float:
        """Returns the probability of "reproduced" with this many seeds if nothing differs."""
        return 0.0 if self.p_within is None else power_reproduced(self.ours, self.published, self.margin)

    @property
    def seeds_needed(self) -> int | None:
        """Returns how many seeds make that 80 %; None: more than 30."""
        return seeds_needed(self.ours, self.published, self.margin)


def judge(pairs: Sequence[tuple[Sample, Sample]], margin: Margin, cut: Sequence[bool] = ()) -> list[Judgement]:
    """Judges (ours, published) of one table's cells and one metric together.

    *Reproduced*: the difference lies within the margin (two one-sided tests at 5 %). Otherwise *differs*: it is not
    zero (Welch's test, 5 % over the table by Holm). Otherwise *inconclusive*, as are fewer than 3 seeds and, by
    ``cut``, runs that the limit of steps ended, which the paper does not have.
    """
    cut = cut or [False] * len(pairs)
    estimates = [contrast([(1.0, ours), (-1.0, published)]) for ours, published in pairs]
    reasons = [
        f"fewer than {MIN_SEEDS} seeds" if ours.n < MIN_SEEDS else "cut short by the step limit" if ended else ""
        for (ours, _), ended in zip(pairs, cut, strict=True)
    ]
    tested = [estimate for estimate, reason in zip(estimates, reasons, strict=True) if estimate and not reason]
    adjusted = iter(holm([estimate.p_not_zero() for estimate in tested]))
    found: list[Judgement] = []
    for (ours, published), estimate, reason in zip(pairs, estimates, reasons, strict=True):
        allowed = margin.of(published)
        if estimate is None or reason:
            found.append(Judgement(Verdict.INCONCLUSIVE, reason, ours, published, allowed, estimate))
            continue
        p_holm, p_within = next(adjusted), estimate.p_within(allowed)
        if p_within < ALPHA:
            verdict, why = Verdict.REPRODUCED, "within the margin"
        elif p_holm < ALPHA:
            verdict, why = Verdict.DIFFERS, "the difference is not zero"
        else:
            verdict, why = Verdict.INCONCLUSIVE, "neither within the margin nor surely different"
        found.append(Judgement(verdict, why, ours, published, allowed, estimate, p_holm, p_within))
    return found


def power_reproduced(ours: Sample, published: Sample, margin: float) -> float:
    """Returns the probability of "reproduced" if the true means agree, for these deviations and numbers of seeds."""
    estimate = contrast([(1.0, ours), (-1.0, published)])
    if estimate is None:
        return 0.0
    if estimate.error == 0:
        return 1.0
    reach = margin / estimate.error - _quantile(1 - ALPHA, estimate.df)
    return math.erf(reach / math.sqrt(2)) if reach > 0 else 0.0


def seeds_needed(ours: Sample, published: Sample, margin: float, power: float = 0.8, most: int = 30) -> int | None:
    """Returns the fewest seeds that say "reproduced" with this power if nothing differs; None: more than ``most``.

    Takes our deviation where 3 seeds or more show it, and the published one otherwise.
    """
    std = ours.std if ours.n >= MIN_SEEDS else published.std
    for n in range(MIN_SEEDS, most + 1):
        if power_reproduced(Sample(0.0, std, n, ours.unit), published, margin) >= power:
            return n
    return None


def power_table(draws: int = 200_000) -> str:
    """Returns, as Markdown, the power of both verdicts for equal deviations, by seeds and by tests in a table.

    From simulated runs with a fixed seed.
    """
    lines = ["| Seeds | Reproduced, if equal | Differs, if 3 std apart: 1 test | 15 tests | 45 tests |"]
    lines.append("| ---: | ---: | ---: | ---: | ---: |")
    rng = np.random.default_rng(0)
    for n in (3, 5, 10, 20):
        ours, theirs = rng.normal(size=(draws, n)), rng.normal(size=(draws, PAPER_SEEDS))
        variances = [runs.var(axis=1, ddof=1) / runs.shape[1] for runs in (ours, theirs)]
        error = np.sqrt(variances[0] + variances[1])
        df = error**4 / (variances[0] ** 2 / (n - 1) + variances[1] ** 2 / (PAPER_SEEDS - 1))
        difference = ours.mean(axis=1) - theirs.mean(axis=1)
        margin = MARGINS["accuracy"].stds * theirs.std(axis=1, ddof=1)
        chances = [np.mean(np.abs(difference) + stdtrit(df, 1 - ALPHA) * error < margin)]
        p = 2 * stdtr(df, -np.abs(difference + 3.0) / error)
        chances += [np.mean(p < ALPHA / tests) for tests in (1, 15, 45)]
        lines.append(f"| {n} | " + " | ".join(f"{100 * chance:.0f} %" for chance in chances) + " |")
    return "\n".join(lines)


def _quantile(p: float, df: float) -> float:
    return float(stdtrit(df, p))


if __name__ == "__main__":
    print(power_table())
