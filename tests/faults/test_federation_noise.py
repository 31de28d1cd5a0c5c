"""The noise of differential privacy cannot be searched: all of its entropy counts."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import medfedpure.federation
from medfedpure.core.errors import FederationError
from medfedpure.core.personalization import Update
from medfedpure.federation.privacy import PrivacyConfig, epsilon, private_mean

FOLDER = Path(medfedpure.federation.__file__).parent
CONFIG = PrivacyConfig(clip=1.0, noise_multiplier=2.0)
ENTROPY = bytes(range(32))


def noise(entropy: bytes | None, size: int = 4) -> torch.Tensor:
    """What is added to a sum of nothing, for one client."""
    previous = {"w": torch.zeros(size, dtype=torch.float64)}
    return private_mean(CONFIG, 1, previous, [Update("a", previous, 1)], entropy=entropy)["w"]


def test_a02_each_bit_of_256_changes_the_noise() -> None:
    """A2: noise of 32 bits of seed can be searched, and subtracted from the shared tensors."""
    first = noise(ENTROPY)
    assert torch.equal(first, noise(ENTROPY)), "the noise must be a function of its entropy"
    seen = {tuple(first.tolist())}
    for bit in range(256):
        changed = bytearray(ENTROPY)
        changed[bit // 8] ^= 1 << bit % 8
        other = noise(bytes(changed))
        assert not bool((other == first).any()), f"bit {bit} leaves values of the noise as they are"
        seen.add(tuple(other.tolist()))
    assert len(seen) == 257


def test_a02_noise_without_injected_entropy_never_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """A2: 256 fresh bits of the operating system at every call."""
    asked: list[int] = []
    real = medfedpure.federation.noise.secrets.token_bytes

    def token_bytes(size: int) -> bytes:
        asked.append(size)
        return real(size)

    monkeypatch.setattr("medfedpure.federation.noise.secrets.token_bytes", token_bytes)
    assert not torch.equal(noise(None), noise(None))
    assert asked == [32, 32]


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a02_too_little_entropy_is_refused(size: int) -> None:
    """A2: an argument of fewer bytes would bring the small seed back."""
    with pytest.raises(FederationError, match="32 bytes"):
        noise(bytes(size))


def test_a02_the_noise_is_gaussian_and_independent() -> None:
    """A2: sums of four draws have the variance that the accountant counts on."""
    drawn = noise(ENTROPY, 400_001) / 2.0
    assert float(drawn.mean()) == pytest.approx(0, abs=0.006)
    assert float(drawn.std()) == pytest.approx(1, abs=0.004)
    assert float(drawn.pow(3).mean()) == pytest.approx(0, abs=0.02)
    assert float(drawn.pow(4).mean()) == pytest.approx(3, abs=0.06)
    inside = [float((drawn.abs() < width).double().mean()) for width in (1.0, 2.0, 3.0)]
    assert inside == pytest.approx([0.6827, 0.9545, 0.9973], abs=0.002)
    halves = drawn[:-1].reshape(2, -1)
    assert float((halves[0] * halves[1]).mean()) == pytest.approx(0, abs=0.01)
    assert float((drawn[1:] * drawn[:-1]).mean()) == pytest.approx(0, abs=0.01)
    parts = {"v": torch.zeros(3, 5, dtype=torch.float64), "w": torch.zeros(15, dtype=torch.float64)}
    both = private_mean(CONFIG, 1, parts, [], entropy=ENTROPY)
    assert not bool((both["v"].flatten() == both["w"]).any()), "two tensors must not share their noise"


def test_a02_every_value_is_the_sum_of_several_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A2: one draw of floating-point noise tells by its last bits what it was added to (Holohan and Braghin 2021)."""
    wanted: list[int] = []
    real = medfedpure.federation.noise.SecretNoise._normal

    def counted(self: object, size: int) -> object:
        wanted.append(size)
        return real(self, size)  # type: ignore[arg-type]

    monkeypatch.setattr(medfedpure.federation.noise.SecretNoise, "_normal", counted)
    noise(ENTROPY, 7)
    assert wanted == [7, 7, 7, 7]


@pytest.mark.parametrize("name", ["noise.py", "privacy.py"])
def test_a02_no_seeded_generator_is_near_the_noise(name: str) -> None:
    """A2: torch.Generator, and what draws from torch's or Python's own generators, stays out of these files."""
    tree = ast.parse((FOLDER / name).read_text(encoding="utf-8"))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names
    }
    banned = {"Generator", "manual_seed", "rand", "randn", "randn_like", "rand_like", "normal", "normal_", "random"}
    assert not used & banned


def test_a02_the_price_of_privacy_is_as_it_was() -> None:
    """A2: the accountant's figures do not depend on where the noise comes from."""
    pytest.importorskip("dp_accounting")
    config = PrivacyConfig(clip=1.0, noise_multiplier=4.0, delta=1e-5)
    spent = [epsilon(config, rounds) for rounds in (0, 1, 4, 16)]
    assert spent == pytest.approx([0.0, 1.0125506277526433, 2.165715659029443, 4.728507067217623], rel=1e-6)
