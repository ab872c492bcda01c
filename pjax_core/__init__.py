"""PJAX: projection as a JAX transformation. Training as a feasibility problem, traced from plain JAX."""

from pjax_core import nn, numpy, optim
from pjax_core.check import ProjectionError, check_projection
from pjax_core.graph import Graph
from pjax_core.numpy import *  # noqa: F403  the functions of the paper's Appendix B.2
from pjax_core.operators import EXACT, PUBLISHED, Operators
from pjax_core.rules import defbilinear, defcomp, defelementwise, defloss, defprimitive, defproj, defshape
from pjax_core.trace import trace

__all__ = [
    "EXACT",
    "PUBLISHED",
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
