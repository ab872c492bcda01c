"""What was run of each network: the configurations of methods, told apart by the settings in which they differ."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pandas as pd

from analysis.compare import Ours, dotted, grouped, ours_of
from analysis.load import shared_part
from analysis.style import METHODS, MORE_METHODS, family_label, method_label, model_label


class Configured(Protocol):
    """What has a configuration with dotted keys and no seed."""

    @property
    def config(self) -> dict[str, Any]:
        """By key."""
        ...


@dataclass(frozen=True)
class Variant:
    """Runs of one network by one method in one configuration on one device; ``config`` has dotted keys and no seed.

    ``label`` is the method's name, with the settings in which it differs from others of the same network and method.
    """

    dataset: str
    model: str
    method: str
    config: dict[str, Any]
    ours: Ours
    label: str = ""

    @property
    def steps_per_update(self) -> int:
        """Steps that a batch counts as."""
        return int(self.config.get("method.steps_per_update", 1))


def variants(records: pd.DataFrame) -> dict[tuple[str, str], list[Variant]]:
    """Returns what was run of each network, in the order of methods.

    Raises CompareError, naming the files, when one seed was run twice in one configuration.
    """
    order = [*METHODS, *MORE_METHODS]
    found: dict[tuple[str, str, str], list[Variant]] = defaultdict(list)
    for group in (group for groups in grouped(records).values() for group in groups):
        first = group.iloc[0]
        config = dotted(shared_part(json.loads(first["config"])))
        one = Variant(first["dataset"], first["model"], first["method"], config, ours_of(group))
        found[one.dataset, one.model, one.method].append(one)
    places: dict[tuple[str, str], list[Variant]] = {}
    for key in sorted(
        found, key=lambda key: (*key[:2], order.index(key[2]) if key[2] in order else len(order), key[2])
    ):
        places.setdefault(key[:2], []).extend(_labelled(found[key]))
    return places


def _labelled(alike: Sequence[Variant]) -> list[Variant]:
    keys = differing(alike) - {"engine.name"}
    labels = [", ".join([method_label(one.method, one.ours.engine), *settings(one, keys)]) for one in alike]
    labelled = [replace(one, label=label) for one, label in zip(alike, labels, strict=True)]
    return sorted(labelled, key=lambda one: (one.ours.device, one.label))


def differing(found: Sequence[Configured]) -> set[str]:
    """Returns the keys in which configurations differ."""
    keys = {key for one in found for key in one.config}
    return {key for key in keys if len({json.dumps(one.config.get(key)) for one in found}) > 1}


def settings(one: Configured, keys: set[str]) -> list[str]:
    """Returns what a configuration says of these keys."""
    # A key that came after the first runs is left out of their configuration, and where it changes nothing.
    named = {key: key.partition(".")[2] for key in sorted(keys)}
    return [f"{name} {one.config[key]}" if key in one.config else f"without {name}" for key, name in named.items()]


def devices_of(places: dict[tuple[str, str], list[Variant]]) -> list[str]:
    """Returns the devices of all."""
    return sorted({one.ours.device for found in places.values() for one in found})


def network(model: str) -> str:
    """Returns an architecture's name with its family, as there may be several in a table; other names as they are."""
    label = model_label(model)
    return label if label == model else f"{family_label(model)} {label}"
