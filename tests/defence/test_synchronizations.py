"""How often `predict` waits for its device, counted on one that is none, and on CUDA where it is at hand."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from chains import BENIGN, DATA
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import medfedpure
from medfedpure import Acceleration, DefendedClassifier
from medfedpure.acceleration.known import on_host
from medfedpure.core.registry import create
from medfedpure.defence.voting import Vote
from medfedpure.testing import tiny_classifier

THERE = torch.device("meta")
"""A device that every torch has, and that computes nothing."""
aten = torch.ops.aten
WAITING = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.unique_dim, aten._unique2}
PACKAGE = Path(medfedpure.__file__).parent


class Far(Tensor):
    """A tensor that says that it is on the device, and keeps its values beside it."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        made = Tensor._make_wrapper_subclass(cls, near.shape, strides=near.stride(), dtype=near.dtype, device=THERE)
        made.near = near
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} outside of the device")


class Device(TorchDispatchMode):
    """Computes what is far, and counts fetched tensors, further waiting, and who copied to it and waited."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched = 0
        self.waited: list[str] = []
        self.uploaded: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        leaves = tree_leaves((args, given))
        far = any(isinstance(leaf, Far) for leaf in leaves)
        asked = given.get("device")
        if asked is not None:
            given["device"] = torch.device("cpu")
        packet = function.overloadpacket
        masked = packet is aten.index and any(isinstance(x, Far) and x.dtype == torch.bool for x in args[1])
        stays = far
        if asked is not None:
            stays = asked.type == THERE.type
        if packet in (aten._to_copy, aten.copy_):
            source = args[1] if packet is aten.copy_ else args[0]
            stays = isinstance(args[0], Far) if packet is aten.copy_ else stays
            waits = not (given.get("non_blocking") or (packet is aten.copy_ and args[2:] == (True,)))
            if isinstance(source, Far) and not stays:
                self.fetched += 1
            elif not isinstance(source, Far) and stays and waits:
                self.uploaded.append(caller())
        elif far and (packet in WAITING or masked):
            self.waited.append(f"{function} in {caller()}")
        found = function(*tree_map(near, args), **tree_map(near, given))
        return tree_map(lambda x: Far(x) if isinstance(x, Tensor) else x, found) if stays else found


def near(value: Any) -> Any:
    return value.near if isinstance(value, Far) else value


def caller() -> str:
    """The file of the package that asked."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if PACKAGE in path.parents:
            return path.relative_to(PACKAGE).as_posix()
        frame = frame.f_back
    return "nowhere"


def moved(chain: DefendedClassifier) -> DefendedClassifier:
    for part in chain.modules():
        for name, value in part._parameters.items():
            part._parameters[name] = None if value is None else nn.Parameter(Far(value.data), requires_grad=False)
        for name, value in part._buffers.items():
            part._buffers[name] = None if value is None else Far(value)
    return chain


def made(
    policy: str, *, name: str = "ddpm", adaptive: bool = False, draws: int = 1, sampler: str = "ancestral"
) -> DefendedClassifier:
    options: dict[str, Any] = {"timestep": 2.5}
    if name != "diffpure":
        sampling = {"num_inference_steps": 3, "adaptive_steps": adaptive, "sampler": sampler}
        options = {"t_min": 20, "t_max": 60, "sampling": sampling}
    purifier = create("purifier", name, model={"widths": [8, 16]}, **options)
    purifier.adopt(purifier.make_network(DATA.image_shape, seed=0), DATA.image_shape).mark_fitted()
    if name == "one_step":
        purifier.student = purifier.network
    parts = [{"plugin": "score_norm"}, {"plugin": "denoising_disagreement", "config": {"timestep": 2}}]
    detector = create("detector", "compose", parts=parts).mark_fitted()
    chain = DefendedClassifier(tiny_classifier(), detector=detector, purifier=purifier, policy=policy, vote=Vote(draws))
    return chain.accelerate(Acceleration(noise="device")).calibrate(BENIGN.images[:40], 0.3)


CASES = [
    ("none", {}),
    ("abstain", {}),
    ("purify_flagged", {}),
    ("purify_all", {}),
    ("purify_all", {"sampler": "ddim"}),
    ("purify_flagged", {"adaptive": True}),
    ("purify_all", {"draws": 2}),
    ("purify_all", {"name": "diffpure"}),
    ("purify_flagged", {"name": "one_step"}),
]


@pytest.mark.parametrize(("policy", "options"), CASES)
def test_a_batch_waits_once_and_a_purified_batch_once_more(
    policy: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = made(policy, **options)
    wanted = chain.predict(DATA.images, seed=1, batch_size=8)
    purified: list[int] = []
    clean = DefendedClassifier.clean
    monkeypatch.setattr(DefendedClassifier, "clean", lambda self, *given: purified.append(1) or clean(self, *given))
    monkeypatch.setattr(torch, "autocast", lambda *given, **switches: nullcontext())  # unknown on that device
    with Device() as device:
        moved(chain)
        device.uploaded.clear()
        found = chain.predict(DATA.images, seed=1, batch_size=8)
    batches = -(-len(DATA) // 8)
    assert bool(purified) == (policy in ("purify_flagged", "purify_all")), "the test shows nothing of the purifier"
    assert not device.waited, f"waited for {device.waited}"
    assert device.fetched == batches + len(purified), "one for each batch, one for each purified batch"
    assert isinstance(found.labels, Far), "answers stay on the device"
    assert torch.equal(found.labels.near, wanted.labels)
    assert torch.equal(found.images.near, wanted.images)
    assert torch.equal(found.trace.nfe.near, wanted.trace.nfe)
    streams = {"core/streams.py", "defence/calibration.py"}
    assert set(device.uploaded) <= streams, f"copies that wait come from {set(device.uploaded) - streams}"


def test_the_device_that_counts_sees_what_waits() -> None:
    with Device() as device:
        far = torch.arange(4.0).to(THERE)
        assert device.uploaded, "a copy that waits"
        device.uploaded.clear()
        torch.arange(4.0).to(THERE, non_blocking=True)
        assert not device.uploaded
        for wait in (
            lambda: float(far.sum()),
            lambda: bool((far > 1).any()),
            lambda: far[far > 1],
            lambda: torch.where(far > 1),
            lambda: far.cpu(),
        ):
            before = len(device.waited) + device.fetched
            wait()
            assert len(device.waited) + device.fetched == before + 1
        assert on_host(far) is None, "nobody told the host"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(("policy", "options"), CASES)
def test_cuda_waits_no_more_often(policy: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    chain = made(policy, **options).to("cuda")
    chain.predict(DATA.images, seed=1, batch_size=8)  # what is done once, such as loading kernels
    images, fetched, fetch = DATA.images.to("cuda"), [], Tensor.cpu

    def counted(tensor: Tensor) -> Tensor:
        if tensor.device.type == "cpu":
            return tensor
        fetched.append(tensor.shape)
        torch.cuda.set_sync_debug_mode("default")
        try:
            return fetch(tensor)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    monkeypatch.setattr(Tensor, "cpu", counted)
    torch.cuda.set_sync_debug_mode("error")
    try:
        chain.predict(images, seed=1, batch_size=8)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    batches = -(-len(DATA) // 8)
    assert len(fetched) <= 2 * batches, f"{len(fetched)} fetched in {batches} batches"
