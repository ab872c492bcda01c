"""Figures 5 and 7, from the graphs that ``python -m experiments.graphs`` traced."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, PathPatch
from matplotlib.path import Path as Outline

DEFAULT_GRAPHS = Path("results/graphs")
COMMAND = "python -m experiments.graphs"
_SVG = "{http://www.w3.org/2000/svg}"
_POINTS_PER_PIXEL = 72 / 96
# The colours of the engine's own pictures.
_FILL = {"parameter": "#9fd0f0", "constraint": "#a9dcc6", "loss": "#f4b183", "constant": "#f5eca0"}


class GraphError(ValueError):
    """A graph's file that cannot be drawn; the message names it and what is wrong."""


def load_graph(path: Path) -> list[dict[str, Any]] | None:
    """Reads a graph's nodes; None where there is no such file. Raises GraphError for one of another form."""
    if not path.is_file():
        return None
    try:
        nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
        for node in nodes:
            for key in ("kind", "name", "shape", "side", "reads", "cell"):
                node[key]
    except (ValueError, KeyError, TypeError) as error:
        raise GraphError(f"{path}: not a graph of `{COMMAND}` ({error!r})") from error
    return nodes


def figure_5(nodes: list[dict[str, Any]] | None) -> Figure:
    """Returns the unrolled RNN: a parameter node, one local copy of it per cell, and the cells' own nodes."""
    if nodes is None:
        return missing()
    inside: dict[int, list[int]] = {}
    for i, node in enumerate(nodes):
        if node["cell"] is not None:
            inside.setdefault(node["cell"], []).append(i)
    parameters = [i for i, node in enumerate(nodes) if node["kind"] == "parameter"]
    reads = [[producer for operand in node["reads"] for producer in operand] for node in nodes]
    loss = next(i for i, node in enumerate(nodes) if node["kind"] == "loss")
    width, bottom = 3.2 * len(inside) + 0.4, 1.05
    height = 0.74 * max(map(len, inside.values())) + 0.4
    top, middle = bottom + height + 2.25, width / 2
    figure = Figure(figsize=(width, top))
    axis = _canvas(figure, (0.0, width), (0.0, top))
    names = "\n".join(f"{_short(nodes[i]['name'])} {_shape(nodes[i])}  {nodes[i]['side']}" for i in parameters)
    _box(axis, (middle, top - 0.65, 3.4, 1.1), "parameter", f"parameter nodes $w$: consensus\n{names}", size=7.5)
    _box(axis, (middle, 0.35, 2.6, 0.42), "loss", _label(nodes[loss]))
    places: dict[int, tuple[float, float, float]] = {}
    for column, (t, members) in enumerate(inside.items()):
        x = 1.8 + 3.2 * column
        style = "round,pad=0,rounding_size=0.1"
        frame = FancyBboxPatch((x - 1.2, bottom), 2.4, height, boxstyle=style, fc="none", ec="0.4", ls="--")
        axis.add_patch(frame)
        axis.text(x - 1.08, bottom + height - 0.1, f"cell $f$, character {t}", fontsize=8, va="top", color="0.25")
        for row, number in enumerate(members):
            # What only the next cell reads stands aside, so that the way to the loss is free.
            aside = {nodes[i]["cell"] for i in range(len(nodes)) if number in reads[i]} == {t + 1}
            places[number] = (x + 0.27 * aside, bottom + height - 0.6 - 0.74 * row, 2.1 - 0.54 * aside)
            _box(axis, (*places[number], 0.4), "constraint", _label(nodes[number]))
        start, end = (middle + 1.1 * (column - (len(inside) - 1) / 2), top - 1.2), (x, bottom + height)
        _arrow(axis, [start, end], color="#2a6f9e", width=1.6)
        reading = sum(any(p in parameters for p in reads[n]) for n in members)
        local = f"$w_{t}$: local copy\n(read by {reading} nodes)"
        text = axis.text((start[0] + x) / 2, (start[1] + end[1]) / 2, local, fontsize=7.5, color="#1d4f73")
        text.set(horizontalalignment="center", verticalalignment="center")
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 2})
    for number, (x, y, size) in places.items():
        for producer in (p for p in reads[number] if p in places):
            px, py, psize = places[producer]
            if nodes[producer]["cell"] == nodes[number]["cell"]:
                _arrow(axis, [(x, py - 0.2), (x, y + 0.2)])
            else:  # the state goes to the next cell
                right = px + psize / 2
                _arrow(axis, [(right, py), (right + 0.55, py), (right + 0.55, y), (x - size / 2, y)])
                axis.text(right + 0.6, (py + y) / 2, f"$h_{nodes[producer]['cell']}$", fontsize=9)
        if number in reads[loss]:
            _arrow(axis, [(x - 0.78, y - 0.2), (x - 0.78, bottom - 0.1), (middle + 0.35 * (x - middle), 0.57)])
    axis.text(
        0.2,
        0.1,
        "blue: parameters\ngreen: constraints\norange: the loss\nA, B: sides of the bipartition",
        fontsize=7.5,
        color="0.25",
    )
    return figure


