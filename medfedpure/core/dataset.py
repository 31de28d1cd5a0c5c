"""Images in memory as whole numbers, their labels, and the groups that must not be split."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self, overload

import torch
from safetensors.torch import save
from torch import Tensor

from medfedpure.core.component import Component
from medfedpure.core.errors import DataError
from medfedpure.core.rows.division import assign, by_site, dirichlet
from medfedpure.core.rows.index import Index, places_of
from medfedpure.core.rows.table import Tabular
from medfedpure.core.storage import FORMAT
from medfedpure.core.streams import derive_seed

_LARGEST = {torch.uint8: 255, torch.uint16: 65535}
_WHOLE = ("labels", "groups", "ids", "sites")


def bits_of(pixels: Tensor) -> Tensor:
    """Pixels `(N, ...)` as a type that can be indexed, joined, compared for equality and saved: uint16 as int16.

    Torch and safetensors know uint16 only in part. Nothing is copied, and `.view(pixels.dtype)` leads back.
    """
    return pixels.view(torch.int16) if pixels.dtype == torch.uint16 else pixels


@dataclass(frozen=True)
class Attribute:
    """What is known of each image in words, such as sex, age band or hospital.

    Attributes:
        names: the V different values.
        values: `(N,)` int64, a place in `names`; -1 where unknown.
    """

    names: tuple[str, ...]
    values: Tensor

    def __post_init__(self) -> None:
        _check_whole("values of an attribute", self.values, len(self.values))
        if len(set(self.names)) != len(self.names):
            raise DataError(f"names of an attribute must be distinct; got {', '.join(self.names)}")
        low, high = (int(end) for end in self.values.aminmax()) if self.values.numel() else (-1, -1)
        if not -1 <= low <= high < len(self.names):
            raise DataError(f"values must lie in -1 ... {len(self.names) - 1}, -1 = unknown; got {low} ... {high}")


@dataclass(frozen=True)
class Batch:
    """Images `(N, C, H, W)` float32 in [0, 1], `(N,)` int64 labels and ids; masks, levels, attributes as a data set."""

    images: Tensor
    labels: Tensor
    ids: Tensor
    masks: Tensor | None = None
    levels: Mapping[str, Tensor] = field(default_factory=dict)
    attributes: Mapping[str, Attribute] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with images, labels and masks on a device; all else stays on the CPU."""
        masks = None if self.masks is None else self.masks.to(device)
        return replace(self, images=self.images.to(device), labels=self.labels.to(device), masks=masks)


