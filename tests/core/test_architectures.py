"""Every method on every architecture of the zoo: representations, precisions, compilation, devices, diagnostics."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax
from pjax import nn, optim
from tests.core.networks import RNN, ZOO, images, initial, relative_error, sentences, zoo

ROOT = Path(__file__).resolve().parents[2]
AP, CP, DR = optim.AlternatingProjections, optim.CyclicProjections, optim.DouglasRachford
STEPS = 20

# Method -> how to make it, and how many consensus values a step adds to history; none where consensus is exact.
METHODS = {
    "AP": (AP, None),
    "CP": (CP, None),
    "DR": (DR, 1),
    "relaxed DR": (functools.partial(DR, relaxation=0.3), 1),
    "alternating reflections": (functools.partial(DR, relaxation=1.0), 1),
    "DM": (optim.DifferenceMap, 1),
    "DM -1": (functools.partial(optim.DifferenceMap, beta=-1.0), 1),
    "DM 0.7": (functools.partial(optim.DifferenceMap, beta=0.7), 1),
    "cyclic DR": (optim.CyclicDouglasRachford, 2),
}


def _method(name, steps, *, edges):
    make, values = METHODS[name]
    if edges:
        return make(steps, representation="edges")
    if values is None:
        return make(steps, representation="consensus")
    return make(steps, representation="history", window=values * steps + 1)


@functools.cache
def _trained(network, method, *, edges):
    """Parameters after one update in float64."""
    with jax.enable_x64(True):
        return _method(method, STEPS, edges=edges).update(*zoo(network)).params


@pytest.mark.matrix
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("network", ZOO)
@pytest.mark.parametrize("method", METHODS)
def test_every_representation_equals_edges(network, method):
    _, start = zoo(network)
    edges, fast = (_trained(network, method, edges=edges) for edges in (True, False))
    assert relative_error(fast, edges, start) < 1e-5


@pytest.mark.matrix
@pytest.mark.parametrize("network", ZOO)
@pytest.mark.parametrize("method", ["AP", "DR"])
def test_float32_stays_near_float64(network, method):
    """Within 1e-4 of the way that an array moved plus 64 roundings of the largest parameter."""
    _, start = zoo(network)
    largest = max(float(jnp.abs(a).max()) for a in start.values())
    single = _method(method, STEPS, edges=method == "DR").update(*zoo(network)).params
    double = _trained(network, method, edges=method == "DR")
    for k in start:
        error, way = (np.abs(np.asarray(a, float) - np.asarray(double[k])).max() for a in (single[k], start[k]))
        assert error < 1e-4 * way + 64 * 2**-24 * largest, k
        assert single[k].dtype == jnp.float32


@pytest.mark.parametrize("network", ["CNN", "RNN"])
@pytest.mark.parametrize("make", [AP, DR], ids=["AP", "DR"])
def test_jit_changes_nothing(network, make):
    """Under an outer jit parameters and data are unknown while the graph is traced and its edges are counted."""
    model, x, y = ZOO[network]()
    start = initial(model, jnp.float32)

    def update(p, x, y):
        return make(5).update(lambda p: nn.cross_entropy(model.apply(p, x), y), p)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        jax.jit(update)(start, x, y),
        update(start, x, y),
    )


def test_new_batches_of_a_recurrence_compile_nothing(compiled):
    model, x, y = ZOO["RNN"]()
    params = initial(model, jnp.float32)
    for i in range(4):
        tokens = (x + i) % model.tokens
        params, _ = DR(3).update(lambda p, x=tokens: nn.cross_entropy(model.apply(p, x), y), params)
        if i == 1:
            assert compiled, "the listener hears the first compilation"
            compiled.clear()
    assert compiled == []


def _diagnostics(method, loss_fn, params):
    return method.update(loss_fn, params, diagnostics=True).diagnostics


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("network", ["MLP, skip", "RNN"])
@pytest.mark.parametrize("make", [AP, DR], ids=["AP", "DR"])
def test_diagnostics_are_the_same_in_every_representation(network, make):
    loss_fn, start = zoo(network)
    fast = {"representation": "consensus"} if make is AP else {"representation": "history", "window": 10}
    found, expected = (
        _diagnostics(functools.partial(make, 8, **options)(), loss_fn, start)
        for options in (fast, {"representation": "edges"})
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), found, expected)
    assert float(expected.residual) > 1e-3
    assert float(expected.gap) > 1e-3
    assert float(expected.constraint_violation) > 1e-3
    assert float(expected.roots_at_bracket) == 0
    graph = pjax.trace(loss_fn, start)
    names = [f"{n}:{graph.nodes[n].name}" for n in graph.numbers("constraint")]
    assert sorted(expected.target_displacement) == sorted(names)
    assert all(float(moved) > 0 for moved in expected.target_displacement.values())


@pytest.mark.parametrize("make", [make for make, _ in METHODS.values()], ids=METHODS)
def test_nothing_moves_at_a_feasible_point(make):
    """Logits are the one-hot labels: the margin is met exactly."""
    y = jnp.arange(8) % 3
    x, start = jax.nn.one_hot(y, 3), {"w": jnp.eye(3), "b": jnp.zeros((1, 3)), "v": jnp.eye(3)}

    def loss_fn(p):
        return nn.margin_loss(jnp.maximum(x @ p["w"] + p["b"], 0) @ p["v"], y)

    params, loss, found = make(5).update(loss_fn, start, diagnostics=True)
    assert float(loss) == 0
    for value in jax.tree.leaves(found):
        assert abs(float(value)) < 1e-6
    for k in start:
        np.testing.assert_allclose(params[k], start[k], atol=1e-6)


def test_roots_out_of_reach_are_reported():
    """Ten unguarded Newton steps from 0 leave (-1, 1) where the target is far away."""
    (x, _), w = images((6,), 3), jax.random.normal(jax.random.key(0), (6, 3))
    shares = []
    for scale in (1, 1e4):
        found = _diagnostics(AP(1, pjax.PUBLISHED), lambda p, s=scale: nn.squared_error(x @ p, s * jnp.ones((8, 3))), w)
        shares.append(float(found.roots_at_bracket))
    assert shares[0] == 0
    assert shares[1] > 0.2


@pytest.mark.parametrize(("window", "folds"), [(1, True), (3, True), (8, False)])
def test_what_a_window_folds_is_reported(window, folds):
    """Six steps and the one that is measured: seven consensus values and the start."""
    found = _diagnostics(DR(6, representation="history", window=window), *zoo("MLP"))
    assert (float(found.folded_coefficient) > 0) == folds


DEVICES = """
import functools
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from pjax import nn, optim
from tests.core.networks import ZOO, initial

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)
assert jax.device_count() == 8
mesh = Mesh(np.array(jax.devices()), ("batch",))
for name in ("MLP", "CNN", "RNN"):
    model, x, y = ZOO[name]()
    batch = P(None, "batch") if name == "RNN" else P("batch")
    start = initial(model, jnp.float64)
    sharded = [jax.device_put(a, NamedSharding(mesh, batch)) for a in (x, y)]
    for a in sharded:
        shards = a.addressable_shards
        assert len({s.device for s in shards}) == 8 and all(8 * s.data.size == a.size for s in shards)
    replicated = jax.device_put(start, NamedSharding(mesh, P()))
    for method in (optim.AlternatingProjections(5), optim.DouglasRachford(5), optim.Displacement(optax.sgd(1.0))):
        state = (method.init(start),) if isinstance(method, optim.Displacement) else ()

        @jax.jit
        def update(p, x, y):
            return method.update(lambda p: nn.cross_entropy(model.apply(p, x), y), p, *state)

        on_one = update(start, x, y)
        compiled = update.lower(replicated, *sharded).compile()
        assert "all-reduce" in compiled.as_text()
        on_eight = compiled(replicated, *sharded)
        assert all(len(a.sharding.device_set) == 8 for a in jax.tree.leaves(on_eight))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), on_eight, on_one)
        print(name, type(method).__name__)

