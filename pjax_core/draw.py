"""A constraint graph as an SVG picture, in the style of the paper's Figure 7.

In layers from the top: a box is below what it reads; leaves and copies are as low as their readers allow. Where an
edge passes a layer, an empty box keeps the others off it; it bends only between two layers, so it meets no box.
"""

import dataclasses
import re
from itertools import accumulate, pairwise
from os import PathLike
from pathlib import Path
from xml.sax.saxutils import escape

from pjax_core import rules
from pjax_core.graph import Graph

# Fill, dashes and width of the border, radius of the corners: kinds differ in more than their colour-blind-safe colour.
_STYLES = {
    "parameter": ("#9fd0f0", "none", 1.2, 16),
    "constant": ("#f5eca0", "2 2", 1.2, 0),
    "constraint": ("#a9dcc6", "none", 1.2, 4),
    "loss": ("#f4b183", "none", 3, 4),
    "inserted identity": ("#e3b7d2", "7 3", 1.2, 4),
    "copies": ("#e6e6e6", "none", 0.6, 6),
    "note": ("none", "none", 0, 0),
}
_SPACE, _MARGIN, _SWEEPS = 26, 16, 48


@dataclasses.dataclass(eq=False)
class _Box:
    """A box with its text, or (without lines) the place where a long edge passes a layer; (x, y) is its centre."""

    rank: int = 0
    kind: str = ""
    lines: tuple[str, ...] = ()
    title: str = ""
    side: str = ""
    x: float = 0
    y: float = 0
    near: tuple[list["_Box"], list["_Box"]] = dataclasses.field(default_factory=lambda: ([], []))  # above, below

    def __post_init__(self) -> None:
        # A letter of the widest monospaced fonts takes 0.61 of their size, one of an ideographic script all of it.
        letters = max((sum(1 if ord(c) < 0x1100 else 1.7 for c in line) for line in self.lines), default=0)
        self.font = 10 if self.kind == "copies" else 12
        self.width = 0.62 * self.font * letters + (42 if self.side else 14 if self.lines else 0)
        self.height = (self.font + 3) * len(self.lines) + 10 if self.lines else 0
        self.leaf = self.kind in ("parameter", "constant")


_Edge = tuple[_Box, _Box]
_Edges = dict[_Edge, bool]  # (source, target) -> whether the source is the later one
_Routes = dict[_Edge, list[_Box]]  # the boxes that an edge meets, its ends included


def write(graph: Graph, path: str | PathLike[str], *, copies: bool) -> None:
    """See :meth:`Graph.draw`."""
    path = Path(path)
    if path.suffix.lower() != ".svg":
        raise ValueError(f"{path} does not end in .svg, the one format drawn; convert an .svg file with any SVG tool")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} of the drawing {path.name} does not exist; create it first")
    path.write_text(svg(graph, copies=copies), encoding="utf-8", newline="\n")


def svg(graph: Graph, *, copies: bool = True) -> str:
    """Return the picture; the same graph gives the same text."""
    boxes, edges = _boxes(graph, copies)
    layers, routes = _layers(boxes, edges)
    bands = _place(layers)
    notes = [_Box(kind=kind, lines=(kind,)) for kind in _STYLES if any(box.kind == kind for box in boxes)]
    notes += [_Box(kind="note", lines=(f"side {side}",), side=side) for side in "AB"]
    notes += [_Box(kind="note", lines=("dashed: from a later node",))] * any(edges.values())
    left = max(box.x + box.width / 2 for layer in layers for box in layer) + 2 * _SPACE
    for row, box in enumerate(notes):
        box.x, box.y = left + box.width / 2, _MARGIN + 14 + 34 * row
    width = round(max(box.x + box.width / 2 for box in notes) + _MARGIN)
    height = round(max(notes[-1].y + 14, bands[-1][1]) + _MARGIN)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" text-anchor="middle">\n'
        f'<path d="M0 0H{width}V{height}H0z" fill="white"/>'
    )
    arrows = [_drawn_edge(edge, routes, bands, dashed) for edge, dashed in edges.items()]
    drawn = [head, *arrows, *map(_drawn_box, boxes), '<g class="legend">', *map(_drawn_box, notes), "</g>", "</svg>\n"]
    return "\n".join(drawn)