@dataclass(frozen=True, repr=False)
class ImageDataset(Tabular):
    """A labelled set of images, decoded once and kept with 8 or 16 bits a value.

    Attributes:
        pixels: `(N, C, H, W)` uint8 or uint16.
        labels: `(N,)` int64 in 0 ... K - 1.
        groups: `(N,)` int64; images of one group are near-duplicates (or of one patient), never separated.
        class_names: K names.
        ids: `(N,)` int64, distinct; they key the random streams and survive `select`.
        sites: `(N,)` int64, the scanner or hospital an image came from; -1 where unknown.
        masks: `(N, 1, H, W)` bool lesion masks, or None.
        name: for reports.
        top: the pixel that stands for 1.0, such as 4095 for 12 bits; 0 becomes the largest of the type.
        levels: `(N,)` int64 by name, coarsest first: "patient", "study". A group holds whole patients.
        attributes: by name ("sex", "age band"), `(N,)` each.
        positive: numbers of the classes that are a finding; () becomes the last of two, and of several says nothing.
    """

    pixels: Tensor
    labels: Tensor
    groups: Tensor
    class_names: tuple[str, ...]
    ids: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    sites: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    masks: Tensor | None = None
    name: str = "images"
    top: int = 0
    levels: Mapping[str, Tensor] = field(default_factory=dict)
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    positive: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        pixels, masks = self.pixels, self.masks
        if not isinstance(pixels, Tensor) or pixels.ndim != 4 or pixels.dtype not in _LARGEST:
            raise DataError(f"pixels must be uint8 or uint16 (N, C, H, W); got {_kind_of(pixels)}")
        size = len(pixels)
        object.__setattr__(self, "top", self.top or _LARGEST[pixels.dtype])
        self._check_top()
        for what, usual in (("ids", torch.arange(size)), ("sites", torch.full((size,), -1))):
            if isinstance(getattr(self, what), Tensor) and getattr(self, what).numel() == 0:
                object.__setattr__(self, what, usual)
        for what in _WHOLE:
            _check_whole(what, getattr(self, what), size)
        if size and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.class_names):
            raise DataError(f"labels must lie in 0 ... {len(self.class_names) - 1}; got up to {int(self.labels.max())}")
        if self.ids.unique().numel() != size:
            raise DataError("ids must be distinct: two images would receive the same noise")
        if masks is not None and (masks.dtype != torch.bool or masks.shape != (size, 1, *pixels.shape[2:])):
            raise DataError(f"masks must be bool ({size}, 1, H, W); got {_kind_of(masks)}")
        object.__setattr__(self, "positive", self.positive or ((1,) if self.num_classes == 2 else ()))
        if not isinstance(self.positive, tuple) or not set(self.positive) <= set(range(self.num_classes)):
            raise DataError(f"positive must be numbers of some of {', '.join(self.class_names)}; got {self.positive!r}")
        self._check_levels(size)
        for name, attribute in self.attributes.items():
            _check_whole(f"values of attribute {name!r}", attribute.values, size)

    def _check_top(self) -> None:
        largest = _LARGEST[self.pixels.dtype]
        if not 1 <= self.top <= largest:
            raise DataError(f"top must lie in 1 ... {largest} for {self.pixels.dtype}; got {self.top}")
        parts = self.pixels.split(1024) if self.top < largest and self.pixels.numel() else ()  # int32 is large
        if (found := max((int(part.int().max()) for part in parts), default=0)) > self.top:
            raise DataError(f"no pixel may exceed top={self.top}; got {found}: raise top or scale the pixels")

    def _check_levels(self, size: int) -> None:
        above, outer = self.groups, "group"
        for name, level in self.levels.items():
            _check_whole(f"level {name!r}", level, size)
            unique, inverse = level.unique(return_inverse=True)
            home = torch.zeros_like(unique).scatter_(0, inverse, above)
            if bool((home[inverse] != above).any()):
                raise DataError(f"a {name} lies in more than one {outer}: a group holds levels, the coarsest first")
            above, outer = level, name

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "pixels": (bits_of(self.pixels), self.pixels.dtype)}  # torch cannot unpickle uint16

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        bits, dtype = state["pixels"]
        self.__dict__.update(state, pixels=bits.view(dtype))

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def __repr__(self) -> str:
        counts = zip(self.labels.bincount(minlength=self.num_classes).tolist(), self.class_names, strict=True)
        each = ", ".join(f"{count} {name!r}" for count, name in counts)
        kind = f"{' x '.join(map(str, self.image_shape))} {str(self.pixels.dtype).removeprefix('torch.')}"
        return f"ImageDataset {self.name!r}: {len(self)} images of {kind} in {self.num_groups} groups; {each}"

    @overload
    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...

    @overload
    def __getitem__(self, index: Index) -> Self: ...

    def __getitem__(self, index: int | Index) -> tuple[Tensor, int] | Self:
        """At one place `(C, H, W)` float32 in [0, 1] and its label; at several, what `select` gives."""
        places = places_of(index, len(self))
        if isinstance(places, Tensor):
            return self.select(places.cpu())
        one = self.batch(torch.tensor([places]))
        return one.images[0], int(one.labels)

    def columns(self) -> dict[str, list[Any]]:
        """Id, label, group, site, class, then levels and attributes by name; None where an attribute is unknown."""
        found: dict[str, list[Any]] = {key.removesuffix("s"): getattr(self, key).tolist() for key in ("ids", *_WHOLE)}
        found["class"] = [self.class_names[label] for label in found["label"]]
        found |= {f"level {name}" if name in found else name: level.tolist() for name, level in self.levels.items()}
        for name, attribute in self.attributes.items():
            words = [*attribute.names, None]  # -1 is the last
            key = f"attribute {name}" if name in found else name
            found[key] = [words[place] for place in attribute.values.tolist()]
        return found

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.pixels.shape[1], self.pixels.shape[2], self.pixels.shape[3]

    @property
    def images(self) -> Tensor:
        """All images as float32 in [0, 1], `(N, C, H, W)`, pixels / top; makes a copy of 4 bytes a value."""
        return self.pixels.float().div_(float(self.top))

    @cached_property
    def num_groups(self) -> int:
        """How many independent groups there are: the effective sample size is nearer to this."""
        return int(self.groups.unique().numel())

    def fingerprint(self, format: int = FORMAT) -> str:
        """SHA-256 of all but the name, in order: equal data, equal text.

        Format 1: pixels, labels and groups only, as saved before. DataError: there is no such format.
        """
        if not 1 <= format <= FORMAT:
            raise DataError(f"fingerprints have formats 1 to {FORMAT}; got {format}")
        content = self._tensors()
        if format == 1:
            told = {key: content[key].contiguous() for key in ("pixels", "labels", "groups")}
            return hashlib.sha256(save(told)).hexdigest()
        digest = hashlib.sha256(json.dumps(self._form()).encode())
        for key in sorted(content):  # one by one: safetensors refuses tensors that share memory
            digest.update(save({key: content[key].contiguous()}))
        return digest.hexdigest()

    def select(self, index: Tensor) -> Self:
        """A subset by positions `(M,)` int64 or a mask `(N,)` bool; all else travels along."""
        return replace(self, **self._fields({key: value[index] for key, value in self._tensors().items()}))

    def one_per_group(self, seed: int = 0) -> Self:
        """One image of each group, chosen by the seed, in the order of the data."""
        return self.cap_groups(1, seed)

    def cap_groups(self, most: int, seed: int = 0) -> Self:
        """At most `most` >= 1 images of each group, chosen by the seed, in the order of the data."""
        if most < 1:
            raise DataError(f"at least one image of each group is wanted; got {most}")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(derive_seed(seed, "cap")))
        order = order[self.groups[order].argsort(stable=True)]
        sizes = self.groups.unique(return_counts=True)[1]
        rank = torch.arange(len(self)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        return self.select(order[rank < most].sort().values)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """The data in order, converted to float batch by batch."""
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1; got {batch_size}")
        for start in range(0, len(self), batch_size):
            yield self.batch(torch.arange(start, min(start + batch_size, len(self))))

    def batch(self, index: Tensor) -> Batch:
        """One batch of the images at `(N,)` positions, as floats in [0, 1], pixels / top."""
        found = self._fields({key: value[index] for key, value in self._tensors().items()})
        images = found["pixels"].float().div_(float(self.top))
        return Batch(images, **{key: found[key] for key in ("labels", "ids", "masks", "levels", "attributes")})

    def split(
        self, fractions: Mapping[str, float], *, by: Literal["group", "image"] = "group", seed: int = 0
    ) -> dict[str, Self]:
        """Disjoint parts of about the given sizes, stratified by label.

        Args:
            fractions: positive shares by part name; they are normalized to sum to one.
            by: "group" never separates a group; "image" leaks near-duplicates, for comparison with papers that do.
            seed: of the assignment.

        Raises:
            DataError: a part would remain empty.
        """
        given = list(fractions.values())
        if by not in ("group", "image") or not given or not all(0 < share < 1e9 for share in given):
            raise DataError(f"by is 'group' or 'image', fractions are positive; got {by!r}, {dict(fractions)}")
        groups = self.groups if by == "group" else torch.arange(len(self))
        parts = assign(groups, self.labels, [given] * self.num_classes, derive_seed(seed, "split"))
        result = {name: self.select(parts == place) for place, name in enumerate(fractions)}
        if empty := [name for name, part in result.items() if len(part) == 0]:
            few = f"{groups.unique().numel()} groups are too few for parts {', '.join(fractions)}"
            raise DataError(f"{few}: {', '.join(empty)} is empty")
        return result

    def partition(
        self, clients: int, *, by: Literal["dirichlet", "site", "equal"] = "equal", alpha: float = 1.0, seed: int = 0
    ) -> list[Self]:
        """Distribute the data over clients; a group never crosses clients.

        Args:
            clients: how many.
            by: "dirichlet" draws each class's shares over clients from Dirichlet(alpha), smaller alpha = more skew;
                "site" gives whole scanners or hospitals to clients in turn, and a group of several sites goes with
                the lowest; "equal" deals groups evenly within each class.
            alpha: concentration of the Dirichlet distribution, up to a million, where shares are all but equal.
            seed: of the assignment.

        Raises:
            DataError: a client would remain empty, or alpha is no such number.
        """
        if by not in ("dirichlet", "site", "equal") or not 0 < alpha <= 1e6:
            raise DataError(f"by is 'dirichlet', 'site' or 'equal', alpha in (0, 1000000]; got {by!r}, {alpha}")
        if clients < 1 or len(self) == 0:
            raise DataError(f"{len(self)} images cannot be distributed over {clients} clients")
        if by == "site":
            known = self.sites.unique()
            if int(known.min()) < 0 or known.numel() < clients:
                raise DataError(f"{self.name} names {known.numel()} sites, not {clients}: 'equal' needs none")
            owner = by_site(self.groups, self.sites, clients)
        else:
            even = [[1.0] * clients] * self.num_classes
            shares = dirichlet(self.num_classes, clients, alpha, seed) if by == "dirichlet" else even
            owner = assign(self.groups, self.labels, shares, derive_seed(seed, "partition"))
        parts = [self.select(owner == client) for client in range(clients)]
        if 0 in (sizes := [len(part) for part in parts]):
            raise DataError(f"a client would hold no image (sizes {sizes}): fewer clients or a larger alpha")
        return parts

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join parts of one data set; DataError where they differ in classes, their order, or what they carry."""
        if not parts:
            raise DataError("there is no part to join")
        for part in parts[1:]:
            for what, wanted in parts[0]._form().items():
                if (found := part._form()[what]) != wanted:
                    raise DataError(f"parts of one data set are joined, but their {what} differ: {wanted} and {found}")
        rows = [part._tensors() for part in parts]
        return replace(parts[0], **parts[0]._fields({key: torch.cat([one[key] for one in rows]) for key in rows[0]}))

    def _tensors(self) -> dict[str, Tensor]:
        """All that has a row for each image, in types that can be indexed, joined and saved."""
        return {
            "pixels": bits_of(self.pixels),
            **{what: getattr(self, what) for what in _WHOLE},
            **({} if self.masks is None else {"masks": self.masks}),
            **{f"level {name}": level for name, level in self.levels.items()},
            **{f"attribute {name}": attribute.values for name, attribute in self.attributes.items()},
        }

    def _fields(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The fields that hold such tensors."""
        return {
            "pixels": tensors["pixels"].view(self.pixels.dtype),
            **{what: tensors[what] for what in _WHOLE},
            "masks": tensors.get("masks"),
            "levels": {name: tensors[f"level {name}"] for name in self.levels},
            "attributes": {key: Attribute(a.names, tensors[f"attribute {key}"]) for key, a in self.attributes.items()},
        }

    def _form(self) -> dict[str, Any]:
        """What parts must have in common to be joined."""
        return {
            "classes": self.class_names,
            "positive": self.positive,
            "size": self.image_shape,
            "pixels": f"{self.pixels.dtype} up to {self.top}",
            "masks": "none" if self.masks is None else "given",
            "levels": list(self.levels),
            "attributes": {name: list(self.attributes[name].names) for name in sorted(self.attributes)},
        }


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


def _check_whole(what: str, value: Tensor, size: int) -> None:
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.shape != (size,):
        raise DataError(f"{what} must be int64 ({size},); got {_kind_of(value)}")


def _kind_of(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
