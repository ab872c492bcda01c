"""Typed configuration: what a run is, which keys it has, and which values they may have.

The YAML files in `conf/` hold the values; the dataclasses here hold the keys and types.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.cluster import profile
from experiments.cluster.profile import ClusterConfig

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"


class UsageError(Exception):
    """A request that cannot be carried out as asked; the message says what was wrong, where, and what to do."""


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Say where a file of a user's own is wrong: it stops the runs that need it, and no others.

    Raises:
        UsageError: for any error in the block but a `UsageError`, with the place in this repository.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        frames = [(Path(frame.filename).resolve(), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        ours = [(path.relative_to(ROOT), line) for path, line in frames if path.is_relative_to(ROOT)]
        # An environment may lie in the repository.
        places = [f" ({path}, line {line})" for path, line in ours if not path.parts[0].startswith(".")]
        raise UsageError(f"{what}: {type(error).__name__}: {error}{''.join(places[-1:])}") from error


# A key with a default came after the first runs, which all had this value: at its default it is no part of a run's
# identity, so that they keep their names (experiments/records.py).


@dataclass
class DatasetConfig:
    """A data set.

    Attributes:
        num_classes: labels are 0 .. num_classes - 1.
        test_fraction: None where there is an official test split.
        kind: what a sample is: `features` (d,), `images` (height, width, channels) or `tokens` (positions,). It says
            which networks can read it before it is read, and determines no number.
        limit: only the first so many samples of the training and of the test set; None: all.
        subset: accepts a part of the published set; a copy is taken as the one it is or not at all.
        altered: accepts a copy that is not what was published.
    """

    name: str = MISSING
    num_classes: int = MISSING
    test_fraction: float | None = MISSING
    subset: bool = False
    altered: bool = False
    kind: str = field(default=MISSING, metadata={"scientific": False})
    limit: int | None = None


@dataclass
class ModelConfig:
    """A network: its hidden layers, and whether the last layer reads all of them.

    Attributes:
        hidden: widths or channels.
        family: the architecture, a file of `baselines/`.
        options: what that file's architecture has beside the others' attributes.
    """

    name: str = MISSING
    hidden: list[int] = MISSING
    skip: bool = MISSING
    family: str = "mlp"
    options: dict[str, Any] | None = None


@dataclass
class MethodConfig:
    """What every training method has, and what of the network the paper or its reader ties to the method.

    Attributes:
        output_bias: whether the network's last layer has a bias.
        kernel_init: of all weights but an embedding's, a name in `experiments/models.py`.
        embedding_init: the same of an embedding.
    """

    name: str = MISSING
    output_bias: bool = MISSING
    kernel_init: str = "he_normal"
    embedding_init: str = "he_normal"


@dataclass
class GradientConfig(MethodConfig):
    """A gradient method from Optax.

    Attributes:
        transform: Optax's name for it; None: the method's own.
        straight_through: whether gradients pass what has none, in networks that have such a thing.
    """

    learning_rate: float = MISSING
    transform: str | None = None
    straight_through: bool = False


@dataclass
class ProjectionConfig(MethodConfig):
    """A projection method of `pjax.optim`; one update is `steps_per_update` counted steps."""

    steps_per_update: int = MISSING
    representation: str = MISSING


@dataclass
class DouglasRachfordConfig(ProjectionConfig):
    """Douglas-Rachford, which has options of its own."""

    relaxation: float = MISSING
    window: int = MISSING


@dataclass
class DisplacementConfig(MethodConfig):
    """Displacements of `pjax.optim`, whose operators are always the exact ones.

    Attributes:
        transform: what makes steps of displacements, a gradient method.
        learning_rate: its.
        target_scale: and `gain`, `sweeps`: see `pjax.optim.Displacement`.
        prox_lambda: and `step_margin`: of the operators.
        average: of the parameters, see there.
    """

    transform: str = MISSING
    learning_rate: float = MISSING
    target_scale: float = MISSING
    gain: str = MISSING
    sweeps: int = MISSING
    prox_lambda: float = MISSING
    step_margin: float = 0.0
    average: float = 0.0


@dataclass
class OwnConfig(MethodConfig):
    """A method in a file of one's own.

    Attributes:
        file: a file of `baselines/`.
        steps_per_update: how many steps of the protocol an update counts as.
        options: what the file's `METHOD` is called with.
        engine: whether it is also called with `operators`, those that the key `engine` names. They are then part of the
            run, as they are of the paper's projection methods.
    """

    file: str = MISSING
    steps_per_update: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    engine: bool = False


@dataclass
class EngineConfig:
    """Which projection operators; means nothing to gradient methods."""

    name: str = MISSING
    prox_lambda: float = MISSING


@dataclass
class ProtocolConfig:
    """Batches, evaluation and stopping; `evaluate_every` and `max_steps` are in counted steps."""

    name: str = MISSING
    batch_size: int = MISSING
    validation_fraction: float = MISSING
    evaluate_every: int = MISSING
    patience: int = MISSING
    max_steps: int = MISSING


@dataclass
class FamilyLimits:
    """What a preset makes of the protocol for one family of networks, whose steps differ a thousandfold in cost."""

    batch_size: int = MISSING
    evaluate_every: int = MISSING
    max_steps: int = MISSING
    limit: int | None = MISSING


@dataclass
class PresetConfig:
    """A named set of differences; recorded with a run, no part of its identity.

    Attributes:
        seeds: how many a cell gets unless the command line says so.
        families: by `model.family`; the preset's file says where its values go.
    """

    name: str = MISSING
    seeds: int = MISSING
    families: dict[str, FamilyLimits] = field(default_factory=dict)


@dataclass
class PathsConfig:
    """Folders, relative to the repository's root or absolute; no part of a run's identity."""

    results: str = MISSING
    data: str = MISSING


@dataclass
class TrackerConfig:
    """Who else hears of a run; no part of its identity."""

    name: str = MISSING


@dataclass
class WandbConfig(TrackerConfig):
    """W&B, which a process beside the run sends to.

    Attributes:
        entity: a user or a team; None: the key's own.
        mode: `online`, `offline`, or `auto`: online with a key and an answer, else offline.
        start_timeout_s: for the server's first answer.
        finish_timeout_s: for the last sending.
        wait_s: how long a run's end waits for that.
    """

    project: str = MISSING
    entity: str | None = None
    mode: str = MISSING
    start_timeout_s: float = MISSING
    finish_timeout_s: float = MISSING
    wait_s: float = MISSING


@dataclass
class RunConfig:
    """One run.

    Attributes:
        jobs: how many runs this machine does at once, of which this is one: it gets its share of the memory.
    """

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    preset: PresetConfig = field(default_factory=PresetConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    seed: int = MISSING
    retry_failed: bool = MISSING
    memory_gb: float | None = MISSING
    checkpoint_every_s: float = MISSING
    jobs: int = MISSING

    @property
    def results_dir(self) -> Path:
        """The folder that holds the run folders."""
        return ROOT / self.paths.results

    @property
    def data_dir(self) -> Path:
        """The folder that holds the prepared data sets."""
        return ROOT / self.paths.data


@functools.cache
def register_schemas() -> None:
    """Tell Hydra the schemas that the files in `conf/` are checked against."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=RunConfig)
    store.store(group="schema", name="gradient", node=GradientConfig)
    store.store(group="schema", name="projection", node=ProjectionConfig)
    store.store(group="schema", name="douglas_rachford", node=DouglasRachfordConfig)
    store.store(group="schema", name="displacement", node=DisplacementConfig)
    store.store(group="schema", name="own", node=OwnConfig)
    store.store(group="schema", name="tracker", node=TrackerConfig)
    store.store(group="schema", name="wandb", node=WandbConfig)
    # A list cannot be interpolated before all is composed; for Hydra's launcher, text can.
    OmegaConf.register_new_resolver("pjax.lines", "\n".join, replace=True)


