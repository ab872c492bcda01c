"""Methods and representations: every fast form against edges, and edges against one number per edge."""

# pyright: reportArgumentType=false

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax
from pjax import nn, optim
from pjax_core.copies import after
from tests.core.networks import (
    ARCHITECTURES,
    MLP,
    blobs,
    problem,
    relative_error,
)
from tests.core.scalar_oracle import ScalarNetwork

AP, CP, DR = optim.AlternatingProjections, optim.CyclicProjections, optim.DouglasRachford
PRESETS = {"published": pjax.PUBLISHED, "exact": pjax.EXACT}
RTOL = 1e-5
LAYOUT = ("NHWC", "HWIO", "NHWC")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("name", "method"), [("ap", AP), ("cp", CP), ("dr", DR)])
def test_edges_are_the_papers_scalar_method(name, method, skip):
    model = MLP((3, 2, 3, 2), skip=skip)
    x, y = blobs(2, 3, 2)
    params = jax.tree.map(lambda a: a.astype(x.dtype) + 0.05, model.init(jax.random.key(1)))
    ours = method(4, representation="edges").update(lambda p: nn.cross_entropy(model.apply(p, x), y), params).params
    weights = ["linears.0.weight", "linears.1.weight", "out.weight"]
    biases = ["relus.0.bias", "relus.1.bias"]
    oracle = ScalarNetwork(
        np.asarray(x), np.asarray(y), *([np.asarray(params[k]) for k in ks] for ks in (weights, biases)), skip=skip
    )
    for node, value in oracle.run(name, 4).items():
        names = weights if node[0] == "w" else biases
        np.testing.assert_allclose(ours[names[node[1]]][node[2:]], value, rtol=1e-7, atol=1e-9)


@pytest.mark.matrix
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("operators", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
class TestRepresentations:
    """Twenty steps in float64, batch 32; the tolerance is relative to how far the parameters moved."""

    @pytest.mark.parametrize("method", [AP, CP])
    def test_consensus_equals_edges(self, architecture, operators, method):
        loss_fn, start = problem(architecture)
        consensus, edges = (
            method(20, operators, representation).update(loss_fn, start).params
            for representation in ("consensus", "edges")
        )
        assert relative_error(consensus, edges, start) < RTOL
        for k in start:
            np.testing.assert_allclose(consensus[k], edges[k], rtol=RTOL, atol=1e-12)

    def test_full_history_equals_edges(self, architecture, operators):
        loss_fn, start = problem(architecture)
        history, edges = (
            DR(20, operators, representation, window=21).update(loss_fn, start).params
            for representation in ("history", "edges")
        )
        assert relative_error(history, edges, start) < RTOL
        for k in start:
            np.testing.assert_allclose(history[k], edges[k], rtol=RTOL, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_weighted_metric_is_the_same_in_all_representations():
    loss_fn, start = problem("4 layers, skip")
    weighted = pjax.Operators(weighted=True)
    a, b = (AP(10, weighted, r).update(loss_fn, start).params for r in ("consensus", "edges"))
    assert relative_error(a, b, start) < RTOL
    a, b = (DR(10, weighted, r, window=11).update(loss_fn, start).params for r in ("history", "edges"))
    assert relative_error(a, b, start) < RTOL
    plain = AP(10, pjax.EXACT).update(loss_fn, start).params
    assert relative_error(plain, a, start) > 1e-3


@pytest.mark.usefixtures("x64")
def test_consensus_over_consumers_differs_only_where_fan_outs_differ():
    per_consumer = pjax.Operators(consensus="consumers")
    for architecture, same in (("4 layers", True), ("4 layers, skip", False)):
        loss_fn, start = problem(architecture)
        error = relative_error(
            AP(5, per_consumer).update(loss_fn, start).params, AP(5).update(loss_fn, start).params, start
        )
        assert (error < 1e-9) == same


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("operators", PRESETS.values(), ids=PRESETS)
def test_an_operation_of_a_scan_is_one_consumer(operators, outside):
    """Its steps count one by one in a mean over edges, and only by consumers is an unrolled network another."""
    x, y = jax.random.normal(jax.random.key(0), (3, 8, 4)), jnp.arange(24).reshape(3, 8) % 2
    keys = jax.random.split(jax.random.key(1), 3)
    start = {k: jax.random.normal(key, s) / 2 for k, key, s in zip("vwo", keys, ((4, 6), (6, 6), (6, 2)), strict=True)}

    def cell(p, h, x):
        h = pjax.sum_relu(h @ p["w"], x @ p["v"])
        return h, h @ p["o"]

    def scanned(p):
        return jax.lax.scan(lambda h, x: cell(p, h, x), jnp.zeros((8, 6)), x)[1]

    def unrolled(p):
        h, outputs = jnp.zeros((8, 6)), []
        for step in x:
            h, output = cell(p, h, step)
            outputs.append(output)
        return jnp.stack(outputs)

    def loss_fn(p, run):
        losses = [nn.cross_entropy(run(p), y)]
        return [*losses, nn.cross_entropy(jnp.maximum(x[0] @ p["v"], 0) @ p["o"], y[0])] if outside else losses

    a, b = (AP(10, operators).update(lambda p, r=run: loss_fn(p, r), start).params for run in (scanned, unrolled))
    same = operators.consensus == "edges" or not outside
    assert (relative_error(a, b, start) < 1e-9) == same


@pytest.mark.parametrize("method", [AP(5), CP(5), DR(5)])
def test_update_works_inside_and_outside_jit(method):
    loss_fn, params = problem("1 layer")
    outside = method.update(loss_fn, params)
    inside = jax.jit(lambda p: method.update(loss_fn, p))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), outside, inside)
    assert float(outside.loss) == pytest.approx(float(loss_fn(params).mean()), rel=1e-6)


