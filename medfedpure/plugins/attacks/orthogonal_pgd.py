"""Orthogonal PGD (Bryniarski et al. 2021, arXiv 2106.15023), selective: fool first, then hide, never undoing the other.

Where the prediction is still right, step along grad L minus its projection onto grad s; where it is wrong and the
score s too high, along -grad s minus its projection onto grad L; where both goals are met, stay.

    fool:  grad L - <grad L, grad s> / ||grad s||^2 grad s       hide:  -grad s + <grad s, grad L> / ||grad L||^2 grad L
"""

from __future__ import annotations

import torch
from torch import Tensor

from medfedpure.plugins.attacks.aware import AwareAttack


class OrthogonalPGD(AwareAttack):
    """Detector-aware: best on a `detector` view, which shows the bare prediction beside the score."""

    def direction(self, of_loss: Tensor, of_score: Tensor, fooled: Tensor, seen: Tensor) -> Tensor:
        """Of the two gradients, the one that is needed, without what lies along the other."""
        fool, hide = without(of_loss, of_score), without(-of_score, of_loss)
        chosen = torch.where(fooled[:, None, None, None], hide, fool)
        return torch.where((fooled & ~seen)[:, None, None, None], torch.zeros_like(chosen), chosen)


def without(gradient: Tensor, other: Tensor) -> Tensor:
    """`(N, C, H, W)` minus its projection onto another, image by image."""
    flat, along = gradient.flatten(1).double(), other.flatten(1).double()
    share = (flat * along).sum(1) / along.square().sum(1).clamp_min(1e-300)
    return (flat - share[:, None] * along).to(gradient).view_as(gradient)
