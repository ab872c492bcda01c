"""The paper's method, literally: one Python object per scalar node and one number per edge.

Written apart from the engine (loops, SciPy's bracketing and minimisers, sides by parity of the layer), for
networks of a few neurons. Only Section 3 and Appendix C of the paper were used.
"""

import numpy as np
import scipy.optimize

Node = tuple  # ("x", b, i), ("w", l, i, o), ("b", l, o), ("dot", l, b, o), ("relu", l, b, o), ("loss", b)


def project_dot(x, w, z):
    p, q = x @ w, x @ x + w @ w
    f = lambda t: ((1 + t * t) * p + t * q) / (1 - t * t) ** 2 - z + t  # noqa: E731
    t: float = scipy.optimize.brentq(f, -1 + 1e-12, 1 - 1e-12, xtol=1e-15)  # pyright: ignore[reportAssignmentType]
    return (x + t * w) / (1 - t * t), (w + t * x) / (1 - t * t), z - t


def project_relu(x, y):
    total, n = x.sum(), len(x)
    flat = (x - max(0, total / n), 0.0)
    lam = (y - total) / (n + 1)
    slope = (x + lam, y - lam) if (x + lam).sum() >= 0 else (x - total / n, 0.0)
    return min((flat, slope), key=lambda c: ((c[0] - x) ** 2).sum() + (c[1] - y) ** 2)


def prox(x, label, lam=5.0):
    onehot = np.eye(len(x))[label]
    softmax = lambda u: np.exp(u - u.max()) / np.exp(u - u.max()).sum()  # noqa: E731
    residual = lambda u: u - x - lam * (onehot - softmax(u))  # noqa: E731
    solution = scipy.optimize.root(residual, x, tol=1e-14)
    assert np.abs(residual(solution.x)).max() < 1e-10
    return solution.x


class ScalarNetwork:
    """A ReLU network without output bias; ``skip`` feeds every hidden layer to the output."""

    def __init__(self, x, labels, weights, biases, *, skip=False):
        self.labels = labels
        self.parents: dict[Node, list[Node]] = {}
        self.value: dict[Node, float] = {}
        batch, depth = len(x), len(biases)
        for b, i in np.ndindex(x.shape):
            self.value["x", b, i] = x[b, i]
        for layer, w in enumerate(weights):
            for i, o in np.ndindex(w.shape):
                self.value["w", layer, i, o] = w[i, o]
        for layer, bias in enumerate(biases):
            for o in range(len(bias)):
                self.value["b", layer, o] = bias[o]
        for b in range(batch):
            below = [("x", b, i) for i in range(x.shape[1])]
            hidden = []
            for layer, w in enumerate(weights):
                last = layer == depth
                inputs = hidden if last and skip else below
                below = []
                for o in range(w.shape[1]):
                    dot = ("dot", layer, b, o)
                    self.parents[dot] = [*inputs, *(("w", layer, i, o) for i in range(len(inputs)))]
                    self.value[dot] = sum(self.value[u] * self.value["w", layer, i, o] for i, u in enumerate(inputs))
                    if last:
                        below.append(dot)
                        continue
                    relu = ("relu", layer, b, o)
                    self.parents[relu] = [dot, ("b", layer, o)]
                    self.value[relu] = max(0.0, self.value[dot] + self.value["b", layer, o])
                    below.append(relu)
                hidden += below
            self.parents["loss", b] = below
        self.children: dict[Node, list[Node]] = {}
        for v, parents in self.parents.items():
            for u in parents:
                self.children.setdefault(u, []).append(v)
        self.edges = [(u, v) for v, parents in self.parents.items() for u in parents]
        self.start = {(u, v): self.value[u] for u, v in self.edges}
        self.distance = self._distances()

    def _distances(self) -> dict[Node, int]:
        distance = {v: 0 for v in self.parents if v[0] == "loss"}
        layer = list(distance)
        while layer:
            following = []
            for v in layer:
                for u in self.parents.get(v, []):
                    if u not in distance:
                        distance[u] = distance[v] + 1
                        following.append(u)
            layer = following
        return distance

    def project_node(self, v: Node, z: dict) -> dict:
        """New values of the edges at one node."""
        out = [(v, c) for c in self.children.get(v, [])]
        mean = np.mean([z[e] for e in out]) if out else None
        if v[0] == "x":
            return {e: self.value[v] for e in out}
        if v[0] in "wb":
            return {e: mean for e in out}
        into = [(u, v) for u in self.parents[v]]
        x = np.array([z[e] for e in into])
        if v[0] == "loss":
            return dict(zip(into, prox(x, self.labels[v[1]]), strict=True))
        if v[0] == "relu":
            x, y = project_relu(x, mean)
        else:
            half = len(x) // 2
            *halves, y = project_dot(x[:half], x[half:], mean)
            x = np.concatenate(halves)
        return {**dict(zip(into, x, strict=True)), **{e: y for e in out}}

    def project(self, nodes: list[Node], z: dict) -> dict:
        new = dict(z)
        for v in nodes:
            new |= self.project_node(v, z)
        return new

    def run(self, method: str, steps: int, relaxation: float = 0.5) -> dict[Node, float]:
        """Consensus of the parameters after a number of steps."""
        z = dict(self.start)
        layers = [[v for v, d in self.distance.items() if d == i] for i in range(max(self.distance.values()) + 1)]
        side_a = [v for layer in layers[0::2] for v in layer]
        side_b = [v for layer in layers[1::2] for v in layer]
        for _ in range(steps):
            if method == "ap":
                z = self.project(side_b, self.project(side_a, z))
            elif method == "cp":
                for layer in layers:
                    z = self.project(layer, z)
            else:
                x = self.project(side_a, z)
                y = self.project(side_b, {e: 2 * x[e] - z[e] for e in z})
                z = {e: z[e] + 2 * relaxation * (y[e] - x[e]) for e in z}
        return {v: float(np.mean([z[v, c] for c in self.children[v]])) for v in self.value if v[0] in "wb"}
