"""Any evasion attack of the Adversarial Robustness Toolbox, by the name of its class (arXiv 1807.01069).

x' = the class's generate(x, y),  refused where ||x' - x|| > eps
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from medfedpure.core.config import Config, Eps
from medfedpure.core.errors import ConfigError
from medfedpure.plugins.attacks.art import MASKED, ArtAttack, uses_of


class ArtByNameConfig(Config):
    """The class and its options, under ART's own names."""

    attack: str = Field("FastGradientMethod", description="class of art.attacks.evasion")
    norm: Literal["linf", "l2"] = Field("linf", description="in which the perturbation is bounded")
    eps: Eps | None = Field(
        0.015, description="largest perturbation in [0, 1] units; None for attacks that seek the smallest one"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="further arguments of the class")


class ArtByName(ArtAttack):
    """The result is audited like that of every attack; masks where the class keeps to them.

    ART's BoundaryAttack and BrendelBethgeAttack draw from generators that nobody can seed: they do not repeat.

    Raises:
        ConfigError: no such class, an option that it does not have, or an eps that it would ignore or miss.
    """

    Config = ArtByNameConfig

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.art_class = self.config.attack
        self.supports_mask = self.art_class in MASKED
        self.spares_fooled = self.config.eps is None
        self.uses = uses_of(self.art_class)
        takes = self.art_parameters()
        unknown = set(self.config.options) - takes
        if unknown:
            raise ConfigError(
                f"ART's {self.art_class} has no option {', '.join(sorted(unknown))}; it has {', '.join(sorted(takes))}"
            )
        if self.config.eps is None and "eps" in takes:
            raise ConfigError(f"ART's {self.art_class} needs an eps")
        if self.config.eps is not None and "eps" not in takes:
            raise ConfigError(f"ART's {self.art_class} takes no eps, it seeks a small perturbation: pass eps=None")

    def art_options(self) -> dict[str, Any]:
        """eps and the options as given; ART's own progress bars off."""
        quiet = {"verbose": False} if "verbose" in self.art_parameters() else {}
        budget = {} if self.config.eps is None else {"eps": self.config.eps}
        return {**quiet, **budget, **self.config.options}
