"""The bipartition: as few identities as brute force, proper sides and layers, networks with odd cycles train."""

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import primitives as P

import pjax
from pjax import nn, optim
from pjax_core import bipartite, rules
from pjax_core.bipartite import make_bipartite
from pjax_core.graph import Graph, Node, Operand
from tests.core.networks import blobs, relative_error

ROOT = Path(__file__).resolve().parents[2]
DTYPE = np.dtype(np.float32)


def _graph(reads, losses=()):
    """Nodes whose operands have the producers ``reads[node]``, a list of tuples."""
    nodes = []
    for number, operands in enumerate(reads):
        kind = "loss" if number in losses else "constraint" if operands else "parameter"
        primitive = (None, rules.identity_p, P.add_p)[min(len(operands), 2)]
        operands = tuple(Operand(producers, (), (2,), DTYPE) for producers in operands)
        nodes.append(Node(kind, f"n{number}", (2,), DTYPE, primitive, (), operands))
    return Graph(tuple(nodes))


def _random(seed):
    """A graph of 2 to 11 nodes: acyclic, or with references to later nodes and to the node itself; at times losses."""
    rng = np.random.default_rng(seed)
    size, most, cyclic = rng.integers(2, 12), rng.integers(1, 5), rng.random() < 0.6
    reads = []
    for number in range(size):
        known = size if cyclic else number
        count = min(rng.integers(0, most + 1), known)
        chosen = [int(p) for p in rng.choice(known, count, replace=False)] if count else []
        # Now and then several producers in one operand, or one producer in two.
        operands = [tuple(chosen[:2]), *((p,) for p in chosen[2:])] if rng.random() < 0.3 else [(p,) for p in chosen]
        reads.append([o for o in operands if o] + ([(chosen[0],)] if chosen and rng.random() < 0.2 else []))
    used = {p for operands in reads for o in operands for p in o}
    return _graph(reads, [n for n in range(size) if n not in used and reads[n] and rng.random() < 0.7])


def _fewest(graph):
    """Brute force: over all colourings, the fewest producers that have a consumer of their colour."""
    size = len(graph.nodes)
    colours = np.arange(2**size)[:, None] >> np.arange(size) & 1
    needs = np.zeros(colours.shape, bool)
    for number, node in enumerate(graph.nodes):
        for p in node.producers():
            needs[:, p] |= colours[:, p] == colours[:, number]
    return int(needs.sum(1).min())


def _check(graph, made):
    """Proper sides and layers, and the old graph with an identity exactly on the edges that need one."""
    side = {n: s for s in (0, 1) for n in made.sides[s]}
    assert sorted(side) == list(range(len(made.nodes)))
    assert all(side[p] != side[n] for n, node in enumerate(made.nodes) for p in node.producers())
    losses = made.numbers("loss")
    assert not losses or side[losses[0]] == 0
    assert sorted(n for layer in made.layers for n in layer) == list(range(len(made.nodes)))
    assert all(len({side[n] for n in layer}) == 1 for layer in made.layers)
    old = [n for n in range(len(made.nodes)) if n not in made.identities]
    assert len(old) == len(graph.nodes)
    for number in made.identities:
        assert made.nodes[number].name == f"identity({made.nodes[number - 1].name})"
        assert made.nodes[number].producers() == [number - 1]
        assert made.nodes[number].primitive is rules.identity_p
        assert made.consumers[number], "an identity that nobody reads"
    for number, node in enumerate(graph.nodes):
        new = made.nodes[old[number]]
        assert (new.kind, new.name) == (node.kind, node.name)
        for before, after in zip(node.operands, new.operands, strict=True):
            for p, q in zip(before.producers, after.producers, strict=True):
                assert q == old[p] + (side[old[p]] == side[old[number]])


@pytest.mark.parametrize("seeds", [range(start, start + 100) for start in range(0, 500, 100)], ids=str)
def test_as_few_identities_as_brute_force(seeds):
    counts = set()
    for graph in map(_random, seeds):
        made = make_bipartite(graph)
        assert len(made.identities) == _fewest(graph)
        assert made.proven
        _check(graph, made)
        assert make_bipartite(made) is made
        counts.add(len(made.identities))
    assert counts >= {0, 1, 2, 3}


