"""The benchmarks run, on networks too small to tell anything."""

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import memory, step
from benchmarks.measure import peak_mb


def test_memory(tmp_path, capsys):
    memory.main(["--quick", "--json", str(tmp_path / "new" / "memory.json")])
    lines = capsys.readouterr().out.splitlines()
    document = json.loads((tmp_path / "new" / "memory.json").read_text())
    results = document["results"]
    assert list(results) == [
        "MLP 1x6, batch 4",
        "CNN 1x4, batch 2",
        "CNN 1x4, batch 4",
        "RNN 1x6, 5 characters, batch 4",
    ]
    assert document["benchmark"] == "memory"
    assert document["environment"]["jax"] == jax.__version__
    for line, (title, found) in zip(lines[2:], results.items(), strict=True):
        assert list(found) == ["edges", "SGD", "AP", "DR"]
        assert 0 < found["SGD"] < found["AP"] < found["DR"]
        ratios = [f"{found[name] / found['SGD']:.2f}" for name in ("edges", "AP", "DR")]
        assert line.startswith(title)
        assert [line.split()[i] for i in (-6, -3, -1)] == ratios
    # Dots have an edge for every product, ReLU one for every term, the loss for logits and labels.
    assert results["MLP 1x6, batch 4"]["edges"] == 4 * 4 * (2 * 8 * 6 + 2 * 6 + 2 * 6 * 3 + 2 * 3) / 1e6


def test_a_larger_batch_that_does_not_fit_is_left_out(capsys):
    memory.main(["--quick", "--limit-gb", "1e-9"])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [("left out" in line) for line in lines] == [False, False, True, False]


def test_the_papers_networks_have_their_sizes():
    """Table 2 to 4's sizes, without compiling them."""
    sizes = {}
    for case in memory.cases(quick=False):
        params = jax.eval_shape(case.model.init, jax.random.key(0))
        x = jax.ShapeDtypeStruct((3, *case.x.shape), case.x.dtype)
        assert jax.eval_shape(case.model.apply, params, x).shape[:-1] == (3, *case.y.shape)
        sizes[case.name] = sum(leaf.size for leaf in params.values())
    assert sizes == {
        "MLP 1x128": 784 * 128 + 128 + 128 * 10,
        "CNN 1x32": 9 * 32 + 32 + 32 * 10,
        "CNN 4x16": 9 * 16 + 3 * 9 * 16 * 16 + 4 * 16 + 16 * 10,
        "RNN 1x256, 64 characters": 65 * 256 + 512 * 256 + 256 + 256 * (65 + 256) + 256,
    }


def test_every_method_of_the_step_benchmark_takes_its_arguments():
    model = step.MLP(5, 4, 3)
    x, y = jnp.ones((2, 5)), jnp.zeros(2, int)
    for fun, steps in step.cases(model).values():
        params, loss = jax.eval_shape(fun, model.init(jax.random.key(0)), x, y)
        assert params["hidden.weight"].shape == (5, 4)
        assert loss.shape == ()
        assert steps > 0


def test_peak_memory_counts_arguments_and_results():
    x = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    assert peak_mb(jax.jit(lambda a, b: a + b).lower(x, x).compile()) == pytest.approx(12, rel=0.01)
