"""Whole groups dealt to parts."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from medfedpure.core.streams import derive_seed


def assign(groups: Tensor, labels: Tensor, shares: Sequence[Sequence[float]], seed: int) -> Tensor:
    """Give every group to one part, so that each part nears its share of each class; the part of each image, `(N,)`.

    Groups go, largest first (ties by a seeded shuffle), to the part that lacks the largest fraction
    of its target for the group's label. `shares` has a row for each class.
    """
    unique, inverse = groups.unique(return_inverse=True)
    sizes = torch.bincount(inverse, minlength=unique.numel())
    group_labels = torch.zeros(unique.numel(), dtype=torch.int64).scatter_(0, inverse, labels)
    owner = torch.zeros(unique.numel(), dtype=torch.int64)
    generator = torch.Generator().manual_seed(derive_seed(seed, "order"))
    for label in group_labels.unique().tolist():
        target = torch.tensor(shares[label], dtype=torch.float64)
        members = (group_labels == label).nonzero().squeeze(1)
        target = target / target.sum() * float(sizes[members].sum())
        members = members[torch.randperm(members.numel(), generator=generator)]
        members = members[sizes[members].argsort(descending=True, stable=True)]
        filled = torch.zeros_like(target)
        for member in members.tolist():
            part = int(((target - filled) / target.clamp_min(1e-12)).argmax())
            owner[member] = part
            filled[part] += int(sizes[member])
    return owner[inverse]


def by_site(groups: Tensor, sites: Tensor, parts: int) -> Tensor:
    """Whole sites to parts in turn, `(N,)`; a group of several sites goes with the lowest."""
    unique, inverse = groups.unique(return_inverse=True)
    home = torch.zeros_like(unique).scatter_reduce_(0, inverse, sites, "amin", include_self=False)
    return (torch.searchsorted(sites.unique(), home) % parts)[inverse]


def dirichlet(classes: int, clients: int, alpha: float, seed: int) -> list[list[float]]:
    """Shares of each class over clients, a row for each class."""
    generator = random.Random(derive_seed(seed, "dirichlet"))  # noqa: S311 - divides data, keeps no secret
    # Independent gamma variates divided by their sum are Dirichlet; `assign` normalizes each row.
    return [[generator.gammavariate(alpha, 1.0) + 1e-9 for _ in range(clients)] for _ in range(classes)]
