"""Methods: the engine's projection methods, and displacements."""

from pjax.displacement import Displacement
from pjax_core.diagnostics import Diagnostics
from pjax_core.optim import (
    AlternatingProjections,
    CyclicDouglasRachford,
    CyclicProjections,
    Diagnosed,
    DifferenceMap,
    DouglasRachford,
    ProjectionMethod,
    Result,
)

__all__ = [
    "AlternatingProjections",
    "CyclicDouglasRachford",
    "CyclicProjections",
    "Diagnosed",
    "Diagnostics",
    "DifferenceMap",
    "Displacement",
    "DouglasRachford",
    "ProjectionMethod",
    "Result",
]
