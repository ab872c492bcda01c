"""Recurrence: all steps of lax.scan at once give what the unrolled network gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import pjax
from pjax import nn, optim
from tests.core.networks import RNN, initial, sentences

AP, CP, DR = optim.AlternatingProjections, optim.CyclicProjections, optim.DouglasRachford
TIME, BATCH, WIDTH, CLASSES, STEPS = 3, 4, 4, 3, 6
METHODS = {
    "AP": (AP, [{"representation": "consensus"}, {"representation": "edges"}]),
    "CP": (CP, [{"representation": "consensus"}, {"representation": "edges"}]),
    "DR": (DR, [{"representation": "edges"}, {"representation": "history", "window": STEPS + 1}]),
}


def unrolled(step, carry, xs, length=None, reverse=False):
    """``lax.scan`` as a Python loop."""
    length = len(jax.tree.leaves(xs)[0]) if length is None else length
    ys = [None] * length
    for t in reversed(range(length)) if reverse else range(length):
        carry, ys[t] = step(carry, jax.tree.map(lambda a, t=t: a[t], xs))
    return carry, jax.tree.map(lambda *a: jnp.stack(a), *ys)


def data():
    rng = np.random.default_rng(0)
    x, h = jnp.asarray(rng.normal(size=(TIME, BATCH, WIDTH))), jnp.asarray(rng.normal(size=(BATCH, WIDTH)))
    shapes = {"u": (WIDTH, WIDTH), "w": (WIDTH, WIDTH), "o": (WIDTH, CLASSES), "a": (1, WIDTH), "b": (1, WIDTH)}
    params = {k: jnp.asarray(rng.normal(size=s) / s[0] ** 0.5) for k, s in shapes.items()}
    return x, jnp.asarray(rng.integers(CLASSES, size=(TIME, BATCH))), h, params


def _next(p, h, x):
    return jax.nn.relu(x @ p["u"] + h @ p["w"])


def plain(scan, p, x, y, h):
    def step(h, x):
        h = _next(p, h, x)
        return h, h @ p["o"]

    return nn.cross_entropy(scan(step, h, x)[1], y)


def backwards(scan, p, x, y, h):
    return plain(lambda *args: scan(*args, reverse=True), p, x, y, h)


def learned_start(scan, p, x, y, h):
    return plain(scan, p, x, y, jnp.broadcast_to(p["a"], h.shape))


def passed_through(scan, p, x, y, h):
    """A carry that every step hands on as it is."""

    def step(carry, x):
        h, shift = carry
        h = jax.nn.relu(x @ p["u"] + h @ p["w"] + shift)
        return (h, shift), h @ p["o"]

    return nn.cross_entropy(scan(step, (h, jnp.broadcast_to(p["a"], h.shape)), x)[1], y)


def positions(scan, p, x, y, h):
    """A constant carry, a step counter, of which an embedding of the position is computed."""

    def step(carry, x):
        h, t = carry
        position = jnp.broadcast_to(jnp.sin(t * jnp.arange(1.0, WIDTH + 1)), h.shape)
        h = jax.nn.relu(x @ p["u"] + h @ p["w"] + position)
        return (h, t + 1), h @ p["o"]

    return nn.cross_entropy(scan(step, (h, jnp.zeros((), h.dtype)), x)[1], y)


def counted_down(scan, p, x, y, h):
    """The same counter in time that runs backwards."""
    return positions(lambda *args: scan(*args, reverse=True), p, x, y, h)


def without_inputs(scan, p, x, y, h):
    def step(h, _):
        h = jax.nn.relu(h @ p["w"] + jnp.broadcast_to(p["a"], h.shape))
        return h, h @ p["o"]

    return nn.cross_entropy(scan(step, h, None, length=len(x))[1], y)


def two_behind(scan, p, x, y, h):
    """Two carries: the state and that of the step before."""

    def step(carry, x):
        old, h = carry
        return (h, _next(p, old, x)), h @ p["o"]

    start = jnp.broadcast_to(p["a"], h.shape), jnp.broadcast_to(p["b"], h.shape)
    return nn.cross_entropy(scan(step, start, x)[1], y)


def nested(scan, p, x, y, h):
    def outer(h, x):
        h = _next(p, h, x)
        h, _ = scan(lambda g, _: (jax.nn.relu(g @ p["w"]), None), h, None, length=2)
        return h, h @ p["o"]

    return nn.cross_entropy(scan(outer, h, x)[1], y)


def partly_unused(scan, p, x, y, h):
    """Outputs that nobody reads, and losses on the second step alone."""

    def step(h, x):
        h = _next(p, h, x)
        return h, (h @ p["o"], jnp.sin(h), 2 * h)

    return nn.cross_entropy(scan(step, h, x)[1][0][1:2], y[1:2])


def losses_inside(scan, p, x, y, h, *, reverse=False):
    def step(h, inputs):
        x, y = inputs
        h = _next(p, h, x)
        return h, nn.cross_entropy(h @ p["o"], jax.nn.one_hot(y, CLASSES, dtype=h.dtype))

    if scan is lax.scan:
        return scan(step, h, (x, y), reverse=reverse)[1]
    losses = []
    for t in reversed(range(TIME)) if reverse else range(TIME):
        h, loss = step(h, (x[t], y[t]))
        losses.append(loss)
    return losses


def losses_backwards(*args):
    return losses_inside(*args, reverse=True)


def many_to_one(scan, p, x, y, h):
    return nn.cross_entropy(scan(lambda h, x: (_next(p, h, x), None), h, x)[0] @ p["o"], y[0])


def indexed(scan, p, x, y, h):
    """The state is read at places known while tracing, and the last step's elsewhere by nobody."""

    def step(h, x):
        h = _next(p, h, x)
        return h, h[:, jnp.array([0, 2, 2])] @ p["o"][:3]

    return nn.cross_entropy(scan(step, h, x)[1], y)


