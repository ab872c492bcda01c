"""Drawings of graphs: read back as XML and measured."""

import dataclasses
import itertools
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import primitives as P

import pjax
from pjax import nn
from pjax_core import rules
from pjax_core.graph import Copy, Node, Operand
from tests.core.networks import network, problem, zoo

X, Y = jnp.ones((4, 3)), jnp.array([0, 1, 0, 1])
F32 = np.dtype("float32")


def _residual():
    def loss_fn(p):
        h = jnp.maximum(X @ p["w"], 0)
        return nn.cross_entropy(h + jnp.maximum(h + p["b"], 0), Y)

    return pjax.trace(loss_fn, {"w": jnp.ones((3, 2)), "b": jnp.zeros((4, 2))})


def _two_losses():
    def loss_fn(p):
        h = jnp.maximum(X @ p["w"] + jnp.broadcast_to(p["b"], (4, 2)), 0)
        return nn.cross_entropy(h @ p["v"], Y), nn.margin_loss(h @ p["u"].T[:, ::-1], Y)

    shapes = {"w": (3, 2), "b": (2,), "v": (2, 2), "u": (3, 2), "unread": (7,)}
    return pjax.trace(loss_fn, {k: jnp.ones(s) for k, s in shapes.items()})


def _operand(*producers, copies=()):
    return Operand(producers, copies, (8, 4), F32)


def _recurrent():
    """A cell that reads the state of the step before: node 5 reads node 6 through a shift."""
    shift = (Copy(P.pad_p, (), (("producer", 0),)), Copy(P.slice_p, (), (("copy", 0),)))
    leaves = [Node("parameter", name, (8, 4), F32) for name in ("w", "u", "v")]
    return pjax.Graph(
        (
            *leaves,
            Node("constant", "constant0", (8, 4), F32),
            Node("constraint", "dot_general", (8, 4), F32, P.dot_general_p, (), (_operand(3), _operand(0))),
            Node(
                "constraint", "dot_general", (8, 4), F32, P.dot_general_p, (), (_operand(6, copies=shift), _operand(1))
            ),
            Node("constraint", "sum_relu", (8, 4), F32, rules.sum_relu_p, (), (_operand(4), _operand(5))),
            Node("constraint", "dot_general", (8, 4), F32, P.dot_general_p, (), (_operand(6), _operand(2))),
            Node("loss", "cross_entropy", (8,), F32, None, (), (_operand(7),)),
        )
    )


def _level_back_edges():
    """A node that reads a later one without being read by it: no path leads back, so neither is above the other."""
    graph = _recurrent()
    nodes = list(graph.nodes)
    nodes[4] = dataclasses.replace(nodes[4], operands=(_operand(3), _operand(5)))
    nodes[6] = dataclasses.replace(nodes[6], operands=(_operand(4),))
    changed = pjax.Graph(tuple(nodes))
    changed.__dict__["sides"] = graph.sides  # two neighbours are on one side, which changes no place
    return changed


GRAPHS = {
    "1 layer": lambda: pjax.trace(*problem("1 layer")),
    "4 layers, skip": lambda: pjax.trace(*problem("4 layers, skip")),
    "9 layers, skip": lambda: pjax.trace(*network((12, *[16] * 9, 5), skip=True)),
    "residual": _residual,
    "two losses": _two_losses,
    "recurrent": _recurrent,
    "level back edges": _level_back_edges,
}
KINDS = {"parameter", "constant", "constraint", "loss", "inserted identity"}


class _Drawing:
    """What an SVG file holds: groups of class ``name`` outside the legend; texts, rectangles, paths inside a group."""

    def __init__(self, graph, path, **options):
        graph.draw(path, **options)
        self.root = ET.parse(path).getroot()
        self.groups = [g for g in self.root if g.get("class") not in (None, "legend")]
        self.nodes = [g for g in self.groups if g.get("class") in KINDS]
        self.copies = [g for g in self.groups if g.get("class") == "copies"]
        self.edges = [g for g in self.groups if g.get("class") == "edge"]

    def shows(self, x, y):
        """Whether a point is inside the picture."""
        left, top, width, height = map(float, self.root.get("viewBox", "").split())
        return left < x < left + width and top < y < top + height


@pytest.fixture(params=GRAPHS)
def graph(request):
    return GRAPHS[request.param]()


@pytest.fixture(params=[True, False], ids=["copies", "no copies"])
def drawing(graph, request, tmp_path):
    return _Drawing(graph, tmp_path / "graph.svg", copies=request.param)


def _children(group, tag):
    return group.findall("{http://www.w3.org/2000/svg}" + tag)


def _title(group):
    return group.findtext("{http://www.w3.org/2000/svg}title", "no title")


def _texts(group):
    return [t.text for t in _children(group, "text") if t.get("class") != "side"]


