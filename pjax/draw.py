"""A constraint graph as an SVG picture, in the style of the paper's Figure 7.

In layers from the top: a box is below what it reads, and as low as its readers allow. Where an edge passes a layer, an
empty box keeps the others off it; it bends only between two layers, so it meets no box.
"""

import re
from itertools import pairwise
from os import PathLike
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from pjax_core import rules
from pjax_core.graph import Graph

_STYLES = {  # kinds differ in more than their colour-blind-safe colour
    "parameter": 'fill="#9fd0f0" stroke="#222" rx="16"',
    "constant": 'fill="#f5eca0" stroke="#222" stroke-dasharray="2 2"',
    "constraint": 'fill="#a9dcc6" stroke="#222" rx="4"',
    "loss": 'fill="#f4b183" stroke="#222" rx="4" stroke-width="3"',
    "inserted identity": 'fill="#e3b7d2" stroke="#222" rx="4" stroke-dasharray="7 3"',
    "copies": 'fill="#e6e6e6" stroke="#222" rx="6" stroke-width="0.6"',
    "note": 'fill="none"',
}
_PITCH, _SPACE, _SWEEPS = 88, 26, 12  # from layer to layer, between two boxes of one; there and back


class _Box:
    """A box with its text or, without lines, the place where a long edge passes a layer; (x, y) is its centre."""

    def __init__(self, kind: str, *lines: str, title: str = "", side: str = "", y: int = 0) -> None:
        self.kind, self.lines, self.title, self.side, self.x, self.y = kind, lines, title or kind, side, 0, y
        self.near: list[_Box] = []  # in the next layers, where its edges lead
        # A letter of the widest monospaced fonts takes 0.61 of its size, one of an ideographic script all of it.
        letters = max((sum(1 if ord(c) < 0x1100 else 1.7 for c in line) for line in lines), default=0)
        self.font = 10 if kind == "copies" else 12
        self.width = round(0.62 * self.font * letters) + (42 if side else 14)


def write(graph: Graph, path: str | PathLike[str], *, copies: bool) -> None:
    """See :meth:`pjax.Graph.draw`."""
    path = Path(path)
    if path.suffix.lower() != ".svg":
        raise ValueError(f"{path} does not end in .svg, the one format drawn; convert an .svg file with any SVG tool")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} of the drawing {path.name} does not exist; create it first")
    path.write_text(svg(graph, copies=copies), encoding="utf-8", newline="\n")


def svg(graph: Graph, *, copies: bool = True) -> str:
    """Return the picture; the same graph gives the same text."""
    boxes, edges = _boxes(graph, copies)
    legend = [_Box(kind, kind, y=_PITCH) for kind in _STYLES if any(box.kind == kind for box in boxes)]
    legend += [_Box("note", f"side {side}", side=side, y=_PITCH + 36) for side in "AB"]
    legend += [_Box("note", "dashed: from a later node", y=_PITCH + 36)] * any(a > b for a, b in edges)
    routes = _routes(boxes, edges)
    _place(boxes + legend)
    ends = [box.x + sign * box.width // 2 for box in boxes + legend for sign in (-1, 1)]
    left, top = min(ends) - _SPACE, min(box.y for box in boxes) - 20 - _SPACE
    width, height = max(ends) + _SPACE - left, _PITCH + 48 + _SPACE - top
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left} {top} {width} {height}" width="{width}" '
        f'height="{height}" text-anchor="middle" font-family="DejaVu Sans Mono, Menlo, Consolas, monospace">\n'
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="white"/>'
    )
    drawn = [*map(_drawn_edge, routes), *(_drawn_box(box) for box in boxes if box.lines)]
    drawn += ['<g class="legend">', *map(_drawn_box, legend), "</g>", "</svg>\n"]
    # Without addresses in memory, which differ from run to run, and with a mark for what no XML file may hold.
    text = re.sub(" at 0x[0-9a-f]+", "", "\n".join([head, *drawn]))
    return re.sub(r"[^\n -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\N{REPLACEMENT CHARACTER}", text)


