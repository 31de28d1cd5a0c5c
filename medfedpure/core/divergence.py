"""How far two predictions are apart."""

import torch
from torch import Tensor


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence in nats of the softmax of two logits `(N, K)`: `(N,)` in [0, ln 2].

    JS(p, q) = KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2 (Lin 1991).
    """
    dtype = torch.promote_types(first.dtype, torch.float32)  # half precision would round small divergences to zero
    log_p, log_q = first.to(dtype).log_softmax(1), second.to(dtype).log_softmax(1)
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0, dtype=log_p.dtype, device=log_p.device))
    divergence = (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(1) / 2
    return divergence.clamp_min(0)