def _box(group):
    (rect,) = _children(group, "rect")
    x, y, width, height = (float(rect.get(k, "nan")) for k in ("x", "y", "width", "height"))
    return x, y, x + width, y + height


def test_every_node_appears_once_with_name_shape_and_side(graph, drawing):
    side = {n: "AB"[i] for i in (0, 1) for n in graph.sides[i]}
    expected = [(n.name, str(n.shape), side.get(i, "-")) for i, n in enumerate(graph.nodes)]
    found = []
    for group in drawing.nodes:
        (tag,) = [t.text for t in _children(group, "text") if t.get("class") == "side"]
        found.append((*_texts(group), tag))
    assert sorted(found) == sorted(expected)
    assert ("unread", "(7,)", "-") in found or all(i in side for i in range(len(graph.nodes)))


def test_boxes_do_not_overlap_and_lie_inside_the_picture(drawing):
    (legend,) = [g for g in drawing.root if g.get("class") == "legend"]
    boxes = [_box(g) for g in [*drawing.nodes, *drawing.copies, *legend]]
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1], (a, b)
    assert all(drawing.shows(*box[:2]) and drawing.shows(*box[2:]) for box in boxes)


def test_text_fits_its_box(drawing):
    for group in [*drawing.nodes, *drawing.copies]:
        left, top, right, bottom = _box(group)
        for text in _children(group, "text"):
            size, x, y = (float(text.get(k)) for k in ("font-size", "x", "y"))
            half = 0.602 * size * len(text.text) / 2  # DejaVu Sans Mono, the widest of the fonts named
            assert left < x - half, text.text
            assert x + half < right, text.text
            assert top < y - size * 0.8 < y + size * 0.2 < bottom, text.text


