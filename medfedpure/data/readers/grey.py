"""Stored values of a scan to grey in [0, 1]: modality, window, and what takes its place (DICOM PS3.3 C.11.1, C.11.2).

values = stored * slope + intercept, or the modality table
grey   = (values - (centre - 0.5)) / (width - 1) + 0.5, cut to [0, 1]            LINEAR
grey   = (values - centre) / width + 0.5, cut to [0, 1]                          LINEAR_EXACT
grey   = 1 / (1 + exp(-4 (values - centre) / width))                             SIGMOID
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy
from numpy.typing import NDArray

from medfedpure.core.errors import DataError

Floats = NDArray[numpy.float64]
Whole = NDArray[Any]
Window = Literal["auto", "percentiles", "full"] | tuple[float, float]
"""auto = the file's own table or first window, else percentiles; full = all that the stored bits can say; or ends."""
PERCENTILES = (0.5, 99.5)
_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


@dataclass(frozen=True)
class Table:
    """A lookup table: `entries` from the value `first` on, the ends standing for all beyond; `top` is white."""

    first: int
    entries: Whole
    top: int

    def of(self, values: Whole) -> Whole:
        """The entry of each value; fractions are cut off."""
        places = numpy.clip(numpy.trunc(values) - self.first, 0, len(self.entries) - 1)
        return numpy.asarray(self.entries[places.astype(numpy.int64)])


@dataclass(frozen=True)
class Rules:
    """How the stored values of one frame become grey.

    Attributes:
        bits: stored of a value.
        signed: whether they may be negative.
        slope: of the rescale.
        intercept: of the rescale.
        modality: a table in place of the rescale.
        voi: a table in place of a window.
        centre: of the first window.
        width: of it, in values; None = there is none that may be used.
        function: of the window.
    """

    bits: int
    signed: bool
    slope: float = 1.0
    intercept: float = 0.0
    modality: Table | None = None
    voi: Table | None = None
    centre: float = 0.0
    width: float | None = None
    function: str = "LINEAR"

    def values(self, stored: Whole) -> Whole:
        """After the modality's table or rescale, float64; `stored` of any shape."""
        if self.modality is not None:
            return self.modality.of(stored).astype(numpy.float64)
        return stored.astype(numpy.float64) * self.slope + self.intercept

    def ends(self) -> tuple[float, float]:
        """The least and the largest value that the stored bits can say."""
        if self.modality is not None:
            return 0.0, float(self.modality.top)
        low, high = (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1) if self.signed else (0, 2**self.bits - 1)
        one, other = low * self.slope + self.intercept, high * self.slope + self.intercept
        return min(one, other), max(one, other)

    def has_window(self) -> bool:
        """Whether the file brings a table or a window that may be used."""
        return self.voi is not None or self.width is not None

    def windowed(self, values: Floats) -> Floats:
        """Values through the file's own table or window, [0, 1]."""
        if self.voi is not None:
            return numpy.clip(self.voi.of(values) / self.voi.top, 0.0, 1.0)
        assert self.width is not None
        if self.function == "SIGMOID":
            with numpy.errstate(over="ignore"):
                return 1.0 / (1.0 + numpy.exp(-4.0 * (values - self.centre) / self.width))
        exact = self.function == "LINEAR_EXACT"
        centre, width = (self.centre, self.width) if exact else (self.centre - 0.5, self.width - 1.0)
        return between(values, centre - width / 2, centre + width / 2)


def between(values: Floats, low: float, high: float) -> Floats:
    """0 at the lower end, 1 at the upper, straight between; values that are not finite are 0. Equal ends: a step."""
    if high > low:
        grey = numpy.clip((values - low) / (high - low), 0.0, 1.0)
    else:
        grey = (values > low).astype(numpy.float64)
    return numpy.where(numpy.isfinite(values), grey, 0.0)


def percentile_ends(
    values: Floats, counts: NDArray[numpy.int64] | None = None, percentiles: tuple[float, float] = PERCENTILES
) -> tuple[float, float]:
    """The values below which these shares lie (the inverse of the cumulative distribution, without interpolation).

    Args:
        values: finite, of any order; the same may stand there twice.
        counts: how often each occurs; once by default.
        percentiles: in [0, 100].

    Returns:
        Both ends; where they are equal the least and the largest value; (0, 0) of nothing.
    """
    flat = values.reshape(-1)
    if not flat.size:
        return 0.0, 0.0
    total = flat.size if counts is None else int(counts.sum())
    wanted = [max(math.ceil(share / 100 * total), 1) for share in percentiles]
    if counts is None:  # a volume has millions: they need no order beyond these places
        places = [0, *(place - 1 for place in wanted), total - 1]
        least, low, high, most = numpy.partition(flat, places)[places].tolist()
    else:
        order = numpy.argsort(flat, kind="stable")
        flat, below = flat[order], numpy.cumsum(counts[order])
        low, high = (float(flat[numpy.searchsorted(below, place)]) for place in wanted)
        least, most = float(flat[0]), float(flat[-1])
    return (low, high) if high > low else (least, most)


