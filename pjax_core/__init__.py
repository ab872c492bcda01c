"""The engine of PJAX: tracing, rules, representations and methods. What a user imports is ``pjax``."""

from pjax_core import windows as windows  # whose rules of convolutions and pooling nobody else reads
