"""Configuration: every choice composes; wrong ones say what there is."""

from __future__ import annotations

import pytest

from analysis.published import load_published
from experiments.cells import plan
from experiments.compose import check_keys, check_said_once, choices, compose_run, sweep_cells, task_pair
from experiments.config import DisplacementConfig, GradientConfig, UsageError
from experiments.data import known
from experiments.methods import build_method
from experiments.records import run_id

NAMED = [(group, name) for group in ("dataset", "model", "method", "engine") for name in choices(group)]


@pytest.mark.parametrize(("group", "name"), NAMED)
def test_every_choice_composes_under_its_own_name(group: str, name: str) -> None:
    config = compose_run([f"{group}={name}"])
    assert getattr(config, group).name == name


@pytest.mark.parametrize("method", choices("method"))
@pytest.mark.parametrize("engine", choices("engine"))
def test_every_method_is_built(method: str, engine: str) -> None:
    config = compose_run([f"method={method}", f"engine={engine}"])
    gradient = isinstance(config.method, GradientConfig | DisplacementConfig)
    # Published: only the gradient baselines have a bias in the last layer. Displacements stand beside those.
    assert config.method.output_bias == gradient
    assert build_method(config.method, config.engine).steps_per_update == (1 if gradient else 50)


def test_every_data_set_of_the_configuration_has_a_loader() -> None:
    assert choices("dataset") == known()


@pytest.mark.parametrize("preset", choices("preset"))
def test_every_preset_composes_for_every_family(preset: str) -> None:
    for model in ("mlp_1x128", "cnn_1x32", "rnn_1x256"):
        config = compose_run([f"model={model}", f"preset={preset}"])
        assert config.preset.name == preset
        # What differs by its folder alone has the same runs as the paper's protocol.
        assert config.protocol.name == ("paper" if preset == "beyond" else preset)
        for key in ("batch_size", "evaluate_every", "max_steps"):
            expected = config.preset.families.get(config.model.family)
            assert expected is None or getattr(config.protocol, key) == getattr(expected, key)


@pytest.mark.parametrize("preset", choices("preset"))
def test_a_preset_says_how_many_seeds_unless_the_command_line_does(preset: str) -> None:
    cell = ["sweep=demo", "method=sgd", f"preset={preset}"]
    assert len(plan(cell)) == compose_run([f"preset={preset}"]).preset.seeds
    assert len(plan([*cell, "seeds=2"])) == 2


FIVE, FOUR = ("sgd", "adam", "dr", "ap", "cp"), ("sgd", "adam", "dr", "ap")
ROWS = {
    "table2": [
        ("mnist", ("mlp_1x128", "mlp_4x128", "mlp_4x128_skip"), FIVE),
        ("cifar10", ("mlp_1x256", "mlp_4x256", "mlp_4x256_skip"), FIVE),
        ("higgs", ("mlp_1x256", "mlp_4x256", "mlp_4x256_skip"), FIVE),
    ],
    "table3": [(name, ("cnn_1x32", "cnn_4x16", "cnn_4x16_skip"), FIVE) for name in ("mnist", "cifar10")],
    "table4": [("shakespeare", ("rnn_1x256", "rnn_4x128", "rnn_4x128_skip"), FOUR)],
}
"""The paper's tables, row by row."""

CELLS = {
    table: [(data, model, method) for data, models, methods in rows for model in models for method in methods]
    for table, rows in ROWS.items()
}


@pytest.mark.parametrize("sweep", CELLS)
def test_a_table_has_the_published_cells_in_their_order(sweep: str) -> None:
    cells = [(cell["dataset"], cell["model"], cell["method"]) for cell in sweep_cells(sweep)]
    assert cells == CELLS[sweep]
    number = int(sweep.removeprefix("table"))
    assert cells == [(c.dataset, c.model, c.method) for c in load_published().cells if c.table == number]


def test_the_tables_compose_to_the_87_published_cells() -> None:
    planned = plan(["sweep=table2,table3,table4", "seeds=1"])
    configs = [run.config for run in planned]
    cells = [(config.dataset.name, config.model.name, config.method.name) for config in configs]
    assert cells == [cell for table in CELLS.values() for cell in table]
    assert len(set(cells)) == len({run_id(config) for config in configs}) == 87
    assert {(config.engine.name, config.protocol.name, config.preset.name) for config in configs} == {
        ("published", "paper", "paper")
    }