def _boxes(graph: Graph, copies: bool) -> tuple[list[_Box], _Edges]:
    """Boxes of nodes and of operands' copies, each before its first reader, and the edges between them, each once."""
    sides = {number: side for side, numbers in zip("AB", graph.sides, strict=True) for number in numbers}
    nodes: list[_Box] = []
    for number, node in enumerate(graph.nodes):
        kind = "inserted identity" if node.primitive is rules.identity_p else node.kind
        title = f"node {number}: {kind} {_details(node.name, node.params)}\n{node.dtype} {node.shape}"
        nodes.append(_Box(kind=kind, lines=(node.name, str(node.shape)), title=title, side=sides.get(number, "-")))
    boxes: list[_Box] = []
    chains: dict[object, _Box] = {}
    edges: _Edges = {}
    for number, (node, reader) in enumerate(zip(graph.nodes, nodes, strict=True)):
        for operand in node.operands:
            key, target = (operand.producers, operand.copies), reader
            if copies and operand.copies:
                names = [str(copy.primitive) for copy in operand.copies]
                lines = (*names[:3], *[f"+{len(names) - 3}"] * (len(names) > 3), str(operand.shape))
                title = "\n".join(_details(str(copy.primitive), copy.params) for copy in operand.copies)
                if key not in chains:
                    chains[key] = _Box(kind="copies", lines=lines, title=f"{title}\n{operand.dtype} {operand.shape}")
                    boxes.append(chains[key])
                target = chains[key]
                edges[target, reader] = False
            for producer in operand.producers:
                edges.setdefault((nodes[producer], target), producer >= number)
        boxes.append(reader)
    return boxes, edges


def _details(name: str, params: tuple[tuple[str, object], ...]) -> str:
    """A name with parameters, without addresses in memory: those differ from run to run."""
    return re.sub(" at 0x[0-9a-f]+", "", "\n  ".join([name, *(f"{key} = {value}" for key, value in params)]))


def _layers(boxes: list[_Box], edges: _Edges) -> tuple[list[list[_Box]], _Routes]:
    """Rank by longest paths, back edges aside. Returns the layers and the boxes that every edge meets."""
    forward = [edge for edge, back in edges.items() if not back]
    for box in boxes:
        box.rank = max((source.rank + 1 for source, target in forward if target is box), default=0)
    for box in reversed(boxes):
        if box.leaf or box.kind == "copies":
            box.rank = min((target.rank - 1 for source, target in forward if source is box), default=box.rank)
    layers: list[list[_Box]] = [[] for _ in range(max(box.rank for box in boxes) + 1)]
    for box in boxes:
        layers[box.rank].append(box)
    routes: _Routes = {}
    for a, b in edges:
        step = 1 if a.rank < b.rank else -1
        passed = [_Box(rank) for rank in range(a.rank + step, b.rank, step)]
        routes[a, b] = [a, *passed, b]
        for box in passed:
            layers[box.rank].append(box)
        for high, low in (pair[::step] for pair in pairwise(routes[a, b]) if a.rank != b.rank):
            high.near[1].append(low)
            low.near[0].append(high)
    return layers, routes


def _place(layers: list[list[_Box]]) -> list[tuple[float, float]]:
    """Set every centre. Returns the top and bottom of every layer."""
    for sweep in range(_SWEEPS):
        ordering = sweep < _SWEEPS // 3  # by the neighbours on one side, then straight between those on both
        for layer in layers[:: -1 if sweep % 2 else 1]:
            _place_layer(layer, (sweep % 2,) if ordering else (0, 1), ordering)
    left = min(box.x - box.width / 2 for layer in layers for box in layer) - _MARGIN
    bands, top = [], float(_MARGIN)
    for layer in layers:
        bands.append((top, top + max(box.height for box in layer)))
        slope = max((abs(a.x - b.x) / 8 for a in layer for b in a.near[1]), default=0)
        top = bands[-1][1] + 34 + min(slope, 60)
        for box in layer:
            box.x, box.y = box.x - left, sum(bands[-1]) / 2
    return bands