def rules_of(header: Any, frame: int, bits: int, signed: bool, little: bool) -> Rules:
    """Rules of one frame: what stands in its own functional groups, else in the shared ones, else in the file.

    Args:
        header: a pydicom data set.
        frame: from 0.
        bits: stored of a value.
        signed: whether they may be negative.
        little: byte order of the tables.

    Raises:
        DataError: a table or number that cannot be one; the text names the tag and never its value.
    """
    places = [*_groups(header, frame), header]
    modality = next(
        (one for one in _inner(places, "PixelValueTransformationSequence") if "RescaleSlope" in one), header
    )
    voi = next((one for one in _inner(places, "FrameVOILUTSequence") if _has(one)), header)
    told: dict[str, Any] = {}
    if modality.get("ModalityLUTSequence"):
        told["modality"] = _table(modality, "ModalityLUTSequence", little)
    elif "RescaleSlope" in modality and "RescaleIntercept" in modality:
        told["slope"] = _number(modality, "RescaleSlope", 1.0)
        told["intercept"] = _number(modality, "RescaleIntercept", 0.0)
    if voi.get("VOILUTSequence"):
        told["voi"] = _table(voi, "VOILUTSequence", little)
    elif _has(voi):
        told |= _window(voi)
    return Rules(bits, signed, **told)


def _has(header: Any) -> bool:
    return bool(header.get("VOILUTSequence")) or ("WindowCenter" in header and "WindowWidth" in header)


def _groups(header: Any, frame: int) -> list[Any]:
    """The functional groups that hold for a frame of an enhanced multi-frame file, its own first."""
    own = header.get("PerFrameFunctionalGroupsSequence") or ()
    shared = header.get("SharedFunctionalGroupsSequence") or ()
    return [*(own[frame : frame + 1]), *shared[:1]]


def _inner(places: Iterable[Any], sequence: str) -> Iterable[Any]:
    for place in places:
        yield from (place.get(sequence) or ())[:1]


def _window(header: Any) -> dict[str, Any]:
    """The first window, where its width is one that its function may have."""
    function = str(header.get("VOILUTFunction") or "LINEAR").strip().upper()
    width = _number(header, "WindowWidth", None)
    centre = _number(header, "WindowCenter", None)
    allowed = function in _FUNCTIONS and width is not None and (width >= 1 if function == "LINEAR" else width > 0)
    return {"centre": centre, "width": width, "function": function} if allowed and centre is not None else {}


def _number(header: Any, tag: str, missing: float | None) -> float | None:
    """The first of a tag's numbers."""
    found = header.get(tag)
    if found is None or found == "":
        return missing
    try:
        value = float(found[0]) if hasattr(found, "__len__") and not isinstance(found, str) else float(found)
    except (TypeError, ValueError, IndexError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"its {tag} is no finite number: repair the header, or give a window")
    return value


def _table(header: Any, sequence: str, little: bool) -> Table:
    """The first table of a sequence, of 8 to 16 bits an entry."""
    item = header.get(sequence)[0]
    told = [int(one) for one in item.get("LUTDescriptor") or ()]
    if len(told) != 3:
        raise DataError(f"the LUTDescriptor of its {sequence} has {len(told)} numbers, 3 are wanted: it is damaged")
    size, first, bits = (told[0] % 2**16) or 2**16, told[1], told[2]
    data = item.get("LUTData")
    if isinstance(data, bytes):
        kind = "u1" if len(data) < 2 * size else "<u2" if little else ">u2"
        data = numpy.frombuffer(data[: len(data) // int(kind[-1]) * int(kind[-1])], dtype=kind)
    entries = numpy.asarray(() if data is None else data, dtype=numpy.int64).reshape(-1)[:size]
    if not 8 <= bits <= 16 or len(entries) < size:
        raise DataError(
            f"its {sequence} holds {len(entries)} of {size} entries of {bits} bits; all, of 8 to 16 bits, are wanted: "
            "it is damaged"
        )
    return Table(first, entries, 2**bits - 1)
