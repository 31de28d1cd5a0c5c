"""The bridge to the Adversarial Robustness Toolbox (Nicolae et al. 2018, arXiv 1807.01069).

ART works on numpy arrays and draws from global random generators: the bridge converts, seeds them
under a lock, and restores them.
"""

from __future__ import annotations

import inspect
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
from medfedpure.core.errors import ConfigError, InputError
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.core.threats import ThreatView
from medfedpure.plugins.foreign import lock, seeded_globals


class ArtAttack(Attack):
    """Names an ART attack and its options; the bridge does the rest."""

    art_class: str

    per_image_streams: ClassVar[bool] = False
    supports_targets: ClassVar[bool] = True

    @abstractmethod
    def art_options(self) -> dict[str, Any]:
        """Keyword arguments of the ART class; `norm` and `targeted` are added here."""
        raise NotImplementedError

    def art_parameters(self) -> frozenset[str]:
        """What the ART class takes beside the estimator.

        Raises:
            ConfigError: ART has no evasion attack of that name.
        """
        # Not ART's own attack_params: subclasses inherit names there that their constructors do not take.
        return frozenset(inspect.signature(self._art_type().__init__).parameters) - {"self", "estimator", "classifier"}

    def _art_type(self) -> type[EvasionAttack]:
        found = getattr(evasion, self.art_class, None)
        if not (isinstance(found, type) and issubclass(found, EvasionAttack)):
            raise ConfigError(f"ART has no evasion attack {self.art_class!r}: see the names in art.attacks.evasion")
        return found

    def _make(self, estimator: PyTorchClassifier, *, targeted: bool) -> EvasionAttack:
        takes = self.art_parameters()
        if targeted and "targeted" not in takes:
            raise InputError(f"ART's {self.art_class} cannot be targeted: leave out the targets")
        added = {"norm": np.inf if self.config.norm == "linf" else 2, "targeted": targeted}
        fitting = {key: value for key, value in added.items() if key in takes}
        return self._art_type()(estimator, **fitting, **self.art_options())

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
        with lock, seeded_globals(derive_seed(streams.seed, "art")), frozen(view):
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
