"""What a client holds besides what it trains on: images for threshold, choice of a policy, and trial of its defence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from medfedpure.core.dataset import ImageDataset, check_disjoint
from medfedpure.core.errors import CalibrationError
from medfedpure.defence.calibration import least_scores
from medfedpure.defence.defend import LEAST
from medfedpure.federation import Site
from medfedpure.job.division import Parts
from medfedpure.job.federate_config import ComponentConfig, SiteConfig


@dataclass(frozen=True)
class ClientImages(Site):
    """All images of one client; nothing but a `Site`'s are trained on.

    Attributes:
        calibrate: for the threshold; None = there is no defence to be made.
        choose: for the policy of the recipe "robust".
        check: for the trial of the defence; None = it is not tried.
    """

    calibrate: ImageDataset | None = None
    choose: ImageDataset | None = None
    check: ImageDataset | None = None


def dealt_images(config: ComponentConfig, dealt: Parts) -> list[ClientImages]:
    """Those of the clients of one machine: the policy is chosen on the tune part, and the trial is on the test part."""
    if config.defence is None:
        return [ClientImages(client, own["train"], own["validation"]) for client, own in dealt.items()]
    for own in dealt.values():
        check_disjoint(own)
    return [
        ClientImages(client, own["train"], own["validation"], own["calibrate"], own["tune"], own["test"])
        for client, own in dealt.items()
    ]


def shares_of(own: SiteConfig, *, defended: bool) -> dict[str, float]:
    """How a site divides its images; parts of no share are left out."""
    held = {"validation": own.validation}
    if defended:
        held |= {"calibrate": own.calibration, "check": own.check}
    return {name: share for name, share in {"train": 1 - sum(held.values()), **held}.items() if share != 0}


def check_enough(config: ComponentConfig, clients: Iterable[ClientImages], names: Mapping[str, str]) -> None:
    """Refuse a defence for which a client holds out too little, before anything is trained.

    Args:
        config: of the federation.
        clients: their images.
        names: what a user calls the shares "calibrate", "choose" and "check".

    Raises:
        CalibrationError: with who has how many, and how many are wanted.
    """
    defence = config.defence
    if defence is None:
        return
    wanted = {"calibrate": (least_scores(defence.target_fpr), "that set the threshold")}
    if defence.recipe == "robust":
        wanted["choose"] = (LEAST, "on which the recipe 'robust' chooses the policy")
    wanted["check"] = (LEAST, "on which the defence is tried")
    short = []
    for name, (least, what) in wanted.items():
        for client in clients:
            images: ImageDataset | None = getattr(client, name)
            found = 0 if images is None else images.num_groups
            if found < least and not (name == "check" and images is None):
                short.append(
                    f"{client.client_id} has {found} independent images {what}, and {least} are wanted: raise "
                    f"{names[name]}"
                )
    if short:
        raise CalibrationError(
            f"{'; '.join(short)}; or bring more images (near-duplicates count once), or allow more false alarms: "
            f"defence.target_fpr is {defence.target_fpr:g} (docs/how-to/how-many-images.md)"
        )


ON_ONE_MACHINE = {"calibrate": "data.calibrate", "choose": "data.tune", "check": "data.test"}
AT_A_SITE = {
    "calibrate": "`calibration` in its site.toml",
    "choose": "`validation` in its site.toml",
    "check": "`check` in its site.toml, or set it to 0",
}
"""What a user calls the shares."""
