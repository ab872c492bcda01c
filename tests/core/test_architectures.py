"""Every method on every architecture of the zoo: representations, precisions, compilation, devices, diagnostics."""

import functools
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pjax_core as pjax
from pjax_core import nn, optim
from tests.core.networks import MLP, RNN, ZOO, images, initial, relative_error, sentences, zoo

ROOT = Path(__file__).resolve().parents[2]
AP, CP, DR = optim.AlternatingProjections, optim.CyclicProjections, optim.DouglasRachford
STEPS = 20

# Method -> how to make it, and a window of history that holds everything; none where consensus is exact.
METHODS = {
    "AP": (AP, None),
    "CP": (CP, None),
    "DR": (DR, STEPS + 1),
    "relaxed DR": (functools.partial(DR, relaxation=0.3), STEPS + 1),
    "alternating reflections": (functools.partial(DR, relaxation=1.0), STEPS + 1),
    "DM": (optim.DifferenceMap, 2 * STEPS + 1),
    "DM 0.7": (functools.partial(optim.DifferenceMap, beta=0.7), 2 * STEPS + 1),
    "cyclic DR": (optim.CyclicDouglasRachford, 2 * STEPS + 1),
}


@pytest.fixture(autouse=True, scope="module")
def _quick_to_compile():
    """Networks this small run in no time however they are compiled."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def _method(name, *, edges):
    make, window = METHODS[name]
    if edges:
        return make(STEPS, representation="edges")
    return make(STEPS, representation="history", window=window) if window else make(STEPS, representation="consensus")


@functools.cache
def _trained(network, method, *, edges):
    """Parameters after one update in float64."""
    with jax.enable_x64(True):
        return _method(method, edges=edges).update(*zoo(network)).params


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("network", ZOO)
@pytest.mark.parametrize("method", METHODS)
def test_every_representation_equals_edges(network, method):
    _, start = zoo(network)
    edges, fast = (_trained(network, method, edges=edges) for edges in (True, False))
    assert relative_error(fast, edges, start) < 1e-5


@pytest.mark.parametrize("network", ZOO)
@pytest.mark.parametrize("method", ["AP", "DR"])
def test_float32_stays_near_float64(network, method):
    """Within 1e-4 of the way that an array moved plus 64 roundings of its largest entry."""
    _, start = zoo(network)
    single = _method(method, edges=method == "DR").update(*zoo(network)).params
    double = _trained(network, method, edges=method == "DR")
    for k in start:
        error, way = (np.abs(np.asarray(a, float) - np.asarray(double[k])).max() for a in (single[k], start[k]))
        assert error < 1e-4 * way + 64 * 2**-24 * np.abs(start[k]).max(), k
        assert single[k].dtype == jnp.float32
