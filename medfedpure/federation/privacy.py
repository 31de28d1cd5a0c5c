"""Client-level differential privacy of what the server sends out: clipped updates, Gaussian noise, accounting.

McMahan, Ramage, Talwar and Zhang, Learning Differentially Private Recurrent Language Models, ICLR 2018.
In every round
    new = old + (sum over clients of clip(update - old, C) + N(0, (z C)^2)) / n
with n the fixed number of clients of the federation, so that a client changes the sum by at most C: neither its
number of examples nor its absence weighs. All clients take part in all rounds, so there is no amplification by
sampling: T rounds are T Gaussian mechanisms with noise multiplier z, which dp-accounting composes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from pydantic import Field

from medfedpure.core.config import Config
from medfedpure.core.errors import FederationError, MissingExtraError
from medfedpure.core.personalization import PersonalizationStrategy, Tensors, Update
from medfedpure.federation.noise import SecretNoise


class PrivacyConfig(Config):
    """How much of one client may show in the shared tensors."""

    clip: float = Field(gt=0, description="largest L2 norm of one client's update of all shared tensors")
    noise_multiplier: float = Field(gt=0, description="standard deviation of the noise on the sum, in units of clip")
    delta: float = Field(1e-5, gt=0, lt=1, description="epsilon is reported for this delta")


def check_allowed(strategy: PersonalizationStrategy) -> None:
    """Raise unless everything that a client's update changes passes through the clipped mean.

    Raises:
        FederationError: the strategy aggregates or answers clients in a way of its own, or shares nothing.
        MissingExtraError: dp-accounting is not installed, so nothing could be promised.
    """
    own = [
        name
        for name in ("aggregate", "client_config")
        if getattr(type(strategy), name) is not getattr(PersonalizationStrategy, name)
    ]
    if own:
        raise FederationError(
            f"the strategy {strategy.name!r} has its own {' and '.join(own)}, through which updates would reach other "
            "clients without clipping and noise: leave [federation.privacy] out, or take a strategy such as 'fedrep'"
        )
    if not strategy.federated:
        raise FederationError(f"the strategy {strategy.name!r} shares nothing: leave [federation.privacy] out")
    if importlib.util.find_spec("dp_accounting") is None:
        raise MissingExtraError("differential privacy needs dp-accounting: pip install 'medfedpure[privacy]'")


def private_mean(
    config: PrivacyConfig, clients: int, previous: Tensors, updates: Sequence[Update], *, entropy: bytes | None = None
) -> Tensors:
    """The new shared tensors.

    The noise comes from the system's entropy and never repeats: the seed of a run is known to every site,
    and noise that a reader can draw again hides nothing.

    Args:
        config: bound and noise.
        clients: n, how many clients the federation has, whether they replied or not.
        previous: what the clients started from.
        updates: what they sent.
        entropy: 32 bytes that make the noise repeatable, for a test; by default fresh ones at every call.

    Raises:
        FederationError: another number of bytes.
    """
    total = {key: torch.zeros(value.shape, dtype=torch.float64) for key, value in previous.items()}
    for update in sorted(updates, key=lambda one: one.client_id):
        change = {key: update.shared[key].double() - value.double() for key, value in previous.items()}
        norm = float(torch.stack([value.square().sum() for value in change.values()]).sum().sqrt())
        share = min(1.0, config.clip / norm) if norm > 0 else 1.0
        for key, value in change.items():
            total[key] += share * value
    source = SecretNoise(entropy)
    deviation = config.noise_multiplier * config.clip
    result: Tensors = {}
    for key, value in previous.items():
        noise = source.draw(value.shape) * deviation
        new = value.double() + (total[key] + noise) / clients
        # A variance stays one; what is done after the noise costs no privacy.
        result[key] = (new.clamp_min(0) if key.endswith("running_var") else new).to(value.dtype)
    return result


def epsilon(config: PrivacyConfig, rounds: int) -> float:
    """What `rounds` rounds spend at the configuration's delta, by Renyi accounting; 0 before the first.

    Neighbours are federations with and without one client's updates.
    """
    if rounds == 0:
        return 0.0
    from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    accountant.compose(SelfComposedDpEvent(GaussianDpEvent(config.noise_multiplier), rounds))
    return float(accountant.get_epsilon(config.delta))
