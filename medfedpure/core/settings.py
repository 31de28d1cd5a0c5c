"""How something is trained, as records; what works by them is in training/ and data/."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medfedpure.core.config import Config, Eps


class TrainingConfig(Config):
    """How long and how fast to train. Budgets are steps, never seconds, so that results repeat."""

    steps: int = Field(500, ge=1, description="optimizer steps (in a federation: over all rounds)")
    batch_size: int = Field(64, ge=1, description="images a step")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate, reached after the warm-up")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with linearly rising learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="decoupled weight decay (AdamW)")
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
    patience: int = Field(0, ge=0, description="stop after so many checks without a lower validation loss; 0 = never")


class AdversarialTraining(Config):
    """How many adversarial examples a batch holds, and how they are made."""

    share: float = Field(0.0, ge=0, le=1, description="share of each batch that is attacked; 0 = none")
    norm: Literal["linf", "l2"] = Field("linf", description="in which the perturbation is bounded")
    eps: Eps = Field(0.015, description='largest perturbation in [0, 1] units; "8/255" is accepted')
    step: Eps = Field(0.003, description="size of one step in [0, 1] units")
    steps: int = Field(7, ge=1, description="gradient steps; each costs a pass through the model, there and back")
    random_start: bool = Field(True, description="start at a random point of the ball, not at the image itself")


class Augmentation(Config):
    """How much training images are varied; images are `(N, C, H, W)` in [0, 1] and stay so.

    Intensity: x -> x exp(s b(u, v)) + s/2 c x (1 - x), with b a quadratic polynomial of the position (gain and
    bias field) and c a contrast curve, their coefficients uniform in [-1, 1]. Rician noise is what the magnitude
    of a complex MR signal shows: x -> sqrt((x + n1)^2 + n2^2), n1 and n2 Gaussian (Gudbjartsson and Patz 1995,
    "The Rician distribution of noisy MRI data").
    """

    flip: bool = Field(True, description="mirror left-right with probability one half")
    quarter_turns: bool = Field(False, description="turn by 0, 90, 180 or 270 degrees, for data without an upright")
    shift: int = Field(2, ge=0, description="largest shift in pixels, either way, filled by wrapping around")
    rotation: float = Field(0.0, ge=0, le=45, description="largest rotation in degrees, either way, filled with 0")
    stretch: float = Field(0.0, ge=0, le=0.5, description="largest logarithm of the scale of each axis, and shear")
    intensity: float = Field(0.0, ge=0, le=1, description="s: how far gain, bias field and contrast vary")
    noise: float = Field(0.0, ge=0, le=1, description="largest standard deviation of added Gaussian noise")
    rician: float = Field(0.0, ge=0, le=1, description="largest standard deviation of Rician noise")