def test_what_is_said_of_a_copy_is_said_of_the_data_sets_that_may_have_one() -> None:
    planned = plan(["sweep=table2", "method=sgd", "seeds=1", "dataset.subset=true", "dataset.altered=true"])
    said = {run.config.dataset.name: (run.config.dataset.subset, run.config.dataset.altered) for run in planned}
    assert said == {"mnist": (False, False), "cifar10": (False, True), "higgs": (True, False)}
    assert all(("dataset.subset=true" in run.overrides) == run.config.dataset.subset for run in planned)
    # Where none may, it is not dropped in silence: loading refuses it.
    (refused,) = plan(["sweep=demo", "method=sgd", "seeds=1", "dataset.subset=true"])
    assert refused.config.dataset.subset


def test_every_other_sweep_composes() -> None:
    for sweep in set(choices("sweep")) - set(CELLS):
        # Of the study's, with its many settings, one network's.
        narrowed = ["model=mlp_1x128"] if sweep == "study" else []
        cells = [cell for cell in sweep_cells(sweep) if not narrowed or cell["model"] == "mlp_1x128"]
        assert len(plan([f"sweep={sweep}", "seeds=2", *narrowed])) == 2 * len(cells)


def test_a_task_is_named_by_the_data_set_and_the_model_it_names() -> None:
    pairs = {name: task_pair(name) for name in choices("task")}
    assert {f"{pair['dataset']}-{pair['model']}": pair for pair in pairs.values()} == pairs
    for name, pair in pairs.items():
        config = compose_run([f"task={name}"])
        assert {"dataset": config.dataset.name, "model": config.model.name} == pair


@pytest.mark.parametrize(
    ("narrowed", "count"),
    [
        (["sweep=table2", "dataset=mnist", "method=sgd,cp"], 6),
        (["sweep=table2,table3,table4", "dataset=mnist,shakespeare", "method=cp"], 6),
        (["sweep=table3", "dataset=cifar10", "model=cnn_4x16", "method=dr"], 1),
    ],
)
def test_data_sets_models_and_methods_narrow_a_table(narrowed: list[str], count: int) -> None:
    assert len(plan([*narrowed, "seeds=1"])) == count


@pytest.mark.parametrize("group", ["dataset", "model", "method", "engine", "protocol", "preset"])
def test_an_unknown_choice_lists_the_choices(group: str) -> None:
    with pytest.raises(UsageError) as caught:
        compose_run([f"{group}=nonsense"])
    assert f"{group}/nonsense" in str(caught.value)
    assert all(choice in str(caught.value) for choice in choices(group))


@pytest.mark.parametrize("key", ["nonsense", "method.nonsense", "+nonsense", "protocol.lr"])
def test_an_unknown_key_lists_the_keys(key: str) -> None:
    with pytest.raises(UsageError, match="unknown key") as caught:
        compose_run([f"{key}=1"])
    for other in ("method.learning_rate", "method.relaxation", "protocol.max_steps", "paths.data", "seed"):
        assert f"\n  {other}" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.relaxation=x", "could not be converted"),
        ("protocol.max_steps=1500", "no multiple of protocol.evaluate_every=1000"),
        ("protocol.evaluate_every=1010", "no multiple of method.steps_per_update=50"),
        ("protocol.validation_fraction=1.5", "not between 0 and 1"),
        ("method.learning_rate=1", r"unknown key 'method.learning_rate'(.|\n)*It has:(.|\n)*\n  method.relaxation\n"),
        ("method.relaxation=null", "is not Optional"),
        ("method.relaxation=nan", "method.relaxation=nan is not finite"),
        ("dataset.test_fraction=1", "dataset.test_fraction=1.0 is not between 0 and 1"),
        ("dataset.num_classes=0", "dataset.num_classes=0 is not positive"),
        ("dataset.subset=maybe", "not a valid bool"),
        ("engine.prox_lambda=inf", "engine.prox_lambda=inf is not finite"),
        ("model.hidden=[0]", r"model.hidden=\[0\] is not positive"),
        ("+method.window=3", "write method.window=value"),
        ("seed", "not of the form key=value"),
        ("seed=-1", "is not from 0 to"),
        ("sweep=table2", r"\+sweep=table2"),
        ("dataset.limit=0", "dataset.limit=0 is not positive"),
        ("preset.seeds=0", "preset.seeds=0 is not positive"),
    ],
)
def test_a_wrong_value_says_what_is_wrong(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compose_run(["method=dr", override])


@pytest.mark.parametrize("method", ["ap", "cp"])
@pytest.mark.parametrize("key", ["relaxation", "window"])
def test_only_douglas_rachford_has_options_of_its_own(method: str, key: str) -> None:
    with pytest.raises(UsageError, match=f"unknown key 'method.{key}'") as caught:
        compose_run([f"method={method}", f"method.{key}=1"])
    listed = str(caught.value).splitlines()[1:]
    keys = ["embedding_init", "kernel_init", "name", "output_bias", "representation", "steps_per_update"]
    assert listed == [f"  method.{known}" for known in keys]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=4294967296"], "seed=4294967296 is not from 0 to 2^32 - 1"),
        (["model.name=../../x"], "model.name='../../x' is not a name"),
        (["paths.results="], "paths.results= is empty: name a folder"),
    ],
)
def test_what_would_mean_something_else_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        compose_run(overrides)
    assert message in str(caught.value)


