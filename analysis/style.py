"""The one place with the names, colours, line styles, markers and order of methods, data sets, models and verdicts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MethodStyle:
    """How a method looks in every table and figure; ``linestyle`` and ``marker`` tell it apart without colour."""

    label: str
    color: str
    linestyle: str | tuple[int, tuple[float, ...]]
    marker: str


# Okabe and Ito's palette; in grey some are alike, so lines and markers differ too. This order holds everywhere.
METHODS: dict[str, MethodStyle] = {
    "sgd": MethodStyle("SGD", "#000000", (0, (1, 1)), "o"),
    "adam": MethodStyle("Adam", "#E69F00", (0, (5, 1.5)), "s"),
    "dr": MethodStyle("DR", "#0072B2", "-", "^"),
    "ap": MethodStyle("AP", "#D55E00", (0, (4, 1, 1, 1)), "D"),
    "cp": MethodStyle("CP", "#009E73", (0, (3, 1, 1, 1, 1, 1)), "v"),
}

# Of no table of the paper.
MORE_METHODS: dict[str, MethodStyle] = {
    "displacement": MethodStyle("Displacement", "#CC79A7", (0, (8, 2)), "P"),
    "displacement_steps": MethodStyle("Displacement with margin", "#CC79A7", (0, (8, 2, 1, 2)), "h"),
    "straight_through": MethodStyle("Straight-through", "#56B4E9", (0, (2, 1)), "X"),
}

# Every figure is drawn with these; nothing of a machine's own settings, fonts or dates enters.
RC: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "legend.fontsize": 8,
    "legend.framealpha": 0.85,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "savefig.dpi": 130,
    "savefig.facecolor": "white",
    "svg.hashsalt": "pjax",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
GRID: dict[str, Any] = {"color": "0.88", "linewidth": 0.6}

# On a terminal; symbols say the same without colour.
VERDICT_COLOURS: dict[str, str] = {
    "reproduced": "green",
    "inconclusive": "yellow",
    "differs": "red",
    "missing": "dim",
    "not judged": "dim",
}
VERDICT_SYMBOLS: dict[str, str] = {
    "reproduced": "✓",
    "inconclusive": "?",
    "differs": "✗",
    "missing": "·",
    "not judged": "○",
}

_DATASETS: dict[str, str] = {
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "higgs": "HIGGS",
    "shakespeare": "Shakespeare",
    "digits": "Digits 8x8",
}


def method_style(method: str) -> MethodStyle:
    """Returns the style of a method; a KeyError names the known methods and this file."""
    known = METHODS | MORE_METHODS
    if method not in known:
        raise KeyError(f"no style for method '{method}' (known: {', '.join(known)}); add it to analysis/style.py")
    return known[method]


def method_label(method: str, engine: str | None) -> str:
    """Returns the display name, with the operator set behind it where it is not the paper's.

    The name itself stands for a method without a style.
    """
    known = METHODS | MORE_METHODS
    label = known[method].label if method in known else method
    return label if engine in (None, "published") else f"{label} ({engine})"


def dataset_label(dataset: str) -> str:
    """Returns the display name of a data set, or the name itself for one that the paper does not use."""
    return _DATASETS.get(dataset, dataset)


def family_label(model: str) -> str:
    """Returns the family of an architecture: ``mlp_4x128_skip`` is an ``MLP``."""
    return model.split("_")[0].upper()


def model_label(model: str) -> str:
    """Returns the paper's name of an architecture: ``mlp_4x128_skip`` becomes ``4 x 128 + Skip``."""
    match = re.fullmatch(r"[a-z]+_(\d+)x(\d+)(_skip)?", model)
    if match is None:
        return model
    depth, width, skip = match.groups()
    return f"{depth} x {width}" + (" + Skip" if skip else "")
