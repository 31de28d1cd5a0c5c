"""The bridge to the Adversarial Robustness Toolbox (Nicolae et al. 2018, arXiv 1807.01069).

ART works on numpy arrays and draws from global random generators: the bridge converts, seeds them
under a lock, and restores them.
"""

from __future__ import annotations

import random
import threading
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from art.attacks import EvasionAttack, evasion
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from medfedpure.core.attack import Attack
from medfedpure.core.streams import Streams, derive_seed, isolated_rng
from medfedpure.core.threats import ThreatView

_lock = threading.Lock()


class ArtAttack(Attack):
    """Names an ART attack and its options; the bridge does the rest."""

    art_class: ClassVar[str]

    per_image_streams: ClassVar[bool] = False
    supports_targets: ClassVar[bool] = True

    @abstractmethod
    def art_options(self) -> dict[str, Any]:
        """Keyword arguments of the ART class; `norm` and `targeted` are added here."""
        raise NotImplementedError

    def _make(self, estimator: PyTorchClassifier, *, targeted: bool) -> EvasionAttack:
        norm = np.inf if self.config.norm == "linf" else 2
        return getattr(evasion, self.art_class)(estimator, norm=norm, targeted=targeted, **self.art_options())

    def generate(
        self,
        view: ThreatView,
        images: Tensor,
        labels: Tensor,
        *,
        mask: Tensor | None = None,  # noqa: ARG002
        targets: Tensor | None = None,
        streams: Streams,
    ) -> Tensor:
        """Adversarial images `(N, C, H, W)`; the true labels (or the targets) are handed to ART."""
        if not len(images):
            return images.clone()
        with _lock, seeded_globals(derive_seed(streams.seed, "art")), frozen(view):
            with torch.no_grad():
                classes = view(images[:1]).shape[1]
            estimator = PyTorchClassifier(
                view,
                loss=nn.CrossEntropyLoss(),
                input_shape=tuple(images.shape[1:]),
                nb_classes=classes,
                clip_values=(0.0, 1.0),
                device_type="gpu" if images.is_cuda else "cpu",
            )
            attack = self._make(estimator, targeted=targets is not None)
            wanted = labels if targets is None else targets
            one_hot = torch.nn.functional.one_hot(wanted, classes).float()
            array = attack.generate(x=images.detach().float().cpu().numpy(), y=one_hot.cpu().numpy())
        return torch.from_numpy(np.ascontiguousarray(array)).to(images)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No gradients for parameters inside the block: ART would compute and accumulate them."""
    active = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in active:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in active:
            parameter.requires_grad_(True)


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and random inside the block; restore them after it."""
    numpy_state: Any = np.random.get_state()
    python_state = random.getstate()
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        with isolated_rng(seed):
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
