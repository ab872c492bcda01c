"""Methods: the engine's projection methods, and displacements."""

from pjax.displacement import Displacement
from pjax_core.optim import (
    AlternatingProjections,
    CyclicDouglasRachford,
    CyclicProjections,
    DifferenceMap,
    DouglasRachford,
    ProjectionMethod,
)

__all__ = [
    "AlternatingProjections",
    "CyclicDouglasRachford",
    "CyclicProjections",
    "DifferenceMap",
    "Displacement",
    "DouglasRachford",
    "ProjectionMethod",
]