def to_run_config(cfg: DictConfig) -> RunConfig:
    """The typed, validated form of a composed configuration.

    Raises:
        UsageError: a value is out of its range or two values contradict each other.
    """
    try:
        config = OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise UsageError(_unresolved(cfg, error)) from error
    assert isinstance(config, RunConfig)
    validate(config)
    return config


def _unresolved(cfg: DictConfig, error: OmegaConfBaseException) -> str:
    """What to say of a value that refers to another one that is not there."""
    family, preset = cfg.model.family, cfg.preset.name
    if cfg.preset.families and family not in cfg.preset.families:
        return (
            f"preset={preset} says nothing of model.family={family}: add '{family}' to preset.families in "
            f"conf/preset/{preset}.yaml, beside {', '.join(map(str, cfg.preset.families))}; or use preset=paper"
        )
    return f"{error.full_key}: {str(error).partition(chr(10))[0]}"


def validate(config: RunConfig) -> None:
    """Refuse values out of their range, and values that contradict each other.

    Raises:
        UsageError: names the key of the first.
    """
    protocol, method = config.protocol, config.method
    steps = method.steps_per_update if isinstance(method, ProjectionConfig | OwnConfig) else 1
    checks = [
        (0 <= config.seed < 2**32, f"seed={config.seed} is not from 0 to 2^32 - 1"),
        (config.dataset.num_classes > 0, f"dataset.num_classes={config.dataset.num_classes} is not positive"),
        (
            config.dataset.test_fraction is None or 0 < config.dataset.test_fraction < 1,
            f"dataset.test_fraction={config.dataset.test_fraction} is not between 0 and 1",
        ),
        (config.jobs > 0, f"jobs={config.jobs} is not positive"),
        (config.memory_gb is None or config.memory_gb > 0, f"memory_gb={config.memory_gb} is not positive"),
        (
            0 <= config.checkpoint_every_s < math.inf,
            f"checkpoint_every_s={config.checkpoint_every_s} is not a number of seconds",
        ),
        (protocol.batch_size > 0, f"protocol.batch_size={protocol.batch_size} is not positive"),
        (
            0 < protocol.validation_fraction < 1,
            f"protocol.validation_fraction={protocol.validation_fraction} is not between 0 and 1",
        ),
        (protocol.patience > 0, f"protocol.patience={protocol.patience} is not positive"),
        (steps > 0, f"method.steps_per_update={steps} is not positive"),
        (
            protocol.evaluate_every > 0 and steps > 0 and protocol.evaluate_every % steps == 0,
            f"protocol.evaluate_every={protocol.evaluate_every} is no multiple of method.steps_per_update={steps}",
        ),
        (
            protocol.max_steps > 0
            and protocol.evaluate_every > 0
            and protocol.max_steps % protocol.evaluate_every == 0,
            f"protocol.max_steps={protocol.max_steps} is no multiple of "
            f"protocol.evaluate_every={protocol.evaluate_every}",
        ),
        (
            config.dataset.limit is None or config.dataset.limit > 0,
            f"dataset.limit={config.dataset.limit} is not positive",
        ),
        (config.preset.seeds > 0, f"preset.seeds={config.preset.seeds} is not positive"),
        (len(config.model.hidden) > 0, "model.hidden is empty"),
        (all(width > 0 for width in config.model.hidden), f"model.hidden={config.model.hidden} is not positive"),
    ]
    for group in ("dataset", "model", "method", "engine", "preset"):
        # They become parts of a folder's name.
        name = getattr(config, group).name
        checks.append((bool(re.fullmatch(r"\w[\w.+-]*", name)), f"{group}.name='{name}' is not a name"))
    for key, folder in dataclasses.asdict(config.paths).items():
        checks.append((bool(folder.strip()), f"paths.{key}= is empty: name a folder"))
    # A run's name is a hash of JSON, which has no infinity and no NaN.
    for group in ("dataset", "method", "engine", "protocol"):
        for key, value in dataclasses.asdict(getattr(config, group)).items():
            finite = not isinstance(value, float) or math.isfinite(value)
            checks.append((finite, f"{group}.{key}={value} is not finite"))
    if isinstance(method, GradientConfig | DisplacementConfig):
        rate = method.learning_rate
        checks.append((rate > 0, f"method.learning_rate={rate} is not positive"))
    if isinstance(config.tracker, WandbConfig):
        tracker, modes = config.tracker, ("auto", "online", "offline")
        checks.append((tracker.mode in modes, f"tracker.mode={tracker.mode} is none of {', '.join(modes)}"))
        for key in ("start_timeout_s", "finish_timeout_s", "wait_s"):
            seconds = getattr(tracker, key)
            checks.append((0 <= seconds < math.inf, f"tracker.{key}={seconds} is not a number of seconds"))
    checks += profile.checks(config.cluster, config.jobs, protocol.batch_size)
    for holds, message in checks:
        if not holds:
            raise UsageError(message)
