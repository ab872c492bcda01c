"""Which operators a run uses: the published procedure or the stated mathematics, by name.

The published implementation departs from the paper's theorems in four places. Both behaviours are
selectable and are recorded with a run; nothing else in the engine depends on the choice.
"""

import dataclasses
import math
import numbers
from typing import Any


def require_count(name: str, value: Any) -> None:
    """Refuse what is no positive whole number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name}={value!r}: a positive whole number")


def require_number(name: str, value: Any) -> None:
    """Refuse what is no number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name}={value!r}: a number")


def require_bool(name: str, value: Any) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: True or False")


def require_operators(value: Any) -> None:
    """Refuse what chooses no operators."""
    if not isinstance(value, Operators):
        raise TypeError(f"operators={value!r}: pass pjax.EXACT, pjax.PUBLISHED or Operators")


@dataclasses.dataclass(frozen=True)
class Operators:
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
        step_margin: how far inside the interval of its level the input of a step (``quantize``, ``sign``) has to be, in
            distances between neighbouring levels; in the middle where that is nearer. 0: the closure of the graph, as
            in Theorem 9.
        weighted: Theorem 3, step 2: project with the output weighted by its number of outgoing edges.
            ``False`` (weight 1) in both presets, as published: the nearest point in the plain metric, which
            keeps every fixed point.
    """

    dot_newton_steps: int | None = None
    prox_sweeps: int | None = None
    prox_lambda: float = 5.0
    exact_sum_relu: bool = True
    consensus: str = "edges"
    step_margin: float = 0.0
    weighted: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no projection can honour."""
        if self.consensus not in ("edges", "consumers"):
            raise ValueError(f"consensus={self.consensus!r}: choose 'edges' or 'consumers'")
        require_number("prox_lambda", self.prox_lambda)
        if not 0 < self.prox_lambda < math.inf:
            raise ValueError(f"prox_lambda={self.prox_lambda}: it must be positive and finite")
        require_number("step_margin", self.step_margin)
        if not 0 <= self.step_margin < math.inf:
            raise ValueError(f"step_margin={self.step_margin}: zero, or positive and finite")
        for name in ("dot_newton_steps", "prox_sweeps"):
            if getattr(self, name) is not None:
                require_count(name, getattr(self, name))
        for name in ("exact_sum_relu", "weighted"):
            require_bool(name, getattr(self, name))


EXACT = Operators()
"""Every operator returns the nearest point of its node's graph in the plain metric, to rounding."""

PUBLISHED = Operators(dot_newton_steps=10, prox_sweeps=10, exact_sum_relu=False, consensus="consumers")
"""The published procedure, departures included; what the paper's tables were made with."""
