"""The benchmarks run, on networks too small to tell anything."""

import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import compile as compilation
from benchmarks import depth, displacement, higgs, layers, memory, step, tracker
from benchmarks.__main__ import main as benchmarks_main
from benchmarks.measure import peak_mb
from benchmarks.networks import NETWORKS, cnn, mlp, rnn

OPTIMIZED = True


def test_memory(tmp_path, capsys):
    memory.main(["--quick", "--json", str(tmp_path / "new" / "memory.json")])
    lines = capsys.readouterr().out.splitlines()
    document = json.loads((tmp_path / "new" / "memory.json").read_text())
    results = document["results"]
    assert list(results) == [
        "mlp_1x6, batch 4",
        "cnn_1x4, batch 2",
        "cnn_1x4, batch 4",
        "rnn_1x6, batch 4",
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
    assert results["mlp_1x6, batch 4"]["edges"] == 4 * 4 * (2 * 8 * 6 + 2 * 6 + 2 * 6 * 10 + 2 * 10) / 1e6


@pytest.mark.parametrize(
    ("name", "batch", "dr"),
    [
        ("mnist mlp_4x128_skip", 256, 5),
        ("higgs mlp_1x256", 256, 5),
        ("mnist cnn_4x16_skip", 32, 5),
        ("shakespeare rnn_4x128", 32, 7),  # its output has a window of 2
    ],
)
def test_memory_is_a_small_multiple_of_gradient_descents(name, batch, dr):
    """Nodes of a set do not hold their temporaries all at once; a property of the compiled programs, never timed.

    The bounds of DR are 3 + 2 x window.
    """
    found = memory.memory(NETWORKS[name], batch)
    assert found["AP"] < 3 * found["SGD"]
    assert found["DR"] < dr * found["SGD"]


def test_a_larger_batch_that_does_not_fit_is_left_out(capsys):
    memory.main(["--quick", "--limit-gb", "1e-9"])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [("left out" in line) for line in lines] == [False, False, True, False]


def test_the_papers_networks_have_their_sizes():
    """Table 2 to 4's sizes, without making an array."""
    sizes = {}
    for name, network in NETWORKS.items():
        params, x, y = jax.eval_shape(lambda n=network: n.arguments(3))
        losses = jax.eval_shape(lambda p, x, y, n=network: n.losses(x, y)(p), params, x, y)
        assert losses.shape == y.shape
        sizes[name] = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert len(sizes) == 18
    assert sizes["mnist mlp_1x128"] == 784 * 128 + 128 + 128 * 10
    assert sizes["cifar10 mlp_4x256_skip"] == 3072 * 256 + 3 * 256 * 256 + 4 * 256 + 4 * 256 * 10
    assert sizes["higgs mlp_1x256"] == 28 * 256 + 256 + 256 * 2
    assert sizes["mnist cnn_1x32"] == 9 * 32 + 32 + 32 * 10
    assert sizes["cifar10 cnn_4x16"] == 27 * 16 + 3 * 9 * 16 * 16 + 4 * 16 + 16 * 10
    assert sizes["mnist cnn_4x16_skip"] == 9 * 16 + 3 * 9 * 16 * 16 + 4 * 16 + 4 * 16 * 10
    assert sizes["shakespeare rnn_1x256"] == 65 * 256 + 512 * 256 + 256 + 256 * (65 + 256)
    assert sizes["shakespeare rnn_4x128"] == 65 * 128 + 256 * 128 + 3 * 128 * 128 + 4 * 128 + 128 * (65 + 128)


@pytest.mark.parametrize(
    "network",
    [mlp("mlp", 5, [4]), cnn("cnn", (6, 6, 2), [3, 3], skip=True), rnn("rnn", [4], characters=3)],
    ids=lambda n: n.name,
)
def test_step(network, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(NETWORKS, "tiny", network)
    step.main(["--network", "tiny", "--batch", "2", "--json", str(tmp_path / "step.json")])
    rows = capsys.readouterr().out.splitlines()[2:]
    results = json.loads((tmp_path / "step.json").read_text())["results"]["tiny"]
    assert [row.split("  ")[0] for row in rows] == list(results)
    assert {name.split(", ")[-1] for name in results} >= {"SGD", "products", "AP exact", "DR published", "edges"}
    assert all(found["step_ms"] > 0 for found in results.values())


def test_step_writes_what_it_has_before_the_next_network(tmp_path, monkeypatch):
    """A long run that is cut leaves the networks that it has measured."""
    first, second = mlp("first", 5, [4]), mlp("second", 5, [4])
    monkeypatch.setattr(step, "NETWORKS", {"mnist mlp_1x128": first, "second": second})
    monkeypatch.setattr(type(second), "arguments", _cut_at(second, type(second).arguments))
    options = ["--batch", "2", "--steps", "1", "--rounds", "1", "--operators", "published"]
    with pytest.raises(KeyboardInterrupt):
        step.main(["--network", "all", *options, "--json", str(tmp_path / "step.json")])
    found = json.loads((tmp_path / "step.json").read_text())["results"]
    assert list(found) == ["mnist mlp_1x128"]
    assert list(found["mnist mlp_1x128"]) == [
        "SGD",
        "Adam",
        "products",
        "AP published",
        "CP published",
        "DR published",
        "AP published, edges",
    ]


def _cut_at(network, arguments):
    def cut(self, batch):
        if self is network:
            raise KeyboardInterrupt
        return arguments(self, batch)

    return cut


def test_published(tmp_path, capsys):
    step_ms = {"SGD": 0.5, "AP published": 0.125}
    measured = {name: {"step_ms": ms} for name, ms in step_ms.items()}
    path = tmp_path / "step.json"
    environment = {"device": "H100", "jax": "1"}
    document = {"benchmark": "step", "environment": environment, "results": {"mnist cnn_1x32": measured}}
    path.write_text(json.dumps(document))
    benchmarks_main(["published", str(path)])
    title, head, *rows = capsys.readouterr().out.splitlines()
    assert "H100 (jax 1)" in title
    assert head.split() == ["published", "ours", "times", "published", "/", "SGD", "ours", "/", "SGD"]
    assert len(rows) == 87
    cells = {tuple(row.split()[:3]): row.split()[3:] for row in rows}
    # Table 3: 6.67 ms for AP, 3.04 for SGD.
    assert cells["mnist", "cnn_1x32", "ap"] == ["6.67", "0.125", "53.4x", "2.19", "0.25"]
    assert cells["mnist", "cnn_1x32", "dr"] == ["6.50", "-", "-", "2.14", "-"]
    assert cells["higgs", "mlp_1x256", "ap"] == ["0.14", "-", "-", "0.15", "-"]

    (other := tmp_path / "other.json").write_text(json.dumps({**document, "environment": {"device": "A100"}}))
    with pytest.raises(SystemExit, match=r"other.json is of another device"):
        benchmarks_main(["published", str(path), str(other)])
    with pytest.raises(SystemExit, match=r"is of benchmark depth, not of step"):
        benchmarks_main(["published", _document(tmp_path / "depth.json", "depth")])


def test_compile(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(NETWORKS, "tiny", mlp("tiny", 5, [4]))
    compilation.main(["--network", "tiny", "--batch", "2", "--json", str(tmp_path / "compile.json")])
    results = json.loads((tmp_path / "compile.json").read_text())["results"]["tiny"]
    assert list(results) == ["SGD", "AP", "DR"]
    assert all(found["trace"] > 0 and found["compile"] > 0 for found in results.values())
    assert capsys.readouterr().out.splitlines()[-1].startswith("tiny ")


def test_depth(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(depth, "DEEP", 3)
    monkeypatch.setattr(depth, "SHALLOW", 1)
    depth.main(["--layers", "1", "3", "--rounds", "1", "--json", str(tmp_path / "depth.json")])
    results = json.loads((tmp_path / "depth.json").read_text())["results"]
    *lines, last = capsys.readouterr().out.splitlines()[1:]
    table = [line.split() for line in lines]
    assert table[0] == ["layers", "SGD", "CP", "AP"]
    assert [row[0] for row in table[1:]] == ["1", "3", "slope"]
    for column, (name, times) in enumerate(results.items(), 1):
        assert table[0][column] == name
        one, three = (1e3 * times[layers]["step_ms"] for layers in ("1", "3"))
        assert [float(row[column]) for row in table[1:]] == pytest.approx([one, three, (three - one) / 2], abs=0.051)
        assert last.startswith("   3 / 1")
        assert float(last.split()[2 + column]) == pytest.approx(three / one, abs=0.0051)


def test_products_are_those_of_a_step():
    """What is constant is not pulled to: the first layer's input."""
    network = mlp("mlp", 5, [4])
    params, x, y = network.arguments(2)
    jaxpr = str(jax.make_jaxpr(network.products())(params, x, y))
    # In the forward pass, and in the loop forward and back to a weight, of two layers, and to the hidden layer.
    assert jaxpr.count("dot_general[") == 2 + 2 + 2 + 1


def test_peak_memory_counts_arguments_and_results():
    x = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    assert peak_mb(jax.jit(lambda a, b: a + b).lower(x, x).compile()) == pytest.approx(12, rel=0.01)


def _document(path, benchmark="step", **results):
    path.write_text(json.dumps({"benchmark": benchmark, "environment": {"jax": path.stem}, "results": results}))
    return str(path)


def test_compare(tmp_path, capsys):
    old = _document(tmp_path / "old.json", net={"SGD": {"step_ms": 2.0, "peak_mb": 1}, "AP": {"step_ms": 4.0}})
    new = _document(
        tmp_path / "new.json", net={"SGD": {"step_ms": 2.0, "peak_mb": 1}, "AP": {"step_ms": 3.0}, "DR": {"a": 1}}
    )
    benchmarks_main(["compare", old, new, "--match", "step_ms"])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["note:", "jax", "differs:", "old", "and", "new"],
        ["net", "/", "SGD", "/", "step_ms", "2", "2", "1.00x"],
        ["net", "/", "AP", "/", "step_ms", "4", "3", "0.75x"],
        ["2", "rows;", "1", "numbers", "are", "in", "one", "file", "only"],
    ]
    other = _document(tmp_path / "other.json", "depth", net={})
    (tmp_path / "broken.json").write_text("{}")
    for wrong, message in (
        (other, "is of benchmark"),
        ("none.json", "cannot read"),
        (str(tmp_path / "broken.json"), "json of a"),
    ):
        with pytest.raises(SystemExit, match=message):
            benchmarks_main(["compare", old, wrong])


def test_the_benchmarks_are_listed(capsys):
    with pytest.raises(
        SystemExit,
        match=r"'speed' is no benchmark; choose step, published, .*, suite-overhead, tracker, higgs, compare",
    ):
        benchmarks_main(["speed"])
    assert "step           Time and memory of one step" in capsys.readouterr().out


def test_batch(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(NETWORKS, "mnist mlp_1x128", mlp("tiny", 5, [4]))
    sizes = ["--batches", "2", "3", "--steps", "2", "--rounds", "1", "--edges-gb", "1.5e-6"]
    benchmarks_main(["batch", *sizes, "--json", str(tmp_path / "batch.json")])
    results = json.loads((tmp_path / "batch.json").read_text())["results"]
    small, large = (line.split() for line in capsys.readouterr().out.splitlines()[2:])
    assert (small[0], large[0]) == tuple(results) == ("2", "3")
    assert small[-1] == f"{results['2']['AP, edges']['step_ms'] / results['2']['AP']['step_ms']:.0f}x"
    assert " ".join(large[-2:]) == "too large"


def test_seeds(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(NETWORKS, "mnist mlp_1x128", mlp("tiny", 5, [4]))
    arguments = ["--network", "mnist mlp_1x128", "--seeds", "2", "--batch", "3"]
    benchmarks_main(["seeds", *arguments, "--json", str(tmp_path / "seeds.json")])
    results = json.loads((tmp_path / "seeds.json").read_text())["results"]["mnist mlp_1x128"]
    assert list(results) == [f"{method}{way}" for method in ("SGD", "AP", "DR") for way in ("", ", vmap", ", map")]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["SGD", "AP", "DR"]


def test_suite_overhead(tmp_path, capsys):
    arguments = ["--steps", "100", "--samples", "600", "--json", str(tmp_path / "overhead.json")]
    benchmarks_main(["suite-overhead", *arguments])
    results = json.loads((tmp_path / "overhead.json").read_text())["results"]
    assert list(results) == ["sgd", "adam", "dr", "ap", "cp"]
    assert all(found["end_to_end"] >= found["device"] > 0 for found in results.values())
    assert "nothing was compiled after the first evaluation" in capsys.readouterr().out


def test_tracker(tmp_path, capsys, monkeypatch):
    asked = []

    def once(server, cell, steps, folder, url):
        assert cell == ("dataset=digits", "model=mlp_1x32")
        asked.append((server, url is not None))
        # Slower from round to round, and with a server that never answers.
        return tracker.Times(3.0 * len(asked), 4.0, 0.01, [1.5 if url else 1.0] * 9)

    monkeypatch.setattr(tracker, "SERVERS", ("no tracker", "never answers"))
    monkeypatch.setattr(tracker, "times", once)
    small = ["--dataset", "digits", "--model", "mlp_1x32", "--rounds", "2"]
    benchmarks_main(["tracker", *small, "--json", str(tmp_path / "tracker.json")])
    none, silent = ("no tracker", False), ("never answers", True)
    assert asked == [none, silent, silent, none]
    results = json.loads((tmp_path / "tracker.json").read_text())["results"]
    expected = {"loop_ratio": 1, "loop_ratio_error": 0, "processor": 0.01, "start_s": 7.5, "end_s": 4}
    assert results["no tracker"] == expected
    assert results["never answers"]["loop_ratio"] == 1.5
    *_, last, every = (line.split() for line in capsys.readouterr().out.splitlines())
    assert last == ["never", "answers", "1.5000", "+-0.0000", "1.00%", "7.5", "4.0"]
    assert every == ["all", "trackers", "1.5000", "+-0.0000"]


def test_a_tracker_is_stopped_and_continued_in_turn(tmp_path, monkeypatch):
    events, sent = tmp_path / "events.jsonl", []
    monkeypatch.setattr(tracker, "_signal_the_tracker", lambda folder, run, signum: sent.append(signum))
    code = f"import time\nfor i in range(20):\n    time.sleep(0.05); print('{{}}', file=open({str(events)!r}, 'a'))"
    busy = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\ntime.sleep(60)"
    own = {**os.environ, "HOME": str(tmp_path)}
    with (
        subprocess.Popen([sys.executable, "-c", busy], env=own) as other,
        subprocess.Popen([sys.executable, "-c", code]) as process,
    ):
        seen, computed = tracker._alternate(process, events, tmp_path)
        other.kill()
    assert 0.1 < computed < 2
    assert len(seen) == 20
    assert sent[:4] == [signal.SIGSTOP, signal.SIGCONT] * 2
    assert sent[-1] == signal.SIGCONT
    assert 4 <= len(tracker._ratios(seen)) <= 5
    ratio, error = tracker.growth([1.0, 1.1, 1.2])
    assert ratio == pytest.approx(1.1)
    assert 0 < error < 0.2


def test_a_tracker_is_compared_with_its_run_while_it_is_stopped_next():
    works = [True, True, True, False, False, True, True, False, False]
    seen = [(float(when), each) for when, each in zip([0, 1, 3, 4, 5, 8, 10, 11, 13], works, strict=True)]
    # 1 and 2 over 1 and 1; 3 and 2 over 1 and 2.
    assert tracker._ratios(seen) == [1.5, pytest.approx(5 / 3)]


def test_a_run_that_does_not_finish_ends_the_tracker_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(SystemExit, match="the run with 'no tracker' did not finish"):
        tracker.times("no tracker", ("dataset=digits", "model=mlp_1x32"), 1000, tmp_path, None)


def test_higgs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(higgs, "BLOCK", 500)
    benchmarks_main(["higgs", "--rows", "1000", "--folder", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("a CSV of 1,000 rows, 0.00 GB, written in ")
    assert lines[1].endswith(" GB   prepared higgs")
    assert lines[2] == "the arrays are what was written"
    assert lines[3].endswith(" GB   train (800, 28), test (200, 28)")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(higgs, "LIMIT_GB", 0.001)
    with pytest.raises(SystemExit, match=r"more than 0\.001 GB"):
        benchmarks_main(["higgs", "--rows", "1000", "--folder", str(tmp_path)])


def test_displacement(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(NETWORKS, "mnist mlp_1x128", mlp("tiny", 5, [4]))
    monkeypatch.setattr(displacement, "GAINS", ("element",))
    sizes = ["--network", "mnist mlp_1x128", "--batch", "3", "--steps", "2", "--rounds", "1"]
    benchmarks_main(["displacement", *sizes, "--json", str(tmp_path / "displacement.json")])
    results = json.loads((tmp_path / "displacement.json").read_text())["results"]["mnist mlp_1x128"]
    assert list(results) == ["Adam", "displacement element"]
    assert all(found["step_ms"] > 0 for found in results.values())
    assert capsys.readouterr().out.splitlines()[2].split()[3] == "1.00"


def test_layers(monkeypatch):
    monkeypatch.setattr(layers, "GAINS", ("none", "element"))
    monkeypatch.setattr(layers, "SCALES", (1e-3,))
    network = mlp("tiny", 5, [4, 4])
    params, x, y = network.arguments(6)
    results = layers.measured(network.model, params, x, y)
    assert list(results) == ["Dense_0/kernel", "Dense_1/kernel", "Dense_2/kernel"]
    for found in results.values():
        assert found["element 0.001"] > found["none 0.001"] > 0
        assert -1 <= found["element 0.001 cosine"] <= 1
        assert 0 <= found["CP moved"] <= 1
    assert results["Dense_2/kernel"]["element 0.001 cosine"] > 0.9
    assert len(layers.table(results).splitlines()) == 4


def test_profile(capsys, monkeypatch):
    monkeypatch.setitem(NETWORKS, "mnist mlp_1x128", mlp("tiny", 5, [4]))
    benchmarks_main(["profile", "--method", "DR", "--batch", "3", "--steps", "2", "--top", "4"])
    rows = capsys.readouterr().out.splitlines()[2:]
    times = [float(row.split()[0]) for row in rows]
    assert len(times) == 5
    assert times[:4] == sorted(times[:4], reverse=True)
    assert times[-1] >= sum(times[:4]) > 0
