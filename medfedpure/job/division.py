"""The data of a run: dealt to clients, and each share into parts that no near-duplicate crosses."""

from __future__ import annotations

from medfedpure.core.dataset import ImageDataset, check_disjoint
from medfedpure.core.registry import create
from medfedpure.core.streams import derive_seed
from medfedpure.job.config import DataChoice, RunConfig

Parts = dict[str, dict[str, ImageDataset]]


def divide(config: RunConfig) -> Parts:
    """Parts by client and name; equal configurations, equal parts."""
    return deal(config.data, config.seed)


def deal(choice: DataChoice, seed: int) -> Parts:
    """Parts by client and name, of the data alone."""
    data = create("dataset", choice.plugin, choice.config).read()
    if choice.max_per_group is not None:
        data = data.cap_groups(choice.max_per_group, seed)
    shares = data.partition(choice.clients, by=choice.partition, alpha=choice.alpha, seed=seed)
    return {
        f"client_{number}": share.split(choice.fractions(), seed=derive_seed(seed, "parts", number))
        for number, share in enumerate(shares)
    }


def check_clients_disjoint(parts: Parts) -> None:
    """Raise DataError where two clients hold images of one group."""
    check_disjoint({client: ImageDataset.concatenate(list(own.values())) for client, own in parts.items()})