def _place_layer(layer: list[_Box], ways: tuple[int, ...], ordering: bool) -> None:
    """Move boxes to the mean of their neighbours above (way 0) or below (1), or near it where they would overlap.

    The nearest places in least squares: wanted places less the offsets, made ascending by pooling adjacent violators.
    """
    wanted: dict[_Box, tuple[float, float]] = {}  # place, weight: leaves stand where there is room
    for box in layer:
        near = [(1e-3 if box.leaf or other.leaf else 1.0, other.x) for way in ways for other in box.near[way]]
        weight = sum(w for w, _ in near)
        wanted[box] = (sum(w * x for w, x in near) / weight, weight) if near else (box.x, 1e-3)
    if ordering:
        layer.sort(key=lambda box: wanted[box][0])
    offsets = list(accumulate(((a.width + b.width) / 2 + _SPACE for a, b in pairwise(layer)), initial=0.0))
    blocks: list[list[float]] = []  # weighted sum, weight, boxes
    for box, offset in zip(layer, offsets, strict=True):
        place, weight = wanted[box]
        block = [weight * (place - offset), weight, 1]
        while blocks and blocks[-1][0] * block[1] > block[0] * blocks[-1][1]:
            block = [a + b for a, b in zip(blocks.pop(), block, strict=True)]
        blocks.append(block)
    places = [total / weight for total, weight, count in blocks for _ in range(int(count))]
    for box, place, offset in zip(layer, places, offsets, strict=True):
        box.x = place + offset


def _drawn_edge(edge: _Edge, routes: _Routes, bands: list[tuple[float, float]], back: bool) -> str:
    """Draw an arrow: vertical along boxes and layers, curved between two layers."""
    (a, b), route = edge, routes[edge]
    up, top = a.rank >= b.rank, a.rank <= b.rank  # it leaves through the top, it arrives there
    rivals = sorted((r for r in routes.values() if r[-1] is b and (r[-2].rank <= b.rank) == top), key=lambda r: r[-2].x)
    share = (rivals.index(route) + 1) / (len(rivals) + 1)
    # Upwards, an edge keeps to the corner, clear of what the border's middle is for.
    tail = 0.4 * up * (1 if route[1].x >= a.x else -1)
    head = 0.7 * share - 0.35 if top else (0.15 + 0.25 * share) * (1 if route[-2].x >= b.x else -1)
    xs = [a.x + tail * a.width, *(box.x for box in route[1:-1]), b.x + head * b.width]
    sign = 1 if top else -1  # of the way into the box; heads are 8 long
    line = f"M{xs[0]:.0f} {a.y + a.height * (0.5 - up):.0f}"
    for (u, x), (v, z) in pairwise(zip(route, xs, strict=True)):
        start, end = bands[u.rank][not up], bands[v.rank][not top] - 7 * sign
        middle = start - 18 if a.rank == b.rank else (start + end) / 2
        line += f"V{start:.0f}C{x:.0f} {middle:.0f} {z:.0f} {middle:.0f} {z:.0f} {end:.0f}"
    tip = round(b.y - sign * b.height / 2)
    return (
        f'<g class="edge"><title>{_text(f"{a.lines[0]} to {b.lines[0]}")}</title><path d="{line}V{tip - 7 * sign}" '
        f'fill="none" stroke="#444" stroke-width="1.3" stroke-dasharray="{"5 4" if back else "none"}"/>'
        f'<path d="M{xs[-1] - 4:.0f} {tip - 8 * sign}h8l-4 {8 * sign}z" fill="#444"/></g>'
    )


def _drawn_box(box: _Box) -> str:
    fill, dashes, border, radius = _STYLES[box.kind]
    left, top = round(box.x - box.width / 2), round(box.y - box.height / 2)
    parts = [
        f'<g class="{box.kind}"><title>{_text(box.title or box.lines[0])}</title><rect x="{left}" y="{top}" '
        f'width="{box.width:.0f}" height="{box.height}" rx="{radius}" fill="{fill}" stroke="#222" '
        f'stroke-width="{border}" stroke-dasharray="{dashes}"/>'
    ]
    if box.side:
        ink, paper = ("white", "black") if box.side == "B" else ("black", "white")
        parts.append(
            f'<circle cx="{left + 16}" cy="{box.y:.0f}" r="8.5" fill="{paper}" stroke="black"/>'
            f'<text class="side" x="{left + 16}" y="{box.y + 4:.0f}" font-size="11" fill="{ink}">{box.side}</text>'
        )
    for row, line in enumerate(box.lines, 1):
        x, y = box.x + (11 if box.side else 0), top + 2 + (box.font + 3) * row
        parts.append(f'<text x="{x:.0f}" y="{y}" font-size="{box.font}">{_text(line)}</text>')
    return "".join([*parts, "</g>"])


def _text(text: str) -> str:
    """Escape, with a mark for what no XML file may hold."""
    return escape("".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text))
