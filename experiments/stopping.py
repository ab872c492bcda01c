"""When to stop, which parameters to keep, and when a run was nearly as good as it would get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Patience:
    """Early stopping on the validation accuracy (Appendix D).

    Attributes:
        limit: evaluations without an improvement after which to stop.
        best: best accuracy so far, below any accuracy before the first.
        best_step: the step that had it first.
        waited: evaluations since then.
    """

    limit: int
    best: float = -1.0
    best_step: int = 0
    waited: int = 0

    def observe(self, step: int, accuracy: float) -> bool:
        """Take note of an evaluation; returns whether it is the best so far. Equal is not better."""
        if accuracy > self.best:
            self.best, self.best_step, self.waited = accuracy, step, 0
            return True
        self.waited += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether to stop."""
        return self.waited >= self.limit


def first_reaching(accuracies: Sequence[float], share: float) -> int:
    """Index of the first evaluation with at least `share` of the best accuracy.

    Args:
        accuracies: validation accuracy of each evaluation, in order, at least one.
        share: 0.99 for the paper's steps and time.
    """
    threshold = share * max(accuracies)
    return next(i for i, accuracy in enumerate(accuracies) if accuracy >= threshold)
