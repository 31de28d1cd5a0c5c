"""What becomes of rows that a device does not hold at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medfedpure.core.attack import ThreatView, averaged
from medfedpure.core.registry import create
from medfedpure.core.rows.memory import halved_once
from medfedpure.testing import tiny_classifier, tiny_dataset

DATA = tiny_dataset(8, size=16)


class Small(nn.Module):
    """A classifier on a device that holds so many rows."""

    def __init__(self, holds: int) -> None:
        super().__init__()
        self.inner, self.holds, self.rows = tiny_classifier(16, 1), holds, []

    def forward(self, images: Tensor) -> Tensor:
        self.rows.append(len(images))
        if len(images) > self.holds:
            raise torch.OutOfMemoryError(f"{len(images)} rows")
        answer: Tensor = self.inner(images)
        return answer


@pytest.mark.parametrize("name", ["pgd_eot", "joint_pgd", "apgd_eot"])
def test_an_attack_goes_on_with_half(name: str) -> None:
    options = {"eot": 2, "step": 0.02}
    if name == "apgd_eot":
        options.pop("step")
    model = Small(8)
    view = ThreatView(model, score=lambda images: model(images)[:, 0], threshold=0.0)
    attack = create("attack", name, {"steps": 2, "eps": 0.05, "batch_size": 16, **options})
    found = attack(view, DATA.images, DATA.labels)
    assert model.rows[0] == 16, "all looks at all images in one batch, as far as it was asked"
    assert max(model.rows[1:]) == 8
    assert "did not hold 16 rows at once, so it went on with 8" in found.description
    roomy = Small(64)
    view = ThreatView(roomy, score=lambda images: roomy(images)[:, 0], threshold=0.0)
    wanted = create("attack", name, attack.config)(view, DATA.images, DATA.labels)
    assert torch.allclose(found.images, wanted.images, atol=1e-6), "where looks are equal, half makes the same"
    assert "did not hold" not in wanted.description


def test_only_once() -> None:
    model = Small(3)
    attack = create("attack", "pgd_eot", eot=2, batch_size=16)
    with pytest.raises(torch.OutOfMemoryError):
        attack(model, DATA.images, DATA.labels)
    assert model.rows == [16, 8]


def test_fewer_images_than_a_batch_are_halved_too() -> None:
    model = Small(4)
    found = create("attack", "pgd_eot", batch_size=64, steps=1)(model, DATA.images, DATA.labels)
    assert model.rows[:2] == [8, 4]
    assert "with 4" in found.description


def test_an_average_keeps_to_half() -> None:
    model, roomy = Small(16), Small(64)
    view = averaged(ThreatView(model, stochastic=True), 4, chunk=32)
    with torch.no_grad():
        with pytest.warns(UserWarning, match="4 looks at 8 images: .* hold 32 rows at once, so it went on with 16"):
            first = view(DATA.images)
        assert torch.equal(view(DATA.images), first), "the second time nothing fails, and nothing is said"
        assert torch.allclose(first, averaged(ThreatView(roomy, stochastic=True), 4)(DATA.images), atol=1e-6)
    assert model.rows == [32, 16, 16, 16, 16]


def test_one_row_is_all_that_can_be_asked() -> None:
    def full(rows: int) -> int:
        raise torch.OutOfMemoryError("full")

    said: list[str] = []
    with pytest.raises(torch.OutOfMemoryError):
        halved_once(full, 1, said.append)
    assert not said
