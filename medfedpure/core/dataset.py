"""Images in memory as uint8, their labels, and the groups that must not be split."""

from __future__ import annotations

import hashlib
import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Literal, Self

import torch
from safetensors.torch import save
from torch import Tensor

from medfedpure.core.component import Component
from medfedpure.core.errors import DataError
from medfedpure.core.streams import derive_seed


@dataclass(frozen=True)
class Batch:
    """Images `(N, C, H, W)` float32 in [0, 1], labels `(N,)` int64, ids `(N,)` int64."""

    images: Tensor
    labels: Tensor
    ids: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with images and labels on a device; ids stay on the CPU."""
        return Batch(self.images.to(device), self.labels.to(device), self.ids)


@dataclass(frozen=True)
class ImageDataset:
    """A labelled set of images, decoded once and kept as uint8.

    Attributes:
        pixels: `(N, C, H, W)` uint8.
        labels: `(N,)` int64 in 0 ... K - 1.
        groups: `(N,)` int64; images of one group are near-duplicates (or of one patient) and are
            never separated by `split` or `partition`.
        class_names: K names; the last one is the positive class of a two-class task.
        ids: `(N,)` int64, distinct; they key the random streams and survive `select`.
        sites: `(N,)` int64, the scanner or hospital an image came from; -1 where unknown.
        masks: `(N, 1, H, W)` bool lesion masks, or None.
        name: for reports.
    """

    pixels: Tensor
    labels: Tensor
    groups: Tensor
    class_names: tuple[str, ...]
    ids: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    sites: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    masks: Tensor | None = None
    name: str = "images"

    def __post_init__(self) -> None:
        size = self.pixels.shape[0]
        if self.pixels.ndim != 4 or self.pixels.dtype != torch.uint8:
            raise DataError(f"pixels must be uint8 (N, C, H, W); got {self.pixels.dtype} {tuple(self.pixels.shape)}")
        if self.ids.numel() == 0 and size:
            object.__setattr__(self, "ids", torch.arange(size))
        if self.sites.numel() == 0 and size:
            object.__setattr__(self, "sites", torch.full((size,), -1, dtype=torch.int64))
        for what in ("labels", "groups", "ids", "sites"):
            value = getattr(self, what)
            if value.dtype != torch.int64 or value.shape != (size,):
                raise DataError(f"{what} must be int64 ({size},); got {value.dtype} {tuple(value.shape)}")
        if size and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.class_names):
            raise DataError(f"labels must lie in 0 ... {len(self.class_names) - 1}; got up to {int(self.labels.max())}")
        if self.ids.unique().numel() != size:
            raise DataError("ids must be distinct: two images would receive the same noise")
        if self.masks is not None and self.masks.shape != (size, 1, *self.pixels.shape[2:]):
            raise DataError(f"masks must be ({size}, 1, H, W); got {tuple(self.masks.shape)}")

    def __len__(self) -> int:
        return self.pixels.shape[0]

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    @property
    def images(self) -> Tensor:
        """All images as float32 in [0, 1], `(N, C, H, W)`; makes a copy four times the size."""
        return self.pixels.float().div_(255.0)

    @cached_property
    def num_groups(self) -> int:
        """How many independent groups there are: the effective sample size is nearer to this."""
        return int(self.groups.unique().numel())

    def fingerprint(self) -> str:
        """SHA-256 of pixels, labels and groups in order: equal data, equal text."""
        content = {"pixels": self.pixels, "labels": self.labels, "groups": self.groups}
        return hashlib.sha256(save({key: value.contiguous() for key, value in content.items()})).hexdigest()

    def select(self, index: Tensor) -> Self:
        """A subset by positions `(M,)` int64 or a mask `(N,)` bool; ids travel along."""
        masks = None if self.masks is None else self.masks[index]
        return replace(
            self,
            pixels=self.pixels[index],
            labels=self.labels[index],
            groups=self.groups[index],
            ids=self.ids[index],
            sites=self.sites[index],
            masks=masks,
        )

    def one_per_group(self, seed: int = 0) -> Self:
        """One image of each group, chosen by the seed, in the order of the data."""
        return self.cap_groups(1, seed)

    def cap_groups(self, most: int, seed: int = 0) -> Self:
        """At most `most` images of each group, chosen by the seed, in the order of the data."""
        order = torch.randperm(len(self), generator=_generator(seed, "cap"))
        kept: dict[int, int] = {}
        chosen = []
        for place in order.tolist():
            group = int(self.groups[place])
            if kept.get(group, 0) < most:
                kept[group] = kept.get(group, 0) + 1
                chosen.append(place)
        return self.select(torch.tensor(sorted(chosen), dtype=torch.int64))

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """The data in order, converted to float batch by batch."""
        for start in range(0, len(self), batch_size):
            yield self.batch(torch.arange(start, min(start + batch_size, len(self))))

    def batch(self, index: Tensor) -> Batch:
        """One batch of the images at `(N,)` positions, as floats in [0, 1]."""
        return Batch(self.pixels[index].float().div_(255.0), self.labels[index], self.ids[index])

    def split(
        self, fractions: Mapping[str, float], *, by: Literal["group", "image"] = "group", seed: int = 0
    ) -> dict[str, Self]:
        """Disjoint parts of about the given sizes, stratified by label.

        Args:
            fractions: positive shares by part name; they are normalized to sum to one.
            by: "group" never separates a group; "image" ignores groups and leaks near-duplicates,
                for comparison with papers that do so.
            seed: of the assignment.

        Raises:
            DataError: a part would remain empty.
        """
        if not fractions or min(fractions.values()) <= 0:
            raise DataError(f"fractions must be positive; got {dict(fractions)}")
        groups = self.groups if by == "group" else torch.arange(len(self))
        parts = _assign(groups, self.labels, list(fractions.values()), derive_seed(seed, "split"))
        result = {name: self.select(parts == place) for place, name in enumerate(fractions)}
        empty = [name for name, part in result.items() if len(part) == 0]
        if empty:
            count = int(groups.unique().numel())
            raise DataError(f"{count} groups are too few for parts {', '.join(fractions)}: {', '.join(empty)} is empty")
        return result

    def partition(
        self, clients: int, *, by: Literal["dirichlet", "site", "equal"] = "equal", alpha: float = 1.0, seed: int = 0
    ) -> list[Self]:
        """Distribute the data over clients; a group never crosses clients.

        Args:
            clients: how many.
            by: "dirichlet" draws each class's shares over clients from Dirichlet(alpha), smaller
                alpha = more skew; "site" gives whole scanners or hospitals to clients in turn, and a group
                of several sites goes with the lowest;
                "equal" deals groups evenly within each class.
            alpha: concentration of the Dirichlet distribution.
            seed: of the assignment.

        Raises:
            DataError: a client would remain empty.
        """
        if clients < 1 or len(self) == 0:
            raise DataError(f"{len(self)} images cannot be distributed over {clients} clients")
        if by == "site":
            known = self.sites.unique()
            if int(known.min()) < 0 or known.numel() < clients:
                raise DataError(f"{self.name} names {known.numel()} sites (-1 = unknown); {clients} are needed")
            unique, inverse = self.groups.unique(return_inverse=True)
            home = torch.zeros_like(unique).scatter_reduce_(0, inverse, self.sites, "amin", include_self=False)
            owner = (torch.searchsorted(known, home) % clients)[inverse]
        elif by == "dirichlet":
            shares = _dirichlet(self.num_classes, clients, alpha, seed)
            owner = _assign(self.groups, self.labels, shares, derive_seed(seed, "partition"))
        elif by == "equal":
            owner = _assign(self.groups, self.labels, [1.0] * clients, derive_seed(seed, "partition"))
        else:
            raise DataError(f"by must be 'dirichlet', 'site' or 'equal'; got {by!r}")
        parts = [self.select(owner == client) for client in range(clients)]
        if any(len(part) == 0 for part in parts):
            sizes = [len(part) for part in parts]
            raise DataError(f"a client would hold no image (sizes {sizes}): fewer clients or a larger alpha")
        return parts

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join parts of one data set; their ids stay distinct."""
        masks = [part.masks for part in parts if part.masks is not None]
        return replace(
            parts[0],
            pixels=torch.cat([part.pixels for part in parts]),
            labels=torch.cat([part.labels for part in parts]),
            groups=torch.cat([part.groups for part in parts]),
            ids=torch.cat([part.ids for part in parts]),
            sites=torch.cat([part.sites for part in parts]),
            masks=torch.cat(masks) if masks else None,
        )


