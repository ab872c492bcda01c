"""Making a constraint graph two-colourable with the fewest identities (Theorem 4).

Let K be a set of producers and give each an identity. An edge out of K may then go directly or through the
identity, so it joins nodes of any two colours; every other edge joins nodes of different colours. So the
graph becomes bipartite if and only if K meets the producers of every odd cycle: a smallest hitting set. Odd
cycles are found as they are needed, and sets of producers are the bits of integers.
"""

import dataclasses
import functools
import itertools
import operator
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence

from pjax_core import rules
from pjax_core.graph import Graph, Node, Operand, colourings

LIMIT = 30_000_000  # elementary steps of the search, some seconds
_DEPTH = 200  # nested choices, far below Python's limit of nested calls


@functools.lru_cache(maxsize=64)  # every update traces anew, mostly to the same graph
def make_bipartite(graph: Graph) -> Graph:
    """Insert the fewest identities that make the graph bipartite, each right after its producer.

    Exact, unless the search reaches ``LIMIT``: then the fewest that it found are used and the graph says so
    (``Graph.proven``). One identity serves all consumers of its producer that need it; what colouring is left
    to choose is chosen so that few do (greedy). A node may read later nodes or itself, as recurrence does.
    """
    cut, proven = _Search(graph).fewest()
    if not cut:
        return graph
    colour: dict[int, int] = {}
    for component in colourings(graph, cut):
        cuts = ((n, m) for n in component for m, p in graph.neighbours[n] if p in cut and m in colour)
        flip = sum(1 if component[n] == colour[m] else -1 for n, m in cuts) > 0
        colour.update({n: c ^ flip for n, c in component.items()})
    rerouted = {(p, n) for p in cut for n, _ in graph.consumers[p] if colour[p] == colour[n]}
    served = sorted({p for p, _ in rerouted})
    # All numbers before any node: node n becomes number[n] and its identity, if any, follows.
    number = list(itertools.accumulate((1 + (n in served) for n in range(len(graph.nodes))), initial=0))
    nodes: list[Node] = []
    for n, node in enumerate(graph.nodes):
        operands = [
            dataclasses.replace(o, producers=tuple(number[p] + ((p, n) in rerouted) for p in o.producers))
            for o in node.operands
        ]
        nodes.append(dataclasses.replace(node, operands=tuple(operands)))
        if n in served:
            name, shape, dtype = f"identity({node.name})", node.shape, node.dtype
            reads = Operand((number[n],), (), shape, dtype)
            nodes.append(Node("constraint", name, shape, dtype, rules.identity_p, (), (reads,)))
    return Graph(tuple(nodes), tuple(number[p] + 1 for p in served), proven)


