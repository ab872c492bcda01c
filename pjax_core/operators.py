"""Which operators a run uses: the published procedure or the stated mathematics, by name.

The published implementation departs from the paper's theorems in four places. Both behaviours are
selectable and are recorded with a run; nothing else in the engine depends on the choice.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any


class Checked:
    """A dataclass whose :func:`checked` fields refuse what they cannot honour."""

    def __post_init__(self) -> None:
        """Check every field."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value, (accepts, what) = getattr(self, field.name), field.metadata.get("check", (lambda _: True, ""))
            if not accepts(value):
                raise ValueError(f"{field.name}={value!r}: {what}")


def checked(default: Any, accepts: Callable[[Any], bool], what: str) -> Any:
    """Make a field that refuses what a function does not accept; ``what`` says what it does."""
    return dataclasses.field(default=default, metadata={"check": (accepts, what)})


def is_number(value: Any) -> bool:
    """Whether a value is a real number."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def counter(default: int | None) -> Any:
    """Make a field of a positive whole number, or ``None`` if that is the default."""

    def accepts(value: Any) -> bool:
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return (default is None and value is None) or (whole and int(value) > 0)

    return checked(default, accepts, "a positive whole number")


def switch(default: bool) -> Any:
    """Make a field that is True or False."""
    return checked(default, lambda value: isinstance(value, bool), "True or False")


@dataclasses.dataclass(frozen=True)
class Operators(Checked):
    """Choices inside the projections. The defaults are exact operators in the plain metric.

    Attributes:
        dot_newton_steps: Theorem 7's root. ``None``: bracketed Newton in (-1, 1), run to tolerance. A
            number: that many Newton steps from 0 without a guard; it may leave (-1, 1).
        prox_sweeps: Theorem 11's proximal operator. ``None``: Newton on Eq. 49, run to tolerance.
            A number: that many fixed-point sweeps, which do not converge for every ``prox_lambda``.
        prox_lambda: the proximal parameter, lambda > 0, of Eq. 12 (5 in the paper).
        exact_sum_relu: Theorem 6's choice between its two candidates. ``False``: the distance of the
            second is taken to the hyperplane, except where the target is exactly zero.
        consensus: ``"edges"``: Eq. 10, the mean over all outgoing edges. ``"consumers"``: the mean over
            the consumers of the mean over each consumer's copies.
        weighted: Theorem 3, step 2: project with the output weighted by its number of outgoing edges.
            ``False`` (weight 1) in both presets, as published: the nearest point in the plain metric, which
            keeps every fixed point.
    """

    dot_newton_steps: int | None = counter(None)
    prox_sweeps: int | None = counter(None)
    prox_lambda: float = checked(5.0, lambda v: is_number(v) and 0 < v < math.inf, "it must be positive and finite")
    exact_sum_relu: bool = switch(True)
    consensus: str = checked("edges", lambda v: v in ("edges", "consumers"), "choose 'edges' or 'consumers'")
    weighted: bool = switch(False)


EXACT = Operators()
"""Every operator returns the nearest point of its node's graph in the plain metric, to rounding."""

PUBLISHED = Operators(dot_newton_steps=10, prox_sweeps=10, exact_sum_relu=False, consensus="consumers")
"""The published procedure, departures included; what the paper's tables were made with."""