def test_a_key_is_said_once() -> None:
    check_said_once(["method=sgd", "method.learning_rate=1", "+sweep=demo"])
    with pytest.raises(UsageError, match=r"^method=sgd and \+method=ap: say method once$"):
        check_said_once(["method=sgd", "seed=1", "+method=ap"])


def test_a_run_that_two_sweeps_ask_for_is_planned_once() -> None:
    both, one = plan(["sweep=table2,table2", "seeds=2"]), plan(["sweep=table2", "seeds=2"])
    assert both == one


@pytest.mark.parametrize("method", ["sgd", "displacement"])
def test_a_learning_rate_is_positive(method: str) -> None:
    with pytest.raises(UsageError, match=r"method\.learning_rate=-1\.0 is not positive"):
        compose_run([f"method={method}", "method.learning_rate=-1"])


REFUSED = [
    ("dr", "method.relaxation=2.0", "method.relaxation="),
    ("dr", "method.window=0", "method.window="),
    ("dr", "method.representation=consensus", "method.representation="),
    ("ap", "method.representation=history", "method.representation="),
    ("cp", "engine.prox_lambda=-1.0", "engine.prox_lambda="),
    ("dr", "method.name=ap", "method: .*relaxation"),
    ("displacement", "method.gain=all", "method.gain=.*choose one of none, fan_out, node, element"),
    ("displacement", "method.target_scale=0.0", "method.target_scale="),
    ("displacement", "method.sweeps=0", "method.sweeps="),
    ("displacement", "method.prox_lambda=-1.0", "method.prox_lambda="),
    ("displacement", "method.step_margin=-1.0", "method.step_margin=.*zero, or positive and finite"),
    ("displacement", "method.average=1.0", "method.average=.*in \\[0, 1\\)"),
    ("displacement", "method.transform=foo", "unknown gradient method"),
]
"""Options that compose but that the engine refuses, and how the message must name them."""


@pytest.mark.parametrize(("method", "override", "message"), REFUSED)
def test_an_option_that_the_engine_refuses_is_named(method: str, override: str, message: str) -> None:
    config = compose_run([f"method={method}", override])
    with pytest.raises(UsageError, match=f"^{message}"):
        build_method(config.method, config.engine)


@pytest.mark.parametrize("other", ["task=mnist-mlp_1x128", "+sweep=table2"])
@pytest.mark.parametrize("override", ["dataset=mnist", "model=mlp_1x128"])
def test_what_names_data_and_model_together_stands_beside_neither(other: str, override: str) -> None:
    with pytest.raises(UsageError, match="together: leave out " + override.partition("=")[0]):
        check_keys([other, override])
    check_keys([other, "method=ap"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep=table9"], "Known sweeps: beyond, capped, demo, quantized, study, table2, table3, table4"),
        (["sweep=table2,table9"], "unknown sweep 'table9'"),
        (
            ["dataset=digits"],
            "sweep table2 has no dataset 'digits'. It has: mnist, cifar10, higgs. There it is: sweep=demo",
        ),
        (["dataset=shakespeare"], "There it is: sweep=beyond,capped,study,table4"),
        (["method=sgd,foo"], "sweep table2 has no method 'foo'. It has: sgd, adam, dr, ap, cp"),
        (["sweep=table4", "method=cp"], "sweep table4 has no method 'cp'. It has: sgd, adam, dr, ap"),
        (["sweep=demo", "model=foo"], "It has: mlp_1x32"),
        (["sweep=table2,table3", "dataset=higgs", "model=cnn_1x32"], "no cell with all: dataset=higgs model=cnn_1x32"),
        (["seeds=none"], "seeds=none is not a number from 1 to 10,000"),
        (["seeds=1000000000"], "seeds=1000000000 is not a number from 1 to 10,000"),
        (["speed=1"], "unknown key 'speed'"),
        (["seed=1"], "for example seeds=5"),
        (["task=mnist-mlp_1x128"], "for example dataset=mnist"),
    ],
)
def test_a_wrong_plan_says_what_there_is(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(arguments)
    assert message in str(caught.value)