def _points(d):
    """Points along a path of absolute M, L and C."""
    points = []
    for letter, numbers in re.findall(r"([MLC])([^MLC]*)", d):
        values = [float(n) for n in numbers.split()]
        if letter in "ML":
            points.append(np.array(values))
        else:
            a, (b, c, e) = points[-1], np.reshape(values, (3, 2))
            steps = np.linspace(0, 1, 60)[1:]
            points += [(1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * e for t in steps]
    return points


def test_no_edge_meets_another_box(drawing):
    boxes = [_box(g) for g in [*drawing.nodes, *drawing.copies]]
    for edge in drawing.edges:
        line, head = _children(edge, "path")
        points = _points(line.get("d"))
        for x, y in points:
            assert drawing.shows(x, y)
            assert not any(a + 1 < x < c - 1 and b + 1 < y < d - 1 for a, b, c, d in boxes), _title(edge)
        # Both ends touch a box, and the head points at the second.
        tip_x, base, tip = map(float, re.findall(r"-?\d+", head.get("d").replace("h8l-4", "")))
        for x, y in (points[0], (tip_x + 4, base + tip)):
            assert any(a <= x <= c and min(abs(y - b), abs(y - d)) <= 1 for a, b, c, d in boxes), _title(edge)


def test_layers_are_ordered_so_that_edges_need_not_cross(tmp_path):
    params = {f"w{i}": jnp.ones((4, 2)) for i in range(6)}
    graph = pjax.trace(lambda p: [nn.cross_entropy(p[f"w{i}"], Y) for i in (3, 0, 5, 1, 4, 2)], params)
    lines = [_points(_children(g, "path")[0].get("d")) for g in _Drawing(graph, tmp_path / "a.svg").edges]
    assert len(lines) == 12
    ends = [end for _, end in sorted((line[0][0], line[-1][0]) for line in lines)]
    assert ends == sorted(ends)


def test_edges_with_and_without_copies(graph, tmp_path):
    chains = {(o.producers, o.copies) for n in graph.nodes for o in n.operands if o.copies}
    direct = {(p, i) for i, n in enumerate(graph.nodes) for o in n.operands if not o.copies for p in o.producers}
    through = {((o.producers, o.copies), i) for i, n in enumerate(graph.nodes) for o in n.operands if o.copies}
    full = _Drawing(graph, tmp_path / "full.svg")
    assert len(full.copies) == len(chains)
    assert len(full.edges) == len(direct) + len(through) + sum(len(producers) for producers, _ in chains)
    bare = _Drawing(graph, tmp_path / "bare.svg", copies=False)
    assert not bare.copies
    assert len(bare.edges) == len({(p, i) for i, n in enumerate(graph.nodes) for p in n.producers()})


def _dashed(drawing):
    return [_title(g) for g in drawing.edges if g[1].get("stroke-dasharray") != "none"]


def test_back_edges_are_dashed_and_others_point_down(tmp_path):
    assert _dashed(_Drawing(_recurrent(), tmp_path / "a.svg")) == ["sum_relu to pad slice"]
    assert _dashed(_Drawing(_recurrent(), tmp_path / "a.svg", copies=False)) == ["sum_relu to dot_general"]
    level = _Drawing(_level_back_edges(), tmp_path / "a.svg")
    assert sorted(_dashed(level)) == ["dot_general to dot_general", "sum_relu to pad slice"]
    assert "dashed: from a later node" in "".join(level.root.itertext())
    skip = _Drawing(GRAPHS["4 layers, skip"](), tmp_path / "b.svg")
    assert not _dashed(skip)
    assert "dashed" not in "".join(skip.root.itertext())
    for edge in skip.edges:
        ys = [y for _, y in _points(_children(edge, "path")[0].get("d"))]
        assert ys == sorted(ys)


def test_two_boxes_that_read_each_other_have_an_arrow_each(tmp_path):
    lines = [_points(g[1].get("d")) for g in _Drawing(_recurrent(), tmp_path / "a.svg", copies=False).edges]
    ends = sorted((y, x) for line in lines for x, y in (line[0], line[-1]))
    assert all(a[0] != b[0] or b[1] - a[1] > 8 for a, b in itertools.pairwise(ends))  # heads are 8 wide


def test_the_initial_state_of_a_recurrence_is_not_a_later_node(tmp_path):
    graph = pjax.trace(*zoo("RNN"))
    dashed = _dashed(_Drawing(graph, tmp_path / "a.svg", copies=False))
    assert dashed == ["sum_relu to dot_general"]
    assert any("constant" in _title(g) for g in _Drawing(graph, tmp_path / "a.svg", copies=False).edges)


def test_inserted_identity_is_marked_and_explained(tmp_path):
    drawing = _Drawing(_residual(), tmp_path / "graph.svg")
    (group,) = [g for g in drawing.nodes if g.get("class") == "inserted identity"]
    assert _texts(group) == ["identity(sum_relu)", "(4, 2)"]
    (legend,) = [g for g in drawing.root if g.get("class") == "legend"]
    assert [text for g in legend for text in _texts(g)] == [
        *("parameter", "constant", "constraint", "loss", "inserted identity"),
        *("side A", "side B"),
    ]


def test_copies_name_their_primitives_and_equal_ones_are_one_box(tmp_path):
    def loss_fn(p):
        wide = p.reshape(3, 2)
        long = jnp.pad(wide.T, ((0, 1), (0, 0)))[::-1].reshape(9)[:6].reshape(3, 2)
        return tuple(nn.cross_entropy(a @ b, Y) for a in (X, 2 * X) for b in (wide, long))

    drawing = _Drawing(pjax.trace(loss_fn, jnp.ones(6)), tmp_path / "graph.svg")
    assert [_texts(g) for g in drawing.copies] == [
        ["reshape", "(3, 2)"],
        ["reshape transpose ...", "(3, 2)"],
    ]
    assert "\ntranspose {'permutation': (1, 0)}\npad {" in _title(drawing.copies[1])
    assert "dimension_numbers" in _title(next(g for g in drawing.nodes if "dot_general" in _texts(g)))


def test_the_same_graph_gives_the_same_bytes(graph, tmp_path):
    graph.draw(tmp_path / "a.svg")
    graph.draw(str(tmp_path / "b.SVG"))
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.SVG").read_bytes()
    assert graph._repr_svg_().encode() == (tmp_path / "a.svg").read_bytes()


def test_another_process_gives_the_same_bytes(tmp_path):
    """Neither hashes nor addresses, which differ between processes, are in the picture."""
    path = tmp_path / "other.svg"
    code = f"from tests.core.test_draw import GRAPHS; GRAPHS['two losses']().draw({str(path)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    assert path.read_text("utf-8") == _two_losses()._repr_svg_()


def test_addresses_of_parameters_are_left_out(tmp_path):
    graph = _recurrent()
    nodes = [dataclasses.replace(node, params=(("rule", object()),)) for node in graph.nodes]
    drawing = _Drawing(pjax.Graph(tuple(nodes)), tmp_path / "graph.svg")
    assert _title(drawing.nodes[0]) == "node 0: parameter w {'rule': <object object>}\nfloat32 (8, 4)"


def test_names_of_any_characters(tmp_path):
    name = "<w & \"b\">\x00'重み'"
    graph = pjax.trace(lambda p: nn.cross_entropy(X @ p[name], Y), {name: jnp.ones((3, 2))})
    drawing = _Drawing(graph, tmp_path / "graph.svg")
    assert _texts(drawing.nodes[0])[0] == name.replace("\x00", "\N{REPLACEMENT CHARACTER}")
    left, _, right, _ = _box(drawing.nodes[0])
    assert right - left - 42 > 12 * (0.602 * 12 + 2)  # the two wide characters take a whole size each


@pytest.mark.parametrize("name", ["graph.png", "graph", "svg"])
def test_another_format_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=rf"{name} does not end in .svg, .*convert"):
        _recurrent().draw(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder \S*missing of the drawing graph.svg does not exist"):
        _recurrent().draw(tmp_path / "missing" / "graph.svg")