def test_new_batches_of_the_same_shape_compile_nothing(compiled):
    """Listing 1 makes a new closure for every batch."""
    model = MLP((12, 20, 5))
    params = model.init(jax.random.key(0))
    method = AP(5)
    for i in range(4):
        x, y = blobs(32, 12, 5)
        x = x + i
        params, _ = method.update(lambda p, x=x, y=y: nn.cross_entropy(model.apply(p, x), y), params)
        if i == 1:
            assert compiled, "the listener hears the first compilation"
            compiled.clear()
    assert compiled == []


REPRESENTATIONS = [
    (AP, "edges"),
    (AP, "consensus"),
    (CP, "edges"),
    (CP, "consensus"),
    (DR, "edges"),
    (DR, "history"),
    (DR, "auto"),
]


@pytest.mark.matrix
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("operators", [pjax.EXACT, pjax.PUBLISHED, pjax.Operators(weighted=True)])
@pytest.mark.parametrize(("method", "representation"), REPRESENTATIONS)
def test_outputs_that_nobody_reads_change_nothing(method, representation, operators):
    """Slicing after a product gives the parameters that slicing before it gives."""
    x, y = blobs(32, 12, 3)
    model = MLP((12, 8, 6))
    start = jax.tree.map(lambda a: a.astype(x.dtype), model.init(jax.random.key(0)))

    def hidden(p):
        return jnp.maximum(x @ p["linears.0.weight"] + p["relus.0.bias"][None], 0)

    def after(p):
        return nn.cross_entropy((hidden(p) @ p["out.weight"])[:, :3], y)

    def before(p):
        return nn.cross_entropy(hidden(p) @ p["out.weight"][:, :3], y)

    update = method(8, operators, representation, **({"window": 9} if method is DR else {})).update
    first, second = update(after, start).params, update(before, start).params
    for k in start:
        np.testing.assert_allclose(first[k], second[k], rtol=1e-7, atol=1e-9)
    np.testing.assert_array_equal(first["out.weight"][:, 3:], start["out.weight"][:, 3:])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("method", "representation"), REPRESENTATIONS)
def test_two_losses_on_different_sides_both_act(method, representation):
    x, y = blobs(32, 12, 3)
    start = {"w": jax.random.normal(jax.random.key(0), (12, 3), x.dtype) / 3, "b": jnp.zeros((1, 3), x.dtype)}

    def loss_fn(p, first, second):
        h = x @ p["w"] + p["b"]
        return nn.cross_entropy(jnp.maximum(h, 0), first), nn.cross_entropy(h, second)

    graph = pjax.trace(lambda p: loss_fn(p, y, y), start)
    for layer in graph.layers:
        assert not any(p in layer for n in layer for p in graph.nodes[n].producers())
    update = method(10, representation=representation, **({"window": 11} if method is DR else {})).update
    usual = update(lambda p: loss_fn(p, y, y), start).params
    for labels in ((2 - y, y), (y, 2 - y)):
        changed = update(lambda p, labels=labels: loss_fn(p, *labels), start).params
        assert float(jnp.abs(changed["w"] - usual["w"]).max()) > 1e-3
    edges = method(10, representation="edges").update(lambda p: loss_fn(p, y, y), start).params
    assert relative_error(usual, edges, start) < RTOL