def indexed_by_step(scan, p, x, y, h):
    """Every step reads the state at places of its own, also before it is the next one."""

    def step(h, inputs):
        x, places = inputs
        h = _next(p, jnp.take(h, places, 1), x)
        return h, h @ p["o"]

    places = jnp.array([[0, 1, 2, 2], [3, 3, 3, 1], [1, 0, 1, 0]])
    return nn.cross_entropy(scan(step, h, (x, places))[1][1:], y[1:])


CASES = [
    plain,
    backwards,
    learned_start,
    passed_through,
    positions,
    counted_down,
    without_inputs,
    two_behind,
    nested,
    partly_unused,
    losses_inside,
    losses_backwards,
    many_to_one,
    indexed,
    indexed_by_step,
]


@pytest.mark.matrix
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES, ids=lambda f: f.__name__)
def test_scan_is_the_unrolled_network(case, method):
    """In every representation; the unrolled one is held by its edges.

    Cyclic projections visit all steps of a recurrence at once. Unrolled, they visit those first that are nearer to
    a loss, which is another order where some steps are farther from any loss than others: edges are scanned there.
    """
    x, y, h, start = data()
    make, representations = METHODS[method]
    oracle = lax.scan if method == "CP" and case in (nested, many_to_one) else unrolled
    expected, loss = make(STEPS, representation="edges").update(lambda p: case(oracle, p, x, y, h), start)
    assert max(float(jnp.abs(expected[k] - start[k]).max()) for k in start) > 0.1
    for options in representations:
        found = make(STEPS, **options).update(lambda p: case(lax.scan, p, x, y, h), start)
        for k in start:
            np.testing.assert_allclose(found.params[k], expected[k], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.loss, loss, rtol=1e-12)


def shift_register(scan, p, x, y, h):
    """Carries that are only moved: the input of two steps ago."""

    def step(carry, x):
        first, second = carry
        return (x @ p["u"], first), jax.nn.relu(second + x @ p["u"]) @ p["o"]

    return nn.margin_loss(scan(step, (h, h), x)[1], y)


def rotation(scan, p, x, y, h):
    """Three carries that change places and depend on nothing else."""

    def step(carry, x):
        one, two, three = carry
        return (two, three, one), jax.nn.relu(x @ p["u"] + one) @ p["o"]

    start = jnp.broadcast_to(p["a"], h.shape), jnp.broadcast_to(p["b"], h.shape), h
    return nn.margin_loss(scan(step, start, x)[1], y)


def swap(scan, p, x, y, h):
    """Two carries that change places."""

    def step(carry, x):
        one, two = carry
        return (two, one), jax.nn.relu(x @ p["u"] + one) @ p["o"]

    return nn.margin_loss(scan(step, (jnp.broadcast_to(p["a"], h.shape), jnp.broadcast_to(p["b"], h.shape)), x)[1], y)


def masked(scan, p, x, y, h):
    """Scaled states, as of a dropout that all steps share: every step adds three constraints, an odd number."""

    def step(h, x):
        h = _next(p, h, x) * jnp.array([[1.0, 0.5, 2.0, 1.0]])
        return h, h @ p["o"]

    return nn.margin_loss(scan(step, h, x)[1], y)


@pytest.mark.matrix
@pytest.mark.parametrize(("case", "identities"), [(shift_register, 0), (rotation, 2), (swap, 2), (masked, 1)])
@pytest.mark.parametrize("make", [AP, DR], ids=["AP", "DR"])
def test_identities_on_the_circle_of_a_recurrence_become_feasible(case, identities, make):
    """An identity in every step makes the iterates others than unrolled; both reach the constraints."""
    x, y, h, start = data()
    x, y, h = x[:, :1], y[:, :1], h[:1]
    graph = pjax.trace(lambda p: case(lax.scan, p, x, y, h), start)
    assert sum(n.name.startswith("identity") for n in graph.nodes) == identities
    first = case(lax.scan, start, x, y, h)
    np.testing.assert_allclose(first, case(unrolled, start, x, y, h), rtol=1e-5)
    params = start
    for _ in range(8):
        params, _ = make(100).update(lambda p: case(lax.scan, p, x, y, h), params)
    assert float(case(unrolled, params, x, y, h).mean()) < 0.01 * float(first.mean())
    again = make(10).update(lambda p: case(unrolled, p, x, y, h), params).params
    assert max(float(jnp.abs(again[k] - params[k]).max()) for k in params) < 0.02


