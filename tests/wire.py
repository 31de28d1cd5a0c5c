"""What crossed the wire of a run, as bytes; and the search for what must never be in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from flwr.app import Message
from flwr.common.serde import message_to_proto
from safetensors.torch import load_file
from torch import Tensor

from medfedpure.core.dataset import ImageDataset


class Wire:
    """A tap that keeps every message as it is serialized."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    def __call__(self, message: Message) -> None:
        """Keep a message."""
        self.messages.append(message_to_proto(message).SerializeToString())

    @property
    def everything(self) -> bytes:
        """All messages, one after the other."""
        return b"".join(self.messages)


def telling(value: Tensor) -> bool:
    """Constants, such as the statistics before the first batch, are the same everywhere and tell nothing."""
    return value.is_floating_point() and value.numel() > 1 and float(value.std()) > 0


def assert_the_tap_sees(shared: Mapping[str, Tensor], everything: bytes) -> None:
    """Without this, a search that finds nothing would prove nothing."""
    missed = [key for key, value in shared.items() if telling(value) and value.numpy().tobytes() not in everything]
    assert not missed, f"the tap missed what is known to travel: {missed}"


def assert_nothing_private(states: Iterable[Path], shared: Mapping[str, Tensor], everything: bytes) -> None:
    """No tensor that a client keeps on its disk is in any message; what is not telling has no bytes of its own."""
    searched, kept = 0, set()
    for path in states:
        for key, value in load_file(path).items():
            assert key not in shared, f"{key} is kept by client {path.parent.name}, and travels"
            if value.is_floating_point():
                kept.add(key)
            if telling(value):
                searched += 1
                assert value.numpy().tobytes() not in everything, f"values of {key} left client {path.parent.name}"
    assert searched or not kept, f"none of {sorted(kept)} could be searched for"


def assert_no_scan(images: ImageDataset, everything: bytes) -> None:
    """No row of an image is in any message, neither as stored nor as the networks read it."""
    for rows in (images.pixels[:, 0, 8], images.images[:, 0, 8]):
        assert not any(row.numpy().tobytes() in everything for row in rows), "a row of a scan left its client"


def difference(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """The largest difference of tensors of one name."""
    assert left.keys() == right.keys()
    return max((float((left[key].double() - right[key].double()).abs().max()) for key in left), default=0.0)