class Dataset(Component):
    """A source of images: configuration in, `ImageDataset` out.

    One method to write: `read`. It must be deterministic: equal configuration, equal data.
    """

    kind: ClassVar[str] = "dataset"

    @abstractmethod
    def read(self) -> ImageDataset:
        """Read or draw everything.

        Raises:
            DataError: files that cannot be read; the text names them.
        """
        raise NotImplementedError


def check_disjoint(parts: Mapping[str, ImageDataset]) -> dict[str, str]:
    """Fingerprints of parts, after making sure that no group stands in two of them.

    Raises:
        DataError: two parts share a group, so a test image could have a twin in training.
    """
    seen: dict[int, str] = {}
    for name, part in parts.items():
        for group in part.groups.unique().tolist():
            if group in seen:
                raise DataError(f"group {group} stands in both {seen[group]} and {name}: split by group")
            seen[group] = name
    return {name: part.fingerprint() for name, part in parts.items()}


def _generator(seed: int, purpose: str) -> torch.Generator:
    generator = torch.Generator()
    generator.manual_seed(derive_seed(seed, purpose))
    return generator


def _dirichlet(classes: int, clients: int, alpha: float, seed: int) -> list[list[float]]:
    if alpha <= 0:
        raise DataError(f"alpha must be positive; got {alpha}")
    generator = random.Random(derive_seed(seed, "dirichlet"))
    # Independent gamma variates divided by their sum are Dirichlet; _assign normalizes each row.
    return [[generator.gammavariate(alpha, 1.0) + 1e-9 for _ in range(clients)] for _ in range(classes)]


def _assign(groups: Tensor, labels: Tensor, shares: Sequence[float] | Sequence[Sequence[float]], seed: int) -> Tensor:
    """Give every group to one part, so that each part nears its share of each class.

    Groups go, largest first (ties by a seeded shuffle), to the part that lacks the largest fraction
    of its target for the group's label. `shares` is one row for all classes or a row for each class.
    """
    unique, inverse = groups.unique(return_inverse=True)
    sizes = torch.bincount(inverse, minlength=unique.numel())
    group_labels = torch.zeros(unique.numel(), dtype=torch.int64).scatter_(0, inverse, labels)
    owner = torch.zeros(unique.numel(), dtype=torch.int64)
    generator = _generator(seed, "order")
    for label in group_labels.unique().tolist():
        row = shares[label] if isinstance(shares[0], Sequence) else shares
        target = torch.tensor(row, dtype=torch.float64)
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
