"""How far two predictions are apart."""

import math

import torch
from torch import Tensor


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence in nats of the softmax of two logits `(N, K)`: `(N,)` in [0, ln 2].

    JS(p, q) = KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2 (Lin 1991).
    """
    # Its terms cancel but for a small rest: in float32 a divergence of 1e-5 is off by half a percent.
    log_p, log_q = first.double().log_softmax(1), second.double().log_softmax(1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    divergence = (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(1) / 2
    return divergence.clamp_min(0).to(torch.promote_types(first.dtype, torch.float32))
