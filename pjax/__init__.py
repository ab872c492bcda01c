"""PJAX: projection as a JAX transformation. Training as a feasibility problem, traced from plain JAX.

This is what a user imports; the engine beneath is ``pjax_core``.
"""

from pjax import nn, numpy, optim
from pjax.check import ProjectionError, check_projection
from pjax.graph import Graph, trace
from pjax.numpy import *  # noqa: F403  the functions of the paper's Appendix B.2
from pjax.rules import defelementwise, defloss, defproj
from pjax_core.operators import EXACT, PUBLISHED, Operators
from pjax_core.rules import Bilinear, defbilinear, defcomp, defprimitive, defshape

__all__ = [
    "EXACT",
    "PUBLISHED",
    "Bilinear",
    "Graph",
    "Operators",
    "ProjectionError",
    "check_projection",
    "defbilinear",
    "defcomp",
    "defelementwise",
    "defloss",
    "defprimitive",
    "defproj",
    "defshape",
    "nn",
    "optim",
    "trace",
]
__all__ += numpy.__all__
