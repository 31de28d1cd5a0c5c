"""Float32 in full: inside the block, and as it was found after the last of several."""

from __future__ import annotations

import pytest
import torch

from medfedpure.acceleration.precision import full_precision
from medfedpure.defence.acceleration import Acceleration

CARD = torch.device("cuda")


@pytest.fixture(autouse=True)
def shortened():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32 = before


def test_the_last_block_puts_it_back():
    first, second = full_precision(True), full_precision(True)
    first.__enter__()
    second.__enter__()
    assert not torch.backends.cudnn.allow_tf32
    first.__exit__(None, None, None)
    assert not torch.backends.cudnn.allow_tf32
    second.__exit__(None, None, None)
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="one switch before PyTorch 2.9")
def test_two_switches_that_differ_are_put_back():
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    with full_precision(True):
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert torch.backends.cudnn.rnn.fp32_precision == "tf32"


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="one switch before PyTorch 2.9")
def test_a_switch_for_everything_is_overruled(monkeypatch):
    monkeypatch.setattr(torch.backends, "fp32_precision", "tf32")
    with full_precision(True):
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"


def test_a_chain_without_switches_computes_in_full_on_a_card():
    with Acceleration().active(CARD):
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32


def test_elsewhere_nothing_is_touched():
    with Acceleration().active(torch.device("cpu")):
        assert torch.backends.cudnn.allow_tf32