@pytest.mark.usefixtures("x64")
def test_scaling_by_a_constant_is_the_projection_of_its_line():
    """Both h / 4 and 0.25 * h are one constraint each, and the constant does not move."""
    x, y = blobs(16, 4, 3)
    w = jnp.ones((4, 3))
    for scaled in (lambda h: h / 4, lambda h: 0.25 * h, lambda h: h * 0.25):
        graph = pjax.trace(lambda p, f=scaled: nn.cross_entropy(f(x @ p), y), w)
        assert [n.name for n in graph.nodes if n.kind == "constraint"] == ["dot_general", "scale"]
        a, b = (
            AP(5, representation=r).update(lambda p, f=scaled: nn.cross_entropy(f(x @ p), y), w).params
            for r in ("edges", "consensus")
        )
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_an_unread_parameter_keeps_its_value():
    x, y = blobs(8, 3, 2)
    params = {"w": jnp.ones((3, 2)), "unused": jnp.arange(3.0)}
    for method in (AP(2), CP(2), DR(2)):
        new, _ = method.update(lambda p: nn.cross_entropy(x @ p["w"], y), params)
        np.testing.assert_array_equal(new["unused"], params["unused"])
        assert float(jnp.abs(new["w"] - params["w"]).max()) > 0


def test_margin_loss_reaches_a_feasible_point():
    x, y = blobs(32, 12, 5)
    model = MLP((12, 20, 5))
    params = model.init(jax.random.key(0))

    def loss_fn(p):
        return nn.margin_loss(model.apply(p, x), y)

    losses = []
    for _ in range(40):
        params, loss = DR(50).update(loss_fn, params)
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]


def test_float32_stays_near_float64():
    """After 20 steps of a 4-layer network single precision is within 1e-3 of the way that it moved."""
    loss_fn, start = problem("4 layers, skip")
    single = AP(20, pjax.PUBLISHED).update(loss_fn, start).params
    with jax.enable_x64(True):
        double_fn, _ = problem("4 layers, skip")
        start = jax.tree.map(lambda a: a.astype(jnp.float64), start)
        double = AP(20, pjax.PUBLISHED).update(double_fn, start).params
        assert relative_error(single, double, start) < 1e-3


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AP(0), ValueError, "steps_per_update=0"),
        (lambda: AP(2.5), ValueError, r"steps_per_update=2\.5"),
        (lambda: AP(True), ValueError, "steps_per_update=True"),
        (lambda: AP(stacking="no"), ValueError, "stacking='no'"),
        (lambda: DR(relaxation=0), ValueError, "relaxation=0"),
        (lambda: DR(relaxation="a"), ValueError, "relaxation='a'"),
        (lambda: DR(window=0), ValueError, "window=0"),
        (lambda: DR(window=1.5), ValueError, r"window=1\.5"),
        (lambda: DR(relaxation=True), ValueError, "relaxation=True"),
        (lambda: pjax.Operators(dot_newton_steps=2.5), ValueError, r"dot_newton_steps=2\.5"),
        (lambda: pjax.Operators(prox_lambda="5"), ValueError, "prox_lambda='5'"),
        (lambda: pjax.Operators(prox_lambda=float("inf")), ValueError, "prox_lambda=inf"),
        (lambda: pjax.Operators(weighted="no"), ValueError, "weighted='no'"),
        (lambda: optim.DifferenceMap(beta=0), ValueError, "beta=0: a number but 0"),
        (lambda: optim.DifferenceMap(beta=float("nan")), ValueError, "beta=nan"),
        (lambda: DR(representation="consensus"), ValueError, "does not serve DouglasRachford"),
        (lambda: AP(representation="history"), ValueError, "does not serve AlternatingProjections"),
        (lambda: CP(operators="exact"), TypeError, "pjax.EXACT"),
    ],
)
def test_impossible_methods_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_numbers_of_numpy_are_numbers():
    assert DR(np.int64(3), relaxation=np.float32(0.5), window=np.int32(2)).relaxation == 0.5


class Subspaces:
    """A stand-in for a problem: projections onto subspaces of R^4, which are matrices."""

    def __init__(self, count):
        rng = np.random.default_rng(0)
        bases = (np.linalg.qr(rng.normal(size=(4, 2)))[0] for _ in range(count))
        self.projections = {(i,): basis @ basis.T for i, basis in enumerate(bases)}
        self.graph = types.SimpleNamespace(sides=tuple(self.projections)[:2], layers=tuple(self.projections))

    def project(self, numbers, z):
        return self.projections[numbers] @ z

    def combine(self, *terms):
        return sum(c * z for c, z in terms)

    def settle(self, z):
        return z


def _reflect_project_average(first, second, relaxation=0.5):
    """DR as the average of the identity and two reflections (Eq. 7)."""
    one = np.eye(4)
    return (1 - relaxation) * one + relaxation * (2 * second - one) @ (2 * first - one)


