"""The federations of the study: what its clients train, and how their models are read."""

from __future__ import annotations

from typing import Any

import torch

import medfedpure
from benchmarks.study.bench import Bench, built, uniform
from benchmarks.study.how import EPS, START, Federation
from benchmarks.study.measure import ladder, static
from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.streams import derive_seed
from medfedpure.federation import FederationConfig, Site, federate
from medfedpure.training.classification import ClassificationTask


def divided(bench: Bench, federation: Federation, part: str) -> dict[str, ImageDataset]:
    """The images of every client, of the training or the test part; of equal clients each has the whole test part."""
    data = bench.parts[part]
    if not federation.alpha:
        if part == "test":
            return {f"client_{place}": data for place in range(federation.clients)}
        own = data.partition(federation.clients, seed=bench.seed)
    else:
        own = data.partition(federation.clients, by="dirichlet", alpha=federation.alpha, seed=bench.seed)
    return {f"client_{place}": some for place, some in enumerate(own)}


def trained(bench: Bench, federation: Federation, what: str) -> dict[str, ClassifierModel]:
    """Every client's model under STRATEGY_KIND, trained once."""
    folder = bench.out / what
    if not folder.exists():
        strategy, kind = what.split("_")
        sites = [Site(name, own) for name, own in divided(bench, federation, "train").items()]
        config: dict[str, Any] = {"adversarial": bench.how.recipes["robust"].adversarial} if kind == "robust" else {}
        start = next(iter(trained(bench, federation, START).values())).cpu() if kind == "robust" else None

        def made() -> ClassifierModel:
            model = built(bench.parts["train"], bench.seed, bench.how, None if start else bench.how.weights)
            if start is not None:
                model.load_state_dict(start.state_dict())
                model.origin = start.origin
            return model

        result = federate(
            sites,
            make_model=made,
            task=ClassificationTask(bench.augmentation, label_smoothing=0.1),
            strategy=medfedpure.create("personalization", strategy, config),
            training=bench.how.training.model_copy(update={"steps": federation.steps[kind], "ema": 0.98}),
            rounds=federation.rounds,
            seed=derive_seed(bench.seed, "flagship", what),
            state_dir=bench.out / f"{what}_state",
            checkpoint=bench.out / f"{what}_checkpoint",
            name=what,
            config=FederationConfig(device=str(bench.device)),
        )
        for client, model in result.models.items():
            model.save(folder / client)  # type: ignore[operator]
    names = sorted(folder.iterdir(), key=lambda path: int(path.name.rpartition("_")[2]))
    return {path.name: ClassifierModel.load(path).to(bench.device) for path in names}


def clients(bench: Bench, federation: Federation, what: str) -> dict[str, Any]:
    """What every client's model is worth on its own test images; equal models on equal images are read once."""
    found: dict[str, Any] = {}
    models, test = trained(bench, federation, what), divided(bench, federation, "test")
    for client, model in models.items():
        twin = next((other for other in found if test[other] is test[client] and same(models[other], model)), None)
        if twin is not None:
            found[client] = {"as": twin}
            continue
        chain = uniform(model, policy="none")
        found[client] = static(bench, chain, test[client])
        if what.endswith("robust"):
            found[client]["ladder"] = ladder(bench, f"{what}_{client}", chain, bench.how.bare, (EPS,), test[client])
    return {"clients": found, "rounds": federation.rounds, "steps": dict(federation.steps), "alpha": federation.alpha}


def same(one: ClassifierModel, other: ClassifierModel) -> bool:
    """Whether two clients hold the same network, as under FedAvg."""
    own, others = one.state_dict(), other.state_dict()
    return own.keys() == others.keys() and all(torch.equal(own[key], others[key]) for key in own)
