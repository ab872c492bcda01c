"""Configuration: every choice composes; wrong ones say what there is."""

from __future__ import annotations

import pytest

from experiments.cells import plan
from experiments.config import GradientConfig, UsageError, choices, compose_run, sweep_params
from experiments.data import DATASETS
from experiments.methods import build_method

NAMED = [(group, name) for group in ("dataset", "model", "method", "engine") for name in choices(group)]


@pytest.mark.parametrize(("group", "name"), NAMED)
def test_every_choice_composes_under_its_own_name(group: str, name: str) -> None:
    config = compose_run([f"{group}={name}"])
    assert getattr(config, group).name == name


@pytest.mark.parametrize("method", choices("method"))
@pytest.mark.parametrize("engine", choices("engine"))
def test_every_method_is_built(method: str, engine: str) -> None:
    config = compose_run([f"method={method}", f"engine={engine}"])
    gradient = isinstance(config.method, GradientConfig)
    # Published: only the gradient baselines have a bias in the last layer.
    assert config.method.output_bias == gradient
    assert build_method(config.method, config.engine).steps_per_update == (1 if gradient else 50)


def test_every_data_set_of_the_configuration_has_a_loader() -> None:
    assert choices("dataset") == sorted(DATASETS)


@pytest.mark.parametrize("preset", choices("preset"))
def test_every_preset_composes(preset: str) -> None:
    assert compose_run([f"preset={preset}"]).preset.name == preset


@pytest.mark.parametrize("sweep", choices("sweep"))
def test_every_sweep_composes(sweep: str) -> None:
    cells = plan([f"sweep={sweep}", "seeds=2"])
    axes = sweep_params(sweep)
    assert len(cells) == 2 * len(axes["dataset"]) * len(axes["model"]) * len(axes["method"])


def test_table_2_has_fifteen_mnist_cells() -> None:
    assert len(plan(["sweep=table2", "dataset=mnist", "seeds=1"])) == 15


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
    for known in ("method.learning_rate", "method.relaxation", "protocol.max_steps", "paths.data", "seed"):
        assert f"\n  {known}" in str(caught.value)


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
        ("seed=-1", "negative"),
        ("sweep=table2", r"\+sweep=table2"),
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
    keys = ["name", "output_bias", "representation", "steps_per_update"]
    assert listed == [f"  method.{known}" for known in keys]


def test_a_learning_rate_is_positive() -> None:
    with pytest.raises(UsageError, match=r"method\.learning_rate=-1\.0 is not positive"):
        compose_run(["method=sgd", "method.learning_rate=-1"])


REFUSED = [
    ("dr", "method.relaxation=2.0", "method.relaxation="),
    ("dr", "method.window=0", "method.window="),
    ("dr", "method.representation=consensus", "method.representation="),
    ("ap", "method.representation=history", "method.representation="),
    ("cp", "engine.prox_lambda=-1.0", "engine.prox_lambda="),
    ("dr", "method.name=ap", "method: .*relaxation"),
]
"""Options that compose but that the engine refuses, and how the message must name them."""


@pytest.mark.parametrize(("method", "override", "message"), REFUSED)
def test_an_option_that_the_engine_refuses_is_named(method: str, override: str, message: str) -> None:
    config = compose_run([f"method={method}", override])
    with pytest.raises(UsageError, match=f"^{message}"):
        build_method(config.method, config.engine)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("sweep=table9", "Known sweeps: demo, table2"),
        ("dataset=digits", "sweep table2 has no dataset 'digits'. It has: mnist"),
        ("method=sgd,foo", "sweep table2 has no method 'foo'. It has: sgd, adam, dr, ap, cp"),
        ("model=foo", "It has: mlp_1x128, mlp_4x128, mlp_4x128_skip"),
        ("seeds=none", "seeds=none is not a positive number"),
        ("speed=1", "unknown key 'speed'"),
        ("seed=1", "for example seeds=5"),
    ],
)
def test_a_wrong_plan_says_what_there_is(argument: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan([argument])
    assert message in str(caught.value)
