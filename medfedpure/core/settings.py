"""How something is trained, as records; what works by them is in training/ and data/."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from medfedpure.core.config import Config, Eps


class TrainingConfig(Config):
    """How long and how fast to train. Budgets are steps, never seconds, so that results repeat."""

    steps: int = Field(500, ge=1, description="optimizer steps (in a federation: over all rounds)")
    batch_size: int = Field(64, ge=1, description="images a step")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate, reached after the warm-up")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with linearly rising learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="decoupled weight decay (AdamW)")
    decay_all: bool = Field(True, description="decay biases and the weights of normalization too, not matrices alone")
    clip_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the averaged weights; 0 keeps the last weights")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16 trains under autocast: faster where the hardware has it; weights stay float32"
    )
    sampling: Literal["shuffled", "balanced"] = Field(
        "shuffled",
        description="batches: every image equally often, or every class equally often and within it every image",
    )
    checks: int = Field(
        20, ge=1, description="how often at most, evenly, to look at validation images and save a checkpoint"
    )
    patience: int = Field(
        0, ge=0, description="stop after so many checks at which validation was no better than before; 0 = never"
    )


Step = Annotated[Eps | None, BeforeValidator(lambda value: None if value == "auto" else value)]
"""The size of one step of an attack; None, in files "auto", is 2.5 eps / steps."""


class AdversarialTraining(Config):
    """How many adversarial examples a batch holds, how they are made, and what is learned of them.

    Raises:
        ConfigError: options of an attack and a share of 0, a method that must start at random and does not, two sets of
            BatchNorm of which one would see no image, or a schedule that ends before it begins.
    """

    share: float = Field(0.0, ge=0, le=1, description="share of each batch that is attacked; 0 = none")
    method: Literal["pgd", "fast", "trades"] = Field(
        "pgd",
        description="attack by several steps; by one, watched; or by several that part the answers to an image and to "
        "its attacked self, which training then draws together",
    )
    norm: Literal["linf", "l2"] = Field("linf", description="in which the perturbation is bounded")
    eps: Eps = Field(0.015, description='largest perturbation in [0, 1] units; "8/255" is accepted')
    step: Step = Field(0.003, description='size of one step in [0, 1] units; "auto" is 2.5 eps / steps')
    steps: int = Field(7, ge=1, description="gradient steps; each costs a pass through the model, there and back")
    random_start: bool = Field(True, description="start at a random point of the ball, not at the image itself")
    beta: float = Field(6.0, ge=0, description="trades: weight of the divergence beside the loss of clean images")
    eps_zero: float = Field(0.0, ge=0, lt=1, description="share of the training until which eps is 0")
    eps_full: float = Field(0.0, ge=0, le=1, description="share from which eps is whole; it rises linearly between")
    awp: float = Field(0.0, ge=0, description="gamma, by how much of its norm each weight is moved against; 0 = none")
    awp_start: float = Field(0.0, ge=0, lt=1, description="share of the training from which weights are moved")
    normalization: Literal["shared", "dual", "dual_clean"] = Field(
        "shared",
        description="one set of BatchNorm, or two: of attacked and of clean images. One stays in the model: with dual "
        "that of attacked images, with dual_clean the other",
    )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if not self.share and (self.method != "pgd" or self.awp or self.normalization != "shared"):
            raise ValueError("share is 0, so no image is attacked and these options do nothing: set share, as to 1")
        if self.method != "pgd" and not self.random_start:
            raise ValueError(f'method "{self.method}" starts at a random point: leave random_start true')
        if self.eps_full < self.eps_zero:
            raise ValueError(f"eps is whole from {self.eps_full} on, and 0 until {self.eps_zero}: let eps_full be more")
        if self.normalization != "shared" and self.share == 1 and self.method != "trades":
            raise ValueError(
                f'normalization "{self.normalization}" has a set for clean images, and with a share of 1 there are '
                'none: lower share, such as to 0.5, or take method "trades", which sees both'
            )
        return self

    def at(self, progress: float) -> Self:
        """The same with the eps of a moment of the training, from 0 at its start to 1 at its end.

        >>> AdversarialTraining(eps=0.02, eps_zero=0.25, eps_full=0.75).at(0.5).eps
        0.01
        """
        if progress >= self.eps_full:
            return self
        width = max(self.eps_full - self.eps_zero, 1e-12)
        return self.model_copy(update={"eps": self.eps * max(progress - self.eps_zero, 0.0) / width})

    @property
    def step_size(self) -> float:
        """The size of one step in [0, 1] units, at today's eps."""
        return 2.5 * self.eps / self.steps if self.step is None else self.step


class Augmentation(Config):
    """How much training images are varied; images are `(N, C, H, W)` in [0, 1] and stay so.

    Intensity: x -> x exp(s b(u, v)) + s/2 c x (1 - x), with b a quadratic polynomial of the position (gain and
    bias field) and c a contrast curve, their coefficients uniform in [-1, 1]. Rician noise is what the magnitude
    of a complex MR signal shows: x -> sqrt((x + n1)^2 + n2^2), n1 and n2 Gaussian (Gudbjartsson and Patz 1995,
    "The Rician distribution of noisy MRI data"). Gamma: x -> x^exp(g u), linear below 1/256, and brightness:
    x -> x exp(b u), u uniform in [-1, 1]. Cutting out: a black square at a place of its own (DeVries and Taylor 2017,
    "Improved regularization of convolutional neural networks with cutout", arXiv 1708.04552).
    """

    flip: bool = Field(True, description="mirror left-right with probability one half")
    quarter_turns: bool = Field(False, description="turn by 0, 90, 180 or 270 degrees, for data without an upright")
    shift: int = Field(2, ge=0, description="largest shift in pixels, either way, filled by wrapping around")
    rotation: float = Field(0.0, ge=0, le=45, description="largest rotation in degrees, either way, filled with 0")
    stretch: float = Field(0.0, ge=0, le=0.5, description="largest logarithm of the scale of each axis, and shear")
    intensity: float = Field(0.0, ge=0, le=1, description="s: how far gain, bias field and contrast vary")
    noise: float = Field(0.0, ge=0, le=1, description="largest standard deviation of added Gaussian noise")
    rician: float = Field(0.0, ge=0, le=1, description="largest standard deviation of Rician noise")
    gamma: float = Field(0.0, ge=0, le=1, description="g: largest logarithm of the exponent of all values")
    brightness: float = Field(0.0, ge=0, le=1, description="b: largest logarithm of the factor of all values")
    cut_out: float = Field(0.0, ge=0, le=1, description="share of images of which a square is cut out")
    cut_size: float = Field(0.18, gt=0, le=1, description="largest share of the image that is cut out; least is half")


class GroupPositives(Config):
    """How strongly images of one group, near-duplicates or of one patient, are pulled together while training."""

    weight: float = Field(0.0, ge=0, description="weight of the contrastive loss beside the task's own; 0 = none")
    temperature: float = Field(0.1, gt=0, description="what similarities are divided by; smaller looks at the nearest")
    unit: str = Field(
        "group", description='whose images are positives of each other: the "group", or a level such as "patient"'
    )
    same_class: bool = Field(False, description="push away images of the same class in other groups too")
    images: int = Field(2, ge=2, description="images of a group that a batch holds together, where it has so many")
