"""The engine of PJAX: tracing, rules, representations and methods. What a user imports is ``pjax``."""