@pytest.mark.matrix
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_papers_cell_scanned_is_the_cell_unrolled(method, reverse):
    model = RNN(tokens=5, features=3, hidden=4, state=3)
    x, y = sentences(TIME, BATCH, 5)
    start = initial(model, jnp.float64)
    make, representations = METHODS[method]

    def loss_fn(p, *, unroll):
        logits = model.apply(p, x, reverse, unroll)
        return nn.cross_entropy(logits, y)

    expected, _ = make(STEPS, representation="edges").update(lambda p: loss_fn(p, unroll=True), start)
    for options in representations:
        found, _ = make(STEPS, **options).update(lambda p: loss_fn(p, unroll=False), start)
        for k in start:
            np.testing.assert_allclose(found[k], expected[k], rtol=1e-9, atol=1e-9)


def test_an_error_inside_a_step_names_the_users_line():
    x, y, h, start = data()

    def step(h, x):
        h = jnp.tanh(x @ start["u"] + h)
        return h, h

    line = step.__code__.co_firstlineno + 1
    with pytest.raises(TypeError, match=rf"tanh at \S*test_recurrence.py:{line}\b.* has no projection rule"):
        pjax.trace(lambda p: nn.cross_entropy(lax.scan(step, h @ p["w"], x)[1] @ p["o"], y), start)


def test_no_step_is_refused():
    x, y, h, start = data()
    with pytest.raises(TypeError, match=r"scan at \S*test_recurrence.py:\d+.* has no step; leave it out"):
        pjax.trace(
            lambda p: nn.cross_entropy(lax.scan(lambda h, x: (_next(p, h, x), None), h, x[:0])[0] @ p["o"], y[0]), start
        )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("method", "representation"), [(AP, "edges"), (AP, "consensus"), (DR, "edges"), (DR, "history")]
)
def test_what_only_dropped_copies_read_is_not_in_the_graph(method, representation):
    """A node whose whole value is stacked with others and sliced away counts in no mean."""
    x, y, _, start = data()

    def loss_fn(p, steps):
        outputs = [jax.nn.relu(x[t] @ p["u"]) @ p["o"] for t in range(steps)]
        return nn.cross_entropy(jnp.stack(outputs)[:2], y[:2])

    method = method(STEPS, representation=representation, **({"window": STEPS + 1} if method is DR else {}))
    a, b = (method.update(lambda p, n=n: loss_fn(p, n), start).params for n in (2, 3))
    for k in start:
        np.testing.assert_allclose(a[k], b[k], rtol=1e-9)


def test_a_counter_carried_through_a_nested_scan_is_no_constraint():
    """Time depends on no parameter, also where an inner recurrence counts it; any function may take it."""
    x, y = jnp.ones((3, 2, 4)), jnp.zeros(2, int)
    params = {"w": 0.3 * jnp.ones((4, 4)), "e": jnp.ones((9, 4)), "out": jnp.eye(4)}

    def loss_fn(p):
        def inner(carry, _):
            h, t = carry
            return (jax.nn.relu(h @ p["w"] + p["e"][t][None] * jnp.sin(t)), t + 1), None

        def outer(carry, x):
            carry, _ = jax.lax.scan(inner, carry, None, length=2)
            return (carry[0] + x, carry[1]), None

        (h, _), _ = jax.lax.scan(outer, (jnp.zeros((2, 4)), 0), x)
        return nn.cross_entropy(h @ p["out"], y)

    graph = pjax.trace(loss_fn, params)
    names = {graph.nodes[n].name for n in graph.numbers("constraint")}
    assert names == {"dot_general", "scale", "sum_relu", "add", "identity(sum_relu)"}, names
    assert np.isfinite(optim.AlternatingProjections(3).update(loss_fn, params).loss)


def test_what_is_only_printed_needs_no_rule():
    """Beside a counter, which is evaluated all the same."""
    x, y, h, start = data()

    @jax.jit
    def show(h):
        jax.debug.print("{}", jnp.tanh(h))
        return jnp.cos(h)

    def step(carry, x):
        h, t = carry
        h = _next(start, h, x + jnp.sin(t))
        jax.debug.print("{} {}", jnp.tanh(h), t)
        show(h)
        return (h @ start["w"], t + 1), h

    def loss_fn(p):
        hidden = lax.scan(step, (h @ p["w"], 0), x)[1]
        return nn.cross_entropy(hidden @ p["o"], y)

    graph = pjax.trace(loss_fn, start)
    assert "sin" not in {node.name for node in graph.nodes}
    loss = float(AP(3).update(loss_fn, start).loss)
    np.testing.assert_allclose(loss, loss_fn(start).mean(), rtol=1e-5)
