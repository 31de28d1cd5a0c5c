"""The data of a run: dealt to clients, and each share into parts that no near-duplicate crosses."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from medfedpure.core.dataset import ImageDataset, check_disjoint
from medfedpure.core.errors import DataError
from medfedpure.core.registry import create, registry
from medfedpure.core.streams import derive_seed
from medfedpure.job.config import DataChoice, RunConfig
from medfedpure.job.enough import advice, check_class_names, wanted_in_all

Parts = dict[str, dict[str, ImageDataset]]


def divide(config: RunConfig, cache: Path | None = None) -> Parts:
    """Parts by client and name; equal configurations, equal parts.

    Args:
        config: of the run.
        cache: folder for decoded images and their groups, where the data set plugin keeps such and its own
            configuration says nothing of it; None = they are not kept.

    Raises:
        DataError: a single class, or images that are too few.
    """
    data = _read(config.data, config.seed, cache)
    check_class_names(data.class_names, data.name)
    try:
        return _dealt(data, config.data, config.seed)
    except DataError as error:
        if data.num_groups >= wanted_in_all(config):
            raise
        raise DataError(f"{error}. {advice(len(data), data.num_groups, config)}") from error


def deal(choice: DataChoice, seed: int) -> Parts:
    """Parts by client and name, of the data alone."""
    return _dealt(_read(choice, seed), choice, seed)


def _read(choice: DataChoice, seed: int, cache: Path | None = None) -> ImageDataset:
    field = registry().load("dataset", choice.plugin).Config.model_fields.get("cache")
    # a plugin of somebody else's may mean something else by that name
    keeps = cache is not None and field is not None and Path in (field.annotation, *get_args(field.annotation))
    own = {"cache": cache, **choice.config} if keeps else choice.config
    data: ImageDataset = create("dataset", choice.plugin, own).read()
    return data if choice.max_per_group is None else data.cap_groups(choice.max_per_group, seed)


def _dealt(data: ImageDataset, choice: DataChoice, seed: int) -> Parts:
    try:
        shares = data.partition(choice.clients, by=choice.partition, alpha=choice.alpha, seed=seed)
    except DataError as error:
        if choice.partition != "site":
            raise
        raise DataError(
            f'data.partition is "site", and {error}; "equal" deals groups, such as patients, evenly'
        ) from error
    return {
        f"client_{number}": share.split(choice.fractions(), seed=derive_seed(seed, "parts", number))
        for number, share in enumerate(shares)
    }


def check_clients_disjoint(parts: Parts) -> None:
    """Raise DataError where two clients hold images of one group."""
    check_disjoint({client: ImageDataset.concatenate(list(own.values())) for client, own in parts.items()})
