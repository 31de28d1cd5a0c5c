"""A robust and a plain network as one, their probabilities mixed after a nonlinear map of the robust one's logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def transformed(logits: Tensor, *, scale: float, power: float, shift: float, unit: float) -> Tensor:
    """M(h) = s sgn(u) |u|^p, u = GELU(n(h) + c), of the robust network's logits h `(N, K)`.

    n(h) is h minus its mean, divided by its own deviation (layer normalization, `unit` 0) or by `unit`. Of two logits
    the former is -+0.707 whatever they are, so that nothing is left of their confidence.
    """
    centred = logits - logits.mean(1, keepdim=True)
    normal = centred / (logits.var(1, keepdim=True) + 1e-8).sqrt() if unit == 0 else centred / unit
    # Finite at any parameters: beyond, nothing is left to tell apart in the dtype.
    most = (torch.finfo(logits.dtype).max ** 0.75 / scale) ** (1 / power)
    clamped = functional.gelu(normal + shift).clamp(-most, most)
    raised = clamped if power == 1 else clamped.sign() * clamped.abs().pow(power)
    return scale * raised


def mixed(robust: Tensor, plain: Tensor, *, alpha: float, temperature: float) -> Tensor:
    """log( (1 - alpha) softmax(plain / T) + alpha softmax(robust) ) `(N, K)` of logits `(N, K)`.

    At T = 0 the first softmax is 1 at its largest logit and 0 elsewhere, and its gradient that of T = 1.
    """
    if temperature > 0:
        logs = (plain / temperature).log_softmax(1), robust.log_softmax(1)
        weights = plain.new_tensor([1 - alpha, alpha]).log()
        return torch.logaddexp(weights[0] + logs[0], weights[1] + logs[1])
    soft = plain.softmax(1)
    one = functional.one_hot(plain.argmax(1), plain.shape[1]).to(soft) + (soft - soft.detach())
    total = (1 - alpha) * one + alpha * robust.softmax(1)
    return total.clamp_min(torch.finfo(total.dtype).tiny).log()


class Mixed(nn.Module):
    """Images `(N, C, H, W)` to log-probabilities `(N, K)`: `mixed` of a plain network and a robust one `transformed`.

    Args:
        robust: images to logits `(N, K)`.
        plain: likewise.
        scale, power, shift, unit: s, p, c and the unit of `transformed`.
        alpha: share of the robust network, in [0, 1].
        temperature: T of the plain one.
    """

    def __init__(
        self,
        robust: nn.Module,
        plain: nn.Module,
        *,
        scale: float,
        power: float,
        shift: float,
        unit: float,
        alpha: float,
        temperature: float,
    ) -> None:
        super().__init__()
        self.robust = robust
        self.plain = plain
        self.map = {"scale": scale, "power": power, "shift": shift, "unit": unit}
        self.alpha = alpha
        self.temperature = temperature

    @property
    def stand_in(self) -> nn.Module:
        """The robust network: what fools it mostly fools both, and M hides its gradient where M saturates."""
        return self.robust

    def forward(self, images: Tensor) -> Tensor:
        """`(N, K)` log-probabilities."""
        robust = transformed(self.robust(images), **self.map)
        return mixed(robust, self.plain(images), alpha=self.alpha, temperature=self.temperature)