class _Search:
    """The smallest set of producers that meets every odd cycle: implicit hitting set, branch and bound.

    A smallest set that meets the cycles known so far is a lower bound; it either meets all cycles or shows
    new ones. The known cycles fall into parts without a common producer (the blocks of a residual network),
    and each part is solved once.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._steps, self._proven = 0, True
        self._solved: dict[tuple[int, ...], tuple[int, int]] = {}  # part -> lower bound, smallest set or 0

    def fewest(self) -> tuple[list[int], bool]:
        """Return the producers, and whether no fewer will do."""
        known: dict[int, None] = {}
        best: int | None = None
        found: int | None = 0
        while found is not None:
            candidate, before = found, len(known)
            while walks := list(self._odd_walks(candidate)):
                known.update(dict.fromkeys(walks))
                candidate |= self._greedy(walks)
            for bit in reversed([*_bits(candidate)]):
                walks = list(self._odd_walks(candidate & ~bit))
                known.update(dict.fromkeys(walks))
                if not walks:
                    candidate &= ~bit
            best = candidate if best is None else min(best, candidate, key=int.bit_count)
            # A set that is merely small for the known cycles shows new ones as well, and at once.
            found = self._greedy(list(known))
            if len(known) == before or found.bit_count() >= best.bit_count() or self._steps > LIMIT:
                found = self._hit(list(known), best.bit_count())
        return _numbers(best or 0), self._proven

    def _odd_walks(self, cut: int) -> Iterator[int]:
        """Producers of short closed walks of odd length outside the cut; each holds an odd cycle.

        One for every edge whose ends the breadth-first search gives one colour; so none if all is bipartite.
        """
        left_out = set(_numbers(cut))
        colour = {n: c for component in colourings(self._graph, left_out) for n, c in component.items()}
        self._steps += 8 * len(colour)
        for n, node in enumerate(self._graph.nodes):
            for p in node.producers():
                if p in left_out or colour[p] != colour[n]:
                    continue
                # From p to n in an even number of steps: breadth-first over (node, parity).
                found = {(p, 0): 1 << p}
                queue = deque(found)
                while (n, 0) not in found:
                    at, parity = queue.popleft()
                    for other, producer in self._graph.neighbours[at]:
                        state = other, 1 - parity
                        if producer not in left_out and state not in found:
                            found[state] = found[at, parity] | 1 << producer
                            queue.append(state)
                self._steps += 8 * len(found)
                yield found[n, 0]

    def _hit(self, sets: Sequence[int], limit: int, depth: int = 0) -> int | None:
        """Return the smallest set of bits that meets every one of ``sets`` if it has fewer than ``limit``."""
        if self._steps > LIMIT or depth > _DEPTH:
            self._proven = False
            return None
        chosen, sets = self._reduce(sets)
        parts = _parts(sets)
        bounds = [self._solved.get(part) or (_packing(part), 0) for part in parts]
        room = limit - chosen.bit_count() - sum(bound for bound, _ in bounds)
        for part, (bound, found) in zip(parts, bounds, strict=True):
            if room <= 0:
                return None
            if not found:
                size, bit = bound + room, _commonest(part)
                for taken, rest in (bit, [s for s in part if not s & bit]), (0, [s & ~bit for s in part]):
                    more = self._hit(rest, size - taken.bit_count(), depth + 1)
                    if more is not None:
                        found = more | taken
                        size = found.bit_count()
                self._solved[part] = size, found
            if not found:
                return None
            room -= found.bit_count() - bound
            chosen |= found
        return chosen if room > 0 else None

    def _greedy(self, sets: Sequence[int]) -> int:
        """Return a small set of bits that meets every one of ``sets``."""
        chosen, sets = self._reduce(sets)
        while sets:
            bit = _commonest(sets)
            more, sets = self._reduce([s for s in sets if not s & bit])
            chosen |= bit | more
        return chosen

    def _reduce(self, sets: Sequence[int]) -> tuple[int, list[int]]:
        """Drop what cannot matter to a smallest hitting set; returns the bits that are in it for sure and the rest.

        Sets that contain another one go, and bits whose sets all share another bit, of equals the last node's.
        """
        while True:
            minimal: dict[int, list[int]] = {}  # by first bit: a set holds the first bit of its subsets
            for s in sorted(dict.fromkeys(sets), key=int.bit_count):
                if not any(k & s == k for bit in _bits(s) for k in minimal.get(bit, ())):
                    minimal.setdefault(s & -s, []).append(s)
            kept = [s for alike in minimal.values() for s in alike]
            shared: dict[int, int] = {}  # bit -> the bits that all of its sets hold
            for s in kept:
                for bit in _bits(s):
                    shared[bit] = shared.get(bit, s) & s
            self._steps += 16 * sum(map(int.bit_count, kept))
            dropped = 0
            for bit in sorted(shared, reverse=True):
                if shared[bit] & ~dropped != bit:
                    dropped |= bit
            if not dropped:
                return _union(s for s in kept if s.bit_count() == 1), [s for s in kept if s.bit_count() > 1]
            sets = [s & ~dropped for s in kept]


def _parts(sets: Sequence[int]) -> list[tuple[int, ...]]:
    """Group sets that share bits, directly or through others; the small sets first."""
    parts: list[tuple[int, list[int]]] = []  # (union, sets)
    for s in sets:
        touching = [p for p in parts if p[0] & s]
        merged = _union([s, *(p[0] for p in touching)]), [s, *(t for p in touching for t in p[1])]
        parts = [*(p for p in parts if not p[0] & s), merged]
    return [tuple(sorted(part, key=lambda s: (s.bit_count(), s))) for _, part in parts]


def _packing(sets: Sequence[int]) -> int:
    """Bound a hitting set from below by sets without a common bit, the first ones first: each needs a bit.

    All pairs among some bits (a clique) need all of these bits but one.
    """
    pairs = frozenset(s for s in sets if s.bit_count() == 2)
    free, bound = _union(sets), 0
    for s in sets:
        if s & free == s:
            clique = s
            for bit in _bits(free & ~s if s in pairs else 0):
                if all(bit | b in pairs for b in _bits(clique)):
                    clique |= bit
            free, bound = free & ~clique, bound + max(1, (clique.bit_count() - 1) * (s in pairs))
    return bound


def _commonest(sets: Sequence[int]) -> int:
    """Return the bit in the most sets, of equals the first node's."""
    counts = Counter(bit for s in sets for bit in _bits(s))
    return min(counts, key=lambda bit: (-counts[bit], bit))


def _union(sets: Iterable[int]) -> int:
    return functools.reduce(operator.or_, sets, 0)


def _bits(bits: int) -> Iterator[int]:
    """Bits of a set, the first node's first."""
    while bits:
        yield bits & -bits
        bits &= bits - 1


def _numbers(bits: int) -> list[int]:
    return [bit.bit_length() - 1 for bit in _bits(bits)]
