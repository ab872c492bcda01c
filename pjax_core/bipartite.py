"""Making a constraint graph two-colourable with the fewest identities (Theorem 4).

Let K be a set of producers and give each an identity. An edge out of K may then go directly or through the
identity, so it joins nodes of any two colours; every other edge joins nodes of different colours. So the
graph becomes bipartite if and only if K meets the producers of every odd cycle: a smallest hitting set.
"""

import functools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator

from pjax_core import rules
from pjax_core.graph import Graph, Node, Operand, distances

# Producers of cycles that the search looks at, a second or two. A nested call has at least two fewer of them, so calls
# nest no deeper than the square root, which is within Python's limit.
LIMIT = 400_000

Cycle = frozenset[int]  # the producers on it


@functools.lru_cache(maxsize=64)  # every update traces anew, mostly to the same graph
def make_bipartite(graph: Graph) -> Graph:
    """Insert the fewest identities that make the graph bipartite, each right after its producer.

    Exact, unless the search reaches ``LIMIT``: then the last choices are greedy and the graph says so
    (``Graph.proven``). One identity serves all consumers of its producer that need it. A node may read later nodes
    or itself, as recurrence does.
    """
    search, known, cut = _Search(), set[Cycle](), frozenset[int]()
    while missed := set(_odd_cycles(graph, cut)):
        # The smallest set that meets some of the cycles may miss others: these are known from then on.
        while missed:
            known |= missed
            cut |= search.smallest(missed)
            missed = set(_odd_cycles(graph, cut))
        cut = search.smallest(known)
    if not cut:
        return graph
    colour = {n: far % 2 for n, far in distances(graph, cut).items()}
    served = sorted(p for p in cut if any(colour[n] == colour[p] for n, _ in graph.consumers[p]))
    # All numbers before any node: node n becomes number[n] and its identity, if any, follows.
    number = [n + sum(p < n for p in served) for n in range(len(graph.nodes))]
    nodes: list[Node] = []
    for n, node in enumerate(graph.nodes):
        nodes.append(node.reading({p: number[p] + (colour[p] == colour[n]) for p in node.producers()}))
        if n in served:
            name, reads = f"identity({node.name})", Operand((number[n],), (), node.shape, node.dtype)
            nodes.append(Node("constraint", name, node.shape, node.dtype, rules.identity_p, (), (reads,)))
    return Graph(tuple(nodes), tuple(number[p] + 1 for p in served), search.steps <= LIMIT)


def _odd_cycles(graph: Graph, cut: Collection[int]) -> Iterator[Cycle]:
    """Yield odd cycles that the cut does not meet, if there are any.

    One for every edge whose ends are equally far from where the search in breadth starts: the ways back from both
    ends meet there, or before.
    """
    far = distances(graph, cut)
    # Of several ways back the first neighbour's: what a node reads comes first, so that ways share producers.
    nearer = {n: (m, p) for n in far for m, p in reversed(graph.neighbours[n]) if p not in cut and far[m] < far[n]}
    for n, node in enumerate(graph.nodes):
        for p in node.producers():
            if p not in cut and far[p] == far[n]:
                ends, cycle = {n, p}, {p}
                while len(ends) > 1:
                    cycle.update(nearer[end][1] for end in ends)
                    ends = {nearer[end][0] for end in ends}
                yield frozenset(cycle)


class _Search:
    """Search for smallest sets of producers that meet every one of some cycles.

    It takes or leaves one producer after another. The cycles that remain fall into parts without a common producer,
    such as the blocks of a residual network, and each part is solved once, whatever choices lead to it.
    """

    def __init__(self) -> None:
        self.steps = 0  # beyond LIMIT, choices were greedy
        self._solved: dict[frozenset[Cycle], frozenset[int]] = {}

    def smallest(self, cycles: Collection[Cycle]) -> frozenset[int]:
        """Return the smallest set that meets every one of the cycles; beyond ``LIMIT`` a small one."""
        chosen, parts = frozenset[int](), _parts(cycles)
        while parts:
            part = parts.pop()
            if part not in self._solved:
                self.steps += sum(map(len, part))
                # The producer on the most cycles, of equals the first node's.
                [(producer, _)] = Counter(sorted(p for cycle in part for p in cycle)).most_common(1)
                others = [cycle for cycle in part if producer not in cycle]
                if self.steps > LIMIT:
                    chosen |= {producer}
                    parts += _parts(others)
                    continue
                found = self.smallest(others) | {producer}
                if others:
                    found = min(found, self.smallest([cycle - {producer} for cycle in part]), key=len)
                self._solved[part] = found
            chosen |= self._solved[part]
        return chosen


def _parts(cycles: Collection[Cycle]) -> list[frozenset[Cycle]]:
    """Group cycles that share producers, directly or through others, without what cannot matter to a smallest set.

    Producers go whose cycles all hold another one, of equals the last node's, then cycles that contain another one.
    """
    shared: dict[int, Cycle] = {}  # producer -> what all of its cycles hold
    for cycle in cycles:
        for p in cycle:
            shared[p] = shared.get(p, cycle) & cycle
    dropped = {p for p, others in shared.items() if any(p not in shared[q] or q < p for q in others)}
    kept: defaultdict[int, list[Cycle]] = defaultdict(list)  # by first producer, which any cycle around it holds
    parts: list[frozenset[int]] = []
    for cycle in sorted({c - dropped for c in cycles}, key=len):
        if not any(k <= cycle for p in cycle for k in kept[p]):
            kept[min(cycle)].append(cycle)
            touching = [part for part in parts if not part.isdisjoint(cycle)]
            parts = [*(part for part in parts if part.isdisjoint(cycle)), cycle.union(*touching)]
    return [frozenset(cycle for p in part for cycle in kept[p]) for part in parts]
