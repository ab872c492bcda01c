"""The engine of PJAX: tracing, rules, representations and methods. What a user imports is ``pjax``."""

from pjax_core import windows as windows  # registers convolutions and pooling; nothing else in the engine imports it