def figure_7(picture: Path) -> Figure:
    """Returns the engine's SVG picture of Listing 1's graph, drawn again, so that it has every format.

    Raises GraphError for a picture that has what ``pjax.draw`` does not draw.
    """
    if not picture.is_file():
        return missing()
    try:
        root = ET.fromstring(picture.read_text(encoding="utf-8"))
        left, top, width, height = (float(value) for value in root.attrib["viewBox"].split())
        figure = Figure(figsize=(width / 96, height / 96))
        axis = _canvas(figure, (left, left + width), (top + height, top))
        _svg(axis, root)
    except (ET.ParseError, KeyError, ValueError, IndexError) as error:
        raise GraphError(f"{picture}: not a picture of `{COMMAND}` ({error!r})") from error
    return figure


def missing() -> Figure:
    """Returns the figure that says how to get the graphs."""
    figure = Figure(figsize=(6.0, 1.0))
    figure.text(0.5, 0.5, f"No graph yet: `{COMMAND}` traces it.", ha="center", va="center", color="0.3")
    return figure


def _canvas(figure: Figure, x: tuple[float, float], y: tuple[float, float]) -> Axes:
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axis.set_axis_off()
    axis.set_xlim(*x)
    axis.set_ylim(*y)
    return axis


def _box(axis: Axes, place: tuple[float, float, float, float], kind: str, text: str, size: float = 8) -> None:
    x, y, width, height = place
    style = f"round,pad=0,rounding_size={0.15 if kind == 'parameter' else 0.05}"
    patch = FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle=style, fc=_FILL[kind], ec="#222")
    patch.set_linewidth(2.0 if kind == "loss" else 0.9)
    axis.add_patch(patch)
    axis.text(x, y, text, ha="center", va="center", fontsize=size)


def _arrow(axis: Axes, points: list[tuple[float, float]], color: str = "#444", width: float = 1.0) -> None:
    axis.plot(*zip(*points, strict=True), color=color, linewidth=width, solid_joinstyle="round")
    axis.add_patch(
        FancyArrowPatch(*points[-2:], arrowstyle="-|>", mutation_scale=9, color=color, lw=width, shrinkA=0, shrinkB=0)
    )


def _label(node: Mapping[str, Any]) -> str:
    return f"{node['name']} {_shape(node)}  {node['side']}"


def _shape(node: Mapping[str, Any]) -> str:
    return "(" + ", ".join(map(str, node["shape"])) + ")"


def _short(name: str) -> str:
    """The last two parts of a parameter's name, without Flax's numbering of modules."""
    return ".".join(re.sub(r"_(\d+)$", r" \1", part) for part in name.split(".")[-2:])


def _svg(axis: Axes, element: ET.Element) -> None:
    """Draws the elements that the engine's pictures have: groups, boxes, circles, paths and text."""
    for child in element:
        name, get = child.tag.removeprefix(_SVG), child.attrib
        ink = {"facecolor": get.get("fill", "black"), "edgecolor": get.get("stroke", "none")}
        dashes = [float(length) for length in get.get("stroke-dasharray", "").replace("none", "").split()]
        line: dict[str, Any] = {"linewidth": float(get.get("stroke-width", 1)) * _POINTS_PER_PIXEL}
        if dashes:
            line["linestyle"] = (0, tuple(dashes))
        if name == "g":
            _svg(axis, child)
        elif name == "rect":
            x, y, width, height = (float(get[key]) for key in ("x", "y", "width", "height"))
            corner = min(float(get.get("rx", 0)), height / 2)
            style = f"round,pad=0,rounding_size={corner}" if corner else "square,pad=0"
            axis.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, **ink, **line))
        elif name == "circle":
            centre = (float(get["cx"]), float(get["cy"]))
            axis.add_patch(Circle(centre, float(get["r"]), **ink, **line))
        elif name == "path":
            axis.add_patch(PathPatch(_outline(get["d"]), **ink, **line))
        elif name == "text":
            x, y, size = float(get["x"]), float(get["y"]), float(get["font-size"]) * _POINTS_PER_PIXEL
            colour = get.get("fill", "black")
            axis.text(x, y, child.text or "", ha="center", fontsize=size, color=colour, family="DejaVu Sans Mono")
        elif name != "title":
            raise ValueError(f"unknown element {name}")


def _outline(commands: str) -> Outline:
    """A path of the commands M, L, C, h, l and z."""
    points: list[tuple[float, float]] = []
    codes: list[int] = []
    for letter, numbers in re.findall(r"([A-Za-z])([^A-Za-z]*)", commands):
        values = [float(number) for number in re.findall(r"-?[\d.]+", numbers)]
        if letter in "ML":
            points.append((values[0], values[1]))
            codes.append(int(Outline.MOVETO if letter == "M" else Outline.LINETO))
        elif letter == "C":
            points += [(values[i], values[i + 1]) for i in (0, 2, 4)]
            codes += [int(Outline.CURVE4)] * 3
        elif letter in "hl":
            x, y = points[-1]
            points.append((x + values[0], y + (values[1] if letter == "l" else 0)))
            codes.append(int(Outline.LINETO))
        elif letter == "z":
            points.append(points[0])
            codes.append(int(Outline.CLOSEPOLY))
        else:
            raise ValueError(f"unknown path command {letter}")
    return Outline(points, codes)
