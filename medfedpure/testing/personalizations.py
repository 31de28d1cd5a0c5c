"""The contract of personalization strategies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.errors import FederationError
from medfedpure.core.personalization import ClientRound, LocalResult, PersonalizationStrategy, Tensors, Update
from medfedpure.core.settings import AdversarialTraining, GroupPositives
from medfedpure.testing.checking import assert_equal, assert_near, unchanged
from medfedpure.testing.components import ComponentContract
from medfedpure.testing.observing import client_round
from medfedpure.testing.setting import Setting, tiny_classifier


class PersonalizationContract(ComponentContract):
    """What travels is floating and asked for; what is private never leaves; the order of clients is nothing."""

    kind: ClassVar[str] = "personalization"

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, component: PersonalizationStrategy, setting: Setting) -> nn.Module:
        """What the strategy makes of a trained network with integer buffers and a known head."""
        channels, size, _ = setting.train.image_shape
        return component.network(lambda: tiny_classifier(size, channels))

    def test_is_shared_is_a_pure_function(self, component: PersonalizationStrategy, model: nn.Module) -> None:
        """A bool for every key, the same on every call, and something travels."""
        answers = [{key: component.is_shared(key, model) for key in model.state_dict()} for _ in range(2)]
        wrong = [key for key, answer in answers[0].items() if not isinstance(answer, bool)]
        assert not wrong, f"is_shared must return a bool; it does not for {', '.join(wrong[:3])}"
        assert answers[0] == answers[1], "is_shared changes from call to call"
        travels = any(answers[0].values())
        assert travels == type(component).federated, f"federated is {not travels}, but something is shared: {travels}"

    def test_split_and_merge_are_the_identity(
        self, component: PersonalizationStrategy, model: nn.Module, setting: Setting
    ) -> None:
        """Shared and private parts are disjoint, together complete, and merge to the model they came from."""
        shared, private = component.split(model)
        both = shared.keys() & private.keys()
        assert not both, f"shared as well as private: {', '.join(sorted(both)[:3])}"
        lost = model.state_dict().keys() - shared.keys() - private.keys()
        assert not lost, f"neither shared nor private: {', '.join(sorted(lost)[:3])}"
        merged = component.personal_model(client_round(component, setting, shared=shared, private=private))
        assert_equal(merged.state_dict(), model.state_dict(), "split, then merged")
        with unchanged(model.state_dict(), "split"):
            for value in (*shared.values(), *private.values()):
                value.zero_()

    def test_only_floating_tensors_travel(
        self, component: PersonalizationStrategy, model: nn.Module, setting: Setting
    ) -> None:
        """Integer buffers stay: averaging would turn them into other numbers."""
        channels, size, _ = setting.train.image_shape
        for name, tensors in (
            ("split", component.split(model)[0]),
            ("initial_shared", component.initial_shared(lambda: tiny_classifier(size, channels), 0)),
        ):
            integer = [key for key, value in tensors.items() if not value.is_floating_point()]
            assert not integer, f"{name} shares integer tensors: {', '.join(integer[:3])}"

    def test_private_keys_never_travel(self, component: PersonalizationStrategy, setting: Setting) -> None:
        """What a client returns as shared is what the server asked for: keys, shapes and dtypes."""
        r = client_round(component, setting)
        done = component.local_update(r)
        assert done.shared.keys() == r.shared.keys(), f"other keys: {sorted(done.shared.keys() ^ r.shared.keys())[:3]}"
        for key, value in r.shared.items():
            same = done.shared[key].shape == value.shape and done.shared[key].dtype == value.dtype
            assert same, f"{key} returns as {done.shared[key].dtype} {tuple(done.shared[key].shape)}"
        leaked = [key for key in done.shared if key in done.private]
        assert not leaked, f"shared as well as private: {', '.join(leaked[:3])}"

    def test_the_head_stays_private(
        self, component: PersonalizationStrategy, model: nn.Module, setting: Setting
    ) -> None:
        """What `is_shared` keeps back never travels: not by its name, and not under another one."""
        kept = {key for key in model.state_dict() if not component.is_shared(key, model)}
        if not kept:
            pytest.skip("everything is shared")
        r = client_round(component, setting)
        done = component.local_update(r)
        named = sorted(kept & (done.shared.keys() | r.shared.keys()))
        assert not named, f"is_shared says that {', '.join(named[:3])} must not travel, and yet: it does"
        secrets = {key: done.private[key] for key in kept & done.private.keys() if _tells_something(done.private[key])}
        for key, secret in secrets.items():
            copies = [name for name, value in done.shared.items() if _contains(value, secret)]
            assert not copies, f"the private {key} travels as {', '.join(copies[:3])}"

    def test_local_update(self, component: PersonalizationStrategy, setting: Setting) -> None:
        """A round trains, counts its examples, reports finite metrics, and can be continued."""
        r = client_round(component, setting)
        with unchanged({**r.shared, **r.private}, "local_update"):
            done = component.local_update(r)
        assert done.num_examples == len(setting.train), f"{done.num_examples} examples of {len(setting.train)}"
        for name, metric in done.metrics.items():
            assert torch.isfinite(torch.tensor(float(metric))), f"the metric {name} is not finite"
        _assert_finite_on_cpu({**done.shared, **done.private})
        moved = [key for key, value in done.shared.items() if not torch.equal(value, r.shared[key])]
        assert moved or not type(component).federated, "a round changes nothing that is shared"
        second = next_round(component, setting, done)
        again = component.local_update(second)
        assert again.private.keys() == done.private.keys(), "private tensors appear or vanish between rounds"

    def test_integer_buffers_survive(self, component: PersonalizationStrategy, setting: Setting) -> None:
        """Counters stay integers, are trained, and reach the personal model of the next round."""
        r = client_round(component, setting)
        fresh = component.personal_model(r).state_dict()
        counters = {key: value for key, value in fresh.items() if not value.is_floating_point()}
        done = component.local_update(r)
        lost = [key for key in counters if key not in done.private]
        assert not lost, f"integer buffers that are not kept: {', '.join(lost[:3])}"
        after = component.personal_model(next_round(component, setting, done)).state_dict()
        for key, before in counters.items():
            assert after[key].dtype == before.dtype, f"{key} becomes {after[key].dtype}"
        changed = any(not torch.equal(after[key], before) for key, before in counters.items())
        assert changed or not counters, "no integer buffer of the personal model has counted"

    def test_the_first_round_needs_no_private_tensor(
        self, component: PersonalizationStrategy, setting: Setting
    ) -> None:
        """A client that is new can evaluate what came: finite logits, the same each time."""
        r = client_round(component, setting)
        one, two = (component.personal_model(r)(setting.images) for _ in range(2))
        assert bool(one.isfinite().all()), "the personal model of a new client gives logits that are not finite"
        assert_equal({"logits": two}, {"logits": one}, "personal models of a new client")

    def test_adversarial_training_is_an_option(self, component: PersonalizationStrategy, setting: Setting) -> None:
        """Where the configuration has `adversarial`, its share decides what is trained; without one it is off."""
        if not isinstance(getattr(component.config, "adversarial", None), AdversarialTraining):
            pytest.skip("the configuration has no section adversarial")
        states = []
        for share in (0.0, 1.0):
            attack = {"share": share, "eps": 0.1, "step": 0.1, "steps": 1}
            strategy = type(component)({**component.config.model_dump(), "adversarial": attack})
            done = strategy.local_update(client_round(strategy, setting))
            states.append(component.personal_model(next_round(component, setting, done)))
        benign, attacked = (state.state_dict() for state in states)
        same = all(torch.equal(benign[key], attacked[key]) for key in benign)
        assert not same, "adversarial.share changes nothing: train with task=self.hardened(r.task, r)"

    def test_group_positives_are_an_option(self, component: PersonalizationStrategy, setting: Setting) -> None:
        """Where the configuration has `group_positives`, their weight decides what is trained."""
        if not isinstance(getattr(component.config, "group_positives", None), GroupPositives):
            pytest.skip("the configuration has no section group_positives")
        states = []
        for weight in (0.1, 10.0):
            strategy = type(component)({**component.config.model_dump(), "group_positives": {"weight": weight}})
            done = strategy.local_update(client_round(strategy, setting))
            states.append(component.personal_model(next_round(component, setting, done)).state_dict())
        same = all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        assert not same, "group_positives.weight changes nothing: train with task=self.hardened(r.task, r)"

    def test_the_personal_model_is_the_exported(
        self, component: PersonalizationStrategy, setting: Setting, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """What is evaluated is what is put into the chain: saved and loaded, it answers the same."""
        done = component.local_update(client_round(component, setting))
        r = next_round(component, setting, done)
        one, two = component.personal_model(r), component.personal_model(r)
        assert_equal(two.state_dict(), one.state_dict(), "personal_model called twice")
        assert not one.training, "personal_model must be in eval mode"
        assert isinstance(one, ClassifierModel), f"personal_model must keep the model's type; got {type(one).__name__}"
        folder = tmp_path_factory.mktemp("personal") / "model"
        one.save(folder)
        exported = ClassifierModel.load(folder)(setting.images)
        assert_equal({"logits": exported}, {"logits": two(setting.images)}, "exported against evaluated")

    def test_foreign_tensors_are_refused(
        self, component: PersonalizationStrategy, model: nn.Module, setting: Setting
    ) -> None:
        """Unknown names and other shapes raise FederationError."""
        shared, private = component.split(model)
        key = next(iter(shared or private))
        for wrong in ({**shared, "no.such.key": torch.zeros(1)}, {**shared, key: torch.zeros(3, 1, 4, 1, 5)}):
            with pytest.raises(FederationError):
                component.personal_model(client_round(component, setting, shared=wrong, private=private))

    def test_aggregation(self, component: PersonalizationStrategy, model: nn.Module, setting: Setting) -> None:
        """The order in which clients answer is nothing; equal answers are kept; keys, shapes and dtypes stay."""
        previous = component.split(model)[0]
        metrics = component.local_update(client_round(component, setting)).metrics
        updates = [
            Update(name, _shifted(previous, place), 10 * (place + 1), metrics) for place, name in enumerate("abc")
        ]
        with unchanged(previous, "aggregate"):
            mean = component.aggregate(1, previous, updates)
        assert_equal(component.aggregate(1, previous, updates[::-1]), mean, "updates in another order")
        assert mean.keys() == previous.keys(), "aggregation loses or adds tensors"
        for key, value in previous.items():
            assert mean[key].dtype == value.dtype, f"{key} becomes {mean[key].dtype}"
        _assert_finite_on_cpu(mean)
        same = [Update(name, previous, 10, metrics) for name in "abc"]
        assert_near(component.aggregate(1, previous, same), previous, 1e-6, "every client sent what it got")

    def test_wrong_updates_are_refused(self, component: PersonalizationStrategy, model: nn.Module) -> None:
        """No update, a missing tensor or an additional one raise FederationError."""
        previous = component.split(model)[0]
        fewer = [[Update("a", dict(list(previous.items())[1:]), 1)]] if previous else []
        for updates in ([], *fewer, [Update("a", {**previous, "head.secret": torch.zeros(1)}, 1)]):
            with pytest.raises(FederationError):
                component.aggregate(1, previous, updates)


def next_round(strategy: PersonalizationStrategy, setting: Setting, done: LocalResult) -> ClientRound:
    """Round 2 of a client that was alone in round 1."""
    return client_round(strategy, setting, number=2, shared=done.shared, private=done.private)


def _tells_something(value: Tensor) -> bool:
    """A trained tensor of several values; a buffer that still holds zeros or ones tells nothing."""
    return value.is_floating_point() and value.unique().numel() > 1


def _contains(value: Tensor, secret: Tensor) -> bool:
    rows = value.flatten()[: secret.numel()]
    return rows.shape == secret.flatten().shape and torch.equal(rows, secret.flatten().to(rows))


def _shifted(tensors: Tensors, place: int) -> Tensors:
    return {key: value + 0.1 * (place + 1) * (1 + value.abs()) for key, value in tensors.items()}


def _assert_finite_on_cpu(tensors: Mapping[str, Tensor]) -> None:
    for key, value in tensors.items():
        assert value.device.type == "cpu", f"{key} is on {value.device}: tensors travel on the CPU"
        assert not value.requires_grad, f"{key} carries a graph"
        assert not value.is_floating_point() or bool(value.isfinite().all()), f"{key} is not finite"
