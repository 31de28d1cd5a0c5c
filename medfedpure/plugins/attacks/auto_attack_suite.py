"""A suite after AutoAttack (Croce and Hein 2020, arXiv 2003.01690), one attack after another on what still resists.

Which attacks these are follows from the number of classes K and the version; every result names them.

- standard, K >= 4, the original four: APGD-CE, APGD-DLR targeted, FAB targeted, Square;
- standard, K = 3: APGD-CE, APGD-DLR, FAB targeted, Square, for the targeted DLR loss compares four logits;
- standard, K = 2: APGD-CE, APGD-margin, FAB, Square, for the DLR loss compares three;
- rand, for views that answer with noise: APGD-CE and APGD-DLR (K = 2: APGD-margin), averaged over `eot` looks.

    x' = the first of part_1(x), part_2(x), ... that is misread; where none is, the one that got furthest

Not the original: our APGD and FAB let an image leave as soon as it has fallen, Square is ART's, in linf only, and
Square's trials are `queries`.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from medfedpure.core.attack import Attack, ThreatView, without_parameter_gradients
from medfedpure.core.registry import create
from medfedpure.core.streams import Streams
from medfedpure.plugins.attacks.gradient import BallConfig, judged, loss_of


class AutoAttackSuiteConfig(BallConfig):
    """A budget and a version; the numbers are the original's."""

    version: Literal["standard", "rand"] = Field(
        "standard", description='"standard" where two looks at an image are equal, "rand" where they are not'
    )
    steps: int = Field(100, ge=1, description="gradient steps of each start of APGD and FAB")
    restarts: int = Field(1, ge=1, description="starts of APGD and FAB")
    target_classes: int = Field(9, ge=1, description="other classes that targeted parts aim at, the most likely first")
    queries: int = Field(5000, ge=0, description="squares that Square tries on each image; 0 = without Square")
    eot: int = Field(1, ge=1, description="looks at each image that rand averages: the original takes 20")
    patience: int = Field(1, ge=1, description="of rand: steps in a row that must have fallen before an image leaves")
    batch_size: int = Field(64, ge=1, description="rows at a time, every look a row")

    @model_validator(mode="after")
    def _looks_where_they_differ(self) -> Self:
        if self.version == "standard" and self.eot > 1:
            raise ValueError('looks are averaged by version="rand"; "standard" takes one')
        return self


class AutoAttackSuite(Attack):
    """White-box on any view, and by answers in Square; never targeted.

    Raises:
        MissingExtraError: Square is wanted, and ART is not installed.
    """

    Config = AutoAttackSuiteConfig
    uses = "gradients"

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.per_image_streams = not self._with_square()

    def describe(self) -> str:
        """The settings of the parts that this version has."""
        c = self.config
        unused = {"target_classes", "queries"} if c.version == "rand" else {"eot", "patience"}
        unused |= set() if self._with_square() else {"queries"}
        name, _, listed = super().describe().partition(": ")
        return f"{name}: {', '.join(text for text in listed.split(', ') if text.split(' ')[0] not in unused)}"

    def generate(
        self,
        view: ThreatView,
        images: Tensor,
        labels: Tensor,
        *,
        mask: Tensor | None = None,  # noqa: ARG002
        targets: Tensor | None = None,  # noqa: ARG002
        streams: Streams,
    ) -> Tensor:
        """Adversarial images `(N, C, H, W)` within the budget; in standard those misread already stay as they are.

        In rand those that every look misreads stay where no part gets further.
        """
        found = images.clone()
        with torch.no_grad():
            parts = self.parts(view(images[:1]).shape[1])
        if view.watch is not None:
            view.watch.say(f"parts: {' + '.join(parts)}")
            if view.stochastic and self.config.version == "standard":
                view.watch.say('one look decided, and this view answers with noise: version="rand" averages looks')
        with without_parameter_gradients(view):
            for rows in torch.arange(len(images), device=images.device).split(self.config.batch_size):
                found[rows] = self._in_turn(parts, view, images[rows], labels[rows], streams.select(rows))
        return found

    def _in_turn(
        self, parts: dict[str, Attack], view: ThreatView, images: Tensor, labels: Tensor, streams: Streams
    ) -> Tensor:
        found, (share, strength) = images.clone(), self._judged(view, images, labels)
        fallen = (share >= 1) & (self.config.version == "standard")
        strength = torch.where(share >= 1, strength, -torch.inf)
        waiting = torch.nonzero(~fallen).squeeze(1)
        for name, attack in parts.items():
            if not len(waiting):
                break
            own, some = streams.select(waiting).child(name), images[waiting]
            moved = attack.generate(view, some, labels[waiting], streams=own)
            share, now = self._judged(view, moved, labels[waiting])
            better = now > strength[waiting]
            found[waiting[better]], strength[waiting[better]] = moved[better], now[better]
            waiting = waiting[share < 1]
        return found

    def parts(self, classes: int) -> dict[str, Attack]:
        """The attacks by name, in their order, against so many classes."""
        c = self.config
        ball = {"norm": c.norm, "eps": c.eps}
        long = {**ball, "steps": c.steps, "restarts": c.restarts, "batch_size": c.batch_size}
        ratio: dict[str, Any] = {"loss": "cw" if classes < 3 else "dlr"}
        plain = "APGD-margin" if classes < 3 else "APGD-DLR"
        if c.version == "rand":
            noisy = {**long, "eot": c.eot, "patience": c.patience}
            return {
                "APGD-CE": create("attack", "apgd_eot", **noisy),
                plain: create("attack", "apgd_eot", **noisy, **ratio),
            }
        aimed = {"target_classes": c.target_classes}
        found = {"APGD-CE": create("attack", "apgd_eot", **long)}
        if classes > 3:
            found["APGD-DLR targeted"] = create("attack", "apgd_eot", **long, **ratio, **aimed)
        else:
            found[plain] = create("attack", "apgd_eot", **long, **ratio)
        found["FAB" if classes < 3 else "FAB targeted"] = create("attack", "fab", **long, **aimed)
        if self._with_square():
            found["Square"] = create("attack", "square", eps=c.eps, queries=c.queries, batch_size=c.batch_size)
        return found

    def _with_square(self) -> bool:
        c = self.config
        return bool(c.version == "standard" and c.queries and c.norm == "linf" and c.eps > 0)

    def _judged(self, view: ThreatView, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The share of looks `(N,)` that is fooled, and how far an image got: that share, then its margin."""
        c = self.config
        share, loss = judged(
            view,
            images,
            labels,
            None,
            loss=lambda logits, own, wanted: torch.sigmoid(loss_of("cw", logits, own, wanted)),
            eot=self.looks(),
            batch_size=c.batch_size,
        )
        return share, share + loss / (2 * self.looks())

    def looks(self) -> int:
        """By which an image is judged between the parts: as many as APGD asks for before it lets one go."""
        return self.config.eot * self.config.patience if self.config.version == "rand" else 1