def test_steps_are_those_of_the_literature():
    """As matrices: Eq. 5 to 7, Elser's difference map as he wrote it, cyclic DR as its product over pairs."""
    one, problem, z = np.eye(4), Subspaces(3), np.random.default_rng(1).normal(size=4)
    a, b, c = problem.projections.values()
    expected = {
        AP(1): b @ a,
        CP(1): c @ b @ a,
        DR(1): _reflect_project_average(a, b),
        DR(1, relaxation=0.3): _reflect_project_average(a, b, 0.3),
        DR(1, relaxation=1.0): (2 * b - one) @ (2 * a - one),
        optim.DifferenceMap(1): _reflect_project_average(b, a),
        optim.DifferenceMap(1, beta=-1.0): _reflect_project_average(a, b),
        optim.CyclicDouglasRachford(1): _reflect_project_average(c, a)
        @ _reflect_project_average(b, c)
        @ _reflect_project_average(a, b),
    }
    for beta in (0.7, -0.4, 1.3):
        f_a, f_b = a - (a - one) / beta, b + (b - one) / beta
        expected[optim.DifferenceMap(1, beta=beta)] = one + beta * (a @ f_b - b @ f_a)
    for method, matrix in expected.items():
        np.testing.assert_allclose(method.step(problem, z), matrix @ z, rtol=1e-12, err_msg=str(method))


def test_cyclic_history_of_tied_weights_equals_edges():
    """The constant input and the weight that it meets are in different layers, so that node holds edges."""
    x, y = blobs(8, 6, 4)
    key = jax.random.key(0)
    params = {"w": jax.random.normal(key, (6, 5)), "v": jax.random.normal(key, (6, 4))}

    def loss_fn(p):
        return nn.cross_entropy(jax.nn.relu(jax.nn.relu(x @ p["w"]) @ p["w"].T) @ p["v"], y)

    history, edges = (
        optim.CyclicDouglasRachford(4, representation=r, window=9).update(loss_fn, params).params
        for r in ("history", "edges")
    )
    assert relative_error(history, edges, params) < 1e-4


@pytest.mark.usefixtures("x64")
def test_a_narrow_layer_that_reads_constants_holds_all_its_copies_near_the_loss():
    """Its inputs have few copies and its weights many, of which a short history is no good account."""
    x, y = jax.random.normal(jax.random.key(0), (64, 20)), jnp.arange(64) % 10
    start = {"w": jax.random.normal(jax.random.key(1), (20, 10)) / 5}
    auto, edges = (
        optim.DouglasRachford(20, representation=name).update(lambda p: nn.cross_entropy(x @ p["w"], y), start).params
        for name in ("auto", "edges")
    )
    assert relative_error(auto, edges, start) < 1e-9


@pytest.mark.parametrize("operators", PRESETS.values(), ids=PRESETS)
def test_values_of_the_forward_pass_that_no_consensus_needs_are_not_kept(operators):
    """Around a padded convolution the elements have different numbers of readers, but each has one."""
    shapes = {"v": (3, 3, 1, 4), "w": (3, 3, 4, 5)}
    params = {k: jax.random.normal(jax.random.key(i), shape) for i, (k, shape) in enumerate(shapes.items())}
    x, y = jax.random.normal(jax.random.key(2), (2, 6, 7, 1)), jnp.array([0, 4])

    def loss_fn(p, strides):
        h = jnp.maximum(jax.lax.conv_general_dilated(x, p["v"], (1, 1), "SAME", dimension_numbers=LAYOUT), 0)
        h = jax.lax.conv_general_dilated(h, p["w"], strides, "VALID", dimension_numbers=LAYOUT)
        return nn.cross_entropy(h.max((1, 2)), y)

    def kept(strides):
        closed = jax.make_jaxpr(lambda p: AP(3, operators).update(lambda p: loss_fn(p, strides), p).params)(params)
        (solve,) = (eqn for eqn in closed.jaxpr.eqns if "jaxpr" in eqn.params)
        (loop,) = (eqn for eqn in solve.params["jaxpr"].jaxpr.eqns if eqn.params.get("length") == 3)
        constants = loop.invars[: len(loop.invars) - len(loop.outvars)]
        return any(atom.aval.shape == (2, 6, 7, 4) for atom in constants)

    assert not kept((1, 1))
    assert kept((4, 4))  # strides pass some by: these keep their values


@pytest.mark.parametrize("done", [None, 0.0, 1.0, jnp.nan, jnp.inf])
def test_what_waits_is_what_it_was(done):
    """Also behind an infinite or an undefined number, compiled, batched and differentiated."""
    x = jnp.array([[1.0, jnp.nan], [-jnp.inf, 3.0]])
    first = None if done is None else jnp.full((2, 2), done)
    for fun in (after, jax.jit(after), lambda done, x: jax.vmap(after, (None, 0))(done, x)):
        np.testing.assert_array_equal(fun(first, x), x)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(after(first, x)))(x), jnp.ones_like(x))