def test_the_smallest_hitting_set_is_that_of_brute_force():
    """Families of 1 to 20 sets of 1 to 5 of 11 producers, whatever the same search has met before."""
    rng = np.random.default_rng(0)
    search = bipartite._Search()
    for _ in range(400):
        least = rng.integers(1, 5)
        sets = [
            frozenset(map(int, rng.choice(11, rng.integers(least, 6), replace=False)))
            for _ in range(rng.integers(1, 21))
        ]
        bits = [sum(1 << p for p in s) for s in sets]
        smallest = min((k for k in range(2**11) if all(k & s for s in bits)), key=int.bit_count).bit_count()
        found = search.smallest(sets)
        assert len(found) == smallest
        assert all(found & s for s in sets)
    assert search.steps <= bipartite.LIMIT


@pytest.mark.parametrize("above", [0, 1])
def test_what_is_cut_off_takes_the_colour_that_reroutes_the_fewest_edges(above):
    """Node 1 reads itself and nodes 2 and 3 read it, which are one or two steps from the loss."""
    graph = _graph([[], [(0,), (1,)], [(1,)], [(1,)], [(2,), (3,)], *[[(4,)]] * above], [4 + above])
    made = make_bipartite(graph)
    _check(graph, made)
    assert [n for n, _ in made.consumers[made.identities[0]]] == [1]


def test_a_node_that_reads_itself_reads_its_identity():
    graph = _graph([[], [(0,), (1,)]])
    made = make_bipartite(graph)
    _check(graph, made)
    assert made.identities == (2,)
    assert made.nodes[1].producers() == [0, 2]


def test_one_identity_serves_all_consumers_that_need_it():
    """Two triangles at node 1."""
    graph = _graph([[], [(0,)], [(1,)], [(1,), (2,)], [(1,)], [(1,), (4,)]])
    made = make_bipartite(graph)
    _check(graph, made)
    assert made.identities == (2,)
    assert len(made.consumers[2]) == 2


def _chain(layers, block):
    """Layers of a network from node 0; ``block(add, hidden)`` adds nodes and returns the new hidden one."""
    reads = [[]]

    def add(*producers):
        reads.append([(p,) for p in producers])
        return len(reads) - 1

    hidden = [0]
    for _ in range(layers):
        hidden.append(block(add, hidden))
    return _graph(reads)


def _residual(add, hidden):
    """Add a residual block, h + V relu(W h)."""
    return add(hidden[-1], add(add(add(hidden[-1], add())), add()))


def _dense(add, hidden):
    """Add the ReLU of a sum of products, one for every earlier layer."""
    total, *others = (add(h, add()) for h in hidden)
    for other in others[:-1]:
        total = add(total, other)
    return add(total, *others[-1:])


def _concatenated(add, hidden):
    """Add a DenseNet layer, V relu(W [all earlier])."""
    return add(add(add(*hidden), add()), add())


CHAINS = {
    # Every block holds an odd cycle and no two of these share a producer.
    "residual": (_residual, 50, 50),
    "dense": (_dense, 10, 8),
    "concatenated": (_concatenated, 48, 47),
    # Of three nodes two read the first and one of them the other: at most one may do without an identity.
    "all earlier": (lambda add, hidden: add(*hidden), 30, 29),
    "three earlier": (lambda add, hidden: add(*hidden[-3:]), 60, 40),
}


@pytest.mark.parametrize("name", CHAINS)
def test_deep_networks_are_solved_to_the_proven_minimum_in_no_time(name):
    block, layers, expected = CHAINS[name]
    graph = _chain(layers, block)
    start = time.process_time()
    made = make_bipartite(graph)
    assert time.process_time() - start < 2
    assert made.proven
    assert len(made.identities) == expected
    _check(graph, made)
    assert "proven fewest" in pjax.Graph.of(made).summary()


def test_at_the_search_limit_the_fewest_found_are_used_and_the_graph_says_so(monkeypatch):
    monkeypatch.setattr(bipartite, "LIMIT", 0)
    for graph in (_chain(8, _dense), _chain(30, _residual)):
        made = make_bipartite.__wrapped__(graph)
        _check(graph, made)
        assert not made.proven
        assert "fewest found within the search limit" in pjax.Graph.of(made).summary()


def test_an_odd_cycle_without_identity_is_an_error():
    with pytest.raises(ValueError, match="odd cycle"):
        _ = _graph([[], [(0,), (1,)]]).sides


