"""Architectures: the harness sees a Flax module of inputs to logits, never what is behind it.

A new architecture is one file in `baselines/` and one in `conf/model/`. `family: gru` there means `baselines/gru.py`,
whose `ARCHITECTURE` is a Flax module class with the attributes `hidden`, `skip`, `num_classes` and `output_bias`, with
`kernel_init` and `embedding_init` where it has a use for them, and with a class variable `reads`: the kind of samples
it takes, `features` (d,), `images` (height, width, channels) or `tokens` (positions,). Images are features, too.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import numpy as np
from jax.nn import initializers
from numpy.typing import NDArray

from baselines import having, member
from experiments.config import GradientConfig, RunConfig, UsageError, blaming

INITIALIZERS: dict[str, initializers.Initializer] = {
    "he_normal": initializers.he_normal(),
    "lecun_normal": initializers.lecun_normal(),  # Flax's own for weights
    "glorot_normal": initializers.glorot_normal(),
    "flax_embed": initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0),  # Flax's own for embeddings
    "standard_normal": initializers.normal(1.0),
}
KINDS = {"features": ("features", "images"), "images": ("images",), "tokens": ("tokens",)}
"""Kinds of samples that a network can take, by the kind that it reads."""


def build_model(config: RunConfig) -> nn.Module:
    """The network a configuration names, for the data set it names; reads no data.

    Raises:
        UsageError: no architecture or initialiser by that name, and the message lists what there is; or the network
            cannot read such data; or its file is wrong, and the message says where.
    """
    with blaming(f"model.family={config.model.family}"):
        architecture = _architecture(config.model.family)
        _check_pair(config, architecture)
        known = {item.name for item in dataclasses.fields(architecture)}
        own: dict[str, Any] = {
            name: _initializer(name, getattr(config.method, name)) for name in ("kernel_init", "embedding_init")
        }
        own["straight_through"] = isinstance(config.method, GradientConfig) and config.method.straight_through
        if own["straight_through"] and "straight_through" not in known:
            raise UsageError(
                f"method.straight_through=true: nothing in model '{config.model.name}' "
                f"(model.family={config.model.family}) has to be passed"
            )
        return architecture(
            hidden=tuple(config.model.hidden),
            skip=config.model.skip,
            num_classes=config.dataset.num_classes,
            output_bias=config.method.output_bias,
            **{name: value for name, value in own.items() if name in known},
            **(config.model.options or {}),
        )


def arrange(config: RunConfig, x: NDArray[Any]) -> NDArray[Any]:
    """Samples (n, ...) of the configuration's data set as its network takes them, images flat for one of features.

    Raises:
        UsageError: the samples are not of the kind that the configuration says they are.
    """
    reads = _architecture(config.model.family).reads
    axes = {"features": x.ndim, "images": 4, "tokens": 2}[reads]
    if x.ndim != axes or (reads == "tokens") != np.issubdtype(x.dtype, np.integer):
        found = f"{x.dtype}{list(x.shape[1:])}"
        raise UsageError(f"the samples of data set '{config.dataset.name}' are {found}, not {config.dataset.kind}")
    return x.reshape(len(x), -1) if reads == "features" else x


def _check_pair(config: RunConfig, architecture: Any) -> None:
    kind, reads = config.dataset.kind, architecture.reads
    if kind not in KINDS:
        raise UsageError(f"dataset.kind={kind} is unknown. Known: {', '.join(KINDS)}")
    if kind not in KINDS[reads]:
        raise UsageError(
            f"model '{config.model.name}' (model.family={config.model.family}) reads {reads}, and data set "
            f"'{config.dataset.name}' has {kind}"
        )


def _architecture(family: str) -> Any:
    found = member(family, "ARCHITECTURE")
    if found is None:
        raise UsageError(f"unknown model.family={family}. Known: {', '.join(having('ARCHITECTURE'))}")
    return found


def _initializer(key: str, name: str) -> initializers.Initializer:
    if name not in INITIALIZERS:
        raise UsageError(f"unknown method.{key}={name}. Known: {', '.join(INITIALIZERS)}")
    return INITIALIZERS[name]