def _boxes(graph: Graph, copies: bool) -> tuple[list[_Box], list[tuple[int, int]]]:
    """Boxes of nodes and of operands' copies, each before its first reader, and the edges between them, each once."""
    boxes: dict[object, _Box] = {}
    edges: dict[tuple[object, object], None] = {}
    for number, node in sorted(enumerate(graph.nodes), key=lambda item: bool(item[1].operands)):  # leaves first
        for operand in node.operands:
            reader: object = number
            if copies and operand.copies:
                reader = operand.producers, operand.copies
                names = [str(copy.primitive) for copy in operand.copies]
                shown = " ".join(names[:2] + ["..."] * (len(names) > 2))
                title = "\n".join(f"{copy.primitive} {dict(copy.params)}" for copy in operand.copies)
                boxes.setdefault(reader, _Box("copies", shown, str(operand.shape), title=title))
                edges[reader, number] = None
            edges.update(((producer, reader), None) for producer in operand.producers)
        kind = "inserted identity" if node.primitive is rules.identity_p else node.kind
        title = f"node {number}: {kind} {node.name} {dict(node.params)}\n{node.dtype} {node.shape}"
        side = "B" if number in graph.sides[1] else "A"
        boxes[number] = _Box(kind, node.name, str(node.shape), title=title, side=side)
    position = {key: i for i, key in enumerate(boxes)}
    return list(boxes.values()), [(position[source], position[target]) for source, target in edges]


def _routes(boxes: list[_Box], edges: list[tuple[int, int]]) -> list[list[_Box]]:
    """Set every y. Returns for every edge the boxes that it meets; those between its ends are new, and empty."""
    # As far above the end as the longest way to it. The earlier of two boxes is above, whichever reads the other.
    for upper, lower in sorted(((min(edge), max(edge)) for edge in edges), reverse=True):
        boxes[upper].y = min(boxes[upper].y, boxes[lower].y - _PITCH)
    routes = []
    for source, target in [(boxes[a], boxes[b]) for a, b in edges]:
        step = _PITCH if source.y < target.y else -_PITCH
        routes.append([source, *(_Box("bend", y=y) for y in range(source.y + step, target.y, step)), target])
        boxes += routes[-1][1:-1]
        for a, b in pairwise(routes[-1]):
            a.near.append(b)
            b.near.append(a)
    return routes


def _place(boxes: list[_Box]) -> None:
    """Set every x: the mean of its neighbours', or about as near as fits side by side."""
    layers = [[box for box in boxes if box.y == y] for y in sorted({box.y for box in boxes})]
    for layer in (layers + layers[::-1]) * _SWEEPS:
        wanted = {box: np.mean([other.x for other in box.near or boxes]) for box in layer}
        layer.sort(key=lambda box: wanted[box])
        widths = np.array([box.width + _SPACE for box in layer])
        offsets = np.cumsum(widths) - widths / 2
        # Boxes fit where x - offset ascends, as the mean of its running extremes from both ends does.
        free = np.array([wanted[box] for box in layer]) - offsets
        fitting = (np.maximum.accumulate(free) + np.minimum.accumulate(free[::-1])[::-1]) / 2
        for box, x in zip(layer, offsets + fitting, strict=True):
            box.x = round(x)


def _drawn_edge(route: list[_Box]) -> str:
    """Draw an arrow, curved between two layers; upwards, to an earlier box, it is dashed and a little aside."""
    down, aside = (1, 0.0) if route[0].y < route[-1].y else (-1, 0.1)
    line, x, y = "", 0, 0
    for a, b in pairwise(route):
        lean = 0.4 * (b.x - a.x) / (100 + abs(b.x - a.x))  # from the middle of a box to its corner
        u, x = round(a.x + (lean + aside) * a.width), round(b.x + (aside - lean) * b.width)
        v, y = a.y + 20 * down, b.y - 20 * down
        line += f"{'L' if line else 'M'}{u} {v}C{u} {v + 30 * down} {x} {y - 30 * down} {x} {y}"
    return (
        f'<g class="edge"><title>{escape(f"{route[0].lines[0]} to {route[-1].lines[0]}")}</title>'
        f'<path d="{line}" fill="none" stroke="#444" stroke-dasharray="{"none" if down > 0 else "5 4"}"/>'
        f'<path d="M{x - 4} {y - 8 * down}h8l-4 {8 * down}z" fill="#444"/></g>'
    )


def _drawn_box(box: _Box) -> str:
    height = 10 + 15 * len(box.lines)
    left, top = box.x - box.width / 2, box.y - height / 2
    drawn = f'<rect x="{left}" y="{top}" width="{box.width}" height="{height}" {_STYLES[box.kind]}/>'
    if box.side:
        ink, paper = ("white", "black") if box.side == "B" else ("black", "white")
        drawn += f'<circle cx="{left + 16}" cy="{box.y}" r="8.5" fill="{paper}" stroke="black"/>'
        drawn += f'<text class="side" x="{left + 16}" y="{box.y + 4}" font-size="11" fill="{ink}">{box.side}</text>'
    for row, line in enumerate(box.lines, 1):
        x, y = box.x + (11 if box.side else 0), top + 2 + 15 * row
        drawn += f'<text x="{x}" y="{y}" font-size="{box.font}">{escape(line)}</text>'
    return f'<g class="{box.kind}"><title>{escape(box.title)}</title>{drawn}</g>'