x, y = (jax.device_put(a, NamedSharding(mesh, P("batch"))) for a in (jnp.ones((512, 20)), jnp.zeros(512, int)))
weights = jax.device_put({"v": jnp.ones((20, 64)), "w": jnp.ones((64, 10))}, NamedSharding(mesh, P()))
for name in ("auto", "edges"):
    method = optim.DouglasRachford(5, representation=name)
    update = jax.jit(lambda p, x, y: method.update(lambda p: nn.cross_entropy(jax.nn.relu(x @ p["v"]) @ p["w"], y), p))
    text = update.lower(weights, x, y).compile().as_text()
    assert "all-reduce" in text and "collective-permute" not in text, "copies go from device to device"
"""


def test_eight_devices_are_one():
    """The batch is split over eight forced host devices; means over it become sums over devices."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", DEVICES], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 9


@pytest.mark.slow
@pytest.mark.parametrize("make", [AP, DR], ids=["AP", "DR"])
def test_the_papers_recurrent_network_makes_programs_of_one_size_for_every_length(make):
    """Table 4's 1x256, batch 256, 64 and 256 characters; nothing is compiled or run."""
    model = RNN(tokens=65, features=256, hidden=256, state=256)
    start = initial(model, jnp.float32)

    def lines(steps):
        x, y = sentences(steps, 256, 65)
        update = jax.jit(lambda p, x, y: make(50).update(lambda p: nn.cross_entropy(model.apply(p, x), y), p))
        return update.lower(start, x, y).as_text().count("\n")

    assert lines(64) == lines(256)