def _tables():
    graphs = [*map(_random, range(60)), _chain(6, _dense), _chain(20, _residual)]
    return "\n".join(str(make_bipartite(graph)) for graph in graphs)


def test_the_same_graph_in_every_process():
    code = "from tests.core.test_bipartite import _tables; print(_tables())"
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
        assert done.stdout.decode().rstrip("\n") == _tables()


def _even(h, p, i):
    return h + jnp.maximum(h @ p[f"w{i}"] + p[f"b{i}"], 0)


def _odd(h, p, i):
    return h + jnp.maximum(h @ p[f"w{i}"] + p[f"b{i}"], 0) @ p[f"v{i}"]


@pytest.fixture(params=[(_even, 0), (_odd, 3)], ids=["h + relu(h W + b)", "h + relu(h W + b) V"])
def network(request):
    """Residual network of three blocks, its parameters, and the number of identities that it needs."""
    block, expected = request.param
    x, y = blobs(32, 12, 5)
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def weight(*shape):
        return jax.random.normal(next(keys), shape, x.dtype) / shape[0] ** 0.5

    start = {"in": weight(12, 8), "out": weight(8, 5)}
    for i in range(3):
        start |= {f"w{i}": weight(8, 8), f"b{i}": jnp.zeros((1, 8), x.dtype)}
        start |= {f"v{i}": weight(8, 8)} if block is _odd else {}

    def loss_fn(p):
        h = x @ p["in"]
        for i in range(3):
            h = block(h, p, i)
        return nn.cross_entropy(h @ p["out"], y)

    return loss_fn, start, expected


def test_the_summary_says_where_the_identities_are(network):
    loss_fn, start, expected = network
    graph = pjax.trace(loss_fn, start)
    assert len(graph.identities) == expected
    assert graph.proven
    text = graph.summary()
    assert f"(Theorem 4): {expected}, proven fewest" in text
    assert text.count("\n  identity(") == expected
    for number in graph.identities:
        (source,) = graph.nodes[number].producers()
        assert f"(node {number}) between {graph.nodes[source].name} (node {source}) and " in text


@pytest.mark.matrix
@pytest.mark.parametrize(
    "method", [optim.AlternatingProjections, optim.CyclicProjections, optim.DouglasRachford], ids=lambda m: m.__name__
)
def test_residual_networks_train(network, method):
    loss_fn, params, _ = network
    losses = []
    for _ in range(8):
        params, loss = method(30).update(loss_fn, params)
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]
    assert all(b < a for a, b in itertools.pairwise(losses))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", [optim.AlternatingProjections, optim.CyclicProjections], ids=lambda m: m.__name__)
def test_consensus_equals_edges_beside_identities(network, method):
    loss_fn, start, _ = network
    consensus, edges = (method(20, representation=r).update(loss_fn, start).params for r in ("consensus", "edges"))
    assert relative_error(consensus, edges, start) < 1e-5
    for k in start:
        np.testing.assert_allclose(consensus[k], edges[k], rtol=1e-5, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_history_equals_edges_beside_identities(network):
    loss_fn, start, _ = network
    history, edges = (
        optim.DouglasRachford(6, representation=r, window=7).update(loss_fn, start).params for r in ("history", "edges")
    )
    assert relative_error(history, edges, start) < 1e-5


def test_scalar_edges_are_counted_as_in_the_paper():
    x, y = jnp.ones((4, 3)), jnp.array([0, 1, 0, 1])
    params = {"w": jnp.ones((3, 5)), "b": jnp.ones((1, 5)), "v": jnp.ones((5, 2))}
    graph = pjax.trace(lambda p: nn.cross_entropy(jnp.maximum(x @ p["w"] + p["b"], 0) @ p["v"], y), params)
    # Every output of a dot product has its own copies of both vectors; the loss reads logits and labels.
    assert graph.edges == 2 * 3 * (4 * 5) + 2 * (4 * 5) + 2 * 5 * (4 * 2) + 2 * (4 * 2)
    assert "scalar edges, which representation 'edges' keeps: 256" in graph.summary()
    square = pjax.trace(lambda w: nn.cross_entropy(w * w, y), jnp.ones((4, 2)))
    assert square.edges == 2 * 8 + 2 * 8
