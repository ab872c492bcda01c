"""Early stopping and the time to 99 %, as pure functions."""

from __future__ import annotations

import pytest

from experiments.stopping import Patience, first_reaching


def stop_at(accuracies: list[float], limit: int) -> tuple[int, int]:
    """Index of the evaluation that ends the run, and the best step, at one step per evaluation."""
    patience = Patience(limit)
    for step, accuracy in enumerate(accuracies):
        patience.observe(step, accuracy)
        if patience.exhausted:
            return step, patience.best_step
    return -1, patience.best_step


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.4], (-1, 3)),
        ([0.1, 0.5, 0.4, 0.4, 0.6, 0.5], (-1, 4)),  # an improvement just in time
        ([0.1, 0.5, 0.4, 0.4, 0.3, 0.6], (4, 1)),  # one too late
        ([0.5, 0.5, 0.5, 0.5], (3, 0)),  # equal is no improvement
        ([0.0, 0.0, 0.0, 0.0], (3, 0)),  # zero is an accuracy
    ],
)
def test_three_evaluations_without_improvement_stop(accuracies: list[float], expected: tuple[int, int]) -> None:
    assert stop_at(accuracies, 3) == expected


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([0.1, 0.98, 0.985, 0.99, 1.0], 3),  # 0.99 of the best counts
        ([0.1, 0.98, 0.9, 0.5], 1),
        ([0.5], 0),
        ([0.0, 0.0], 0),
    ],
)
def test_first_evaluation_near_the_best(accuracies: list[float], expected: int) -> None:
    assert first_reaching(accuracies, 0.99) == expected
