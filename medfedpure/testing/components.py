"""What every plugin promises, whatever its kind."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import pytest
import torch
from pydantic import BaseModel

from medfedpure.core.attack import Attack
from medfedpure.core.component import Component
from medfedpure.core.dataset import ImageDataset, bits_of
from medfedpure.core.detector import ScoreContext
from medfedpure.core.errors import ConfigError, NotFittedError
from medfedpure.core.registry import registry
from medfedpure.testing.checking import assert_equal, global_rng_untouched, keep_global_rng, seed_everything, unchanged
from medfedpure.testing.observing import Observed, observe, observe_in_fresh_process, view_of
from medfedpure.testing.setting import Setting, tiny_context, tiny_dataset

DEVICE_VARIABLE = "MEDFEDPURE_TEST_DEVICE"


class ComponentContract:
    """The base of all contracts: override `unfitted`; other fixtures where the defaults do not suit."""

    kind: ClassVar[str] = ""

    @pytest.fixture(scope="class")
    @classmethod
    def unfitted(cls) -> Component:
        """A new instance with a small configuration, not fitted."""
        raise NotImplementedError("override the fixture `unfitted` with a new instance of your plugin")

    @pytest.fixture(scope="class")
    @classmethod
    def train(cls) -> ImageDataset:
        """What is fitted on; two classes, groups of two."""
        return tiny_dataset()

    @pytest.fixture(scope="class")
    @classmethod
    def context(cls) -> ScoreContext:
        """A small trained classifier, its features and a denoiser."""
        return tiny_context()

    @pytest.fixture(scope="class")
    @classmethod
    def component(cls, unfitted: Any, train: ImageDataset, context: ScoreContext) -> Any:
        """A fitted instance."""
        return fitted_copy(unfitted, train, context)

    @pytest.fixture(scope="class")
    @classmethod
    def practised(cls, component: Any) -> Any:
        """An instance trained enough for its quality to be judged; override it where `component` is hardly trained."""
        return component

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls) -> str:
        """A second device to compare with the CPU: what MEDFEDPURE_TEST_DEVICE says, else CUDA where present."""
        wanted = os.environ.get(DEVICE_VARIABLE) or ("cuda" if torch.cuda.is_available() else "")
        if not wanted:
            pytest.skip(f"no CUDA device here; {DEVICE_VARIABLE}=... names another")
        return wanted

    @pytest.fixture(scope="class")
    @classmethod
    def setting(cls, train: ImageDataset, context: ScoreContext) -> Setting:
        """Images, ids, strengths and context of the tests."""
        return Setting.of(train, context)

    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls, component: Any) -> Any:
        """What is asked: the component, or what it builds."""
        return component

    @pytest.fixture(scope="class")
    @classmethod
    def reloaded(cls, subject: Any, setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Observed:
        """What the saved part answers in a fresh process."""
        folder = tmp_path_factory.mktemp("reload")
        return observe_in_fresh_process({"part": subject}, setting, folder).of("part")

    def test_kind(self, component: Any) -> None:
        """It derives from the base class of its kind and is registered."""
        assert component.kind == self.kind, f"{type(component).__name__} is a {component.kind}, not a {self.kind}"
        assert registry().name_of(component), "it must be registered under the entry-point group 'medfedpure'"
        assert type(component).__doc__, f"{type(component).__name__} needs a docstring: listings show it"

    def test_flags_are_booleans(self, component: Any) -> None:
        """A class sets its flags, or an instance computes them."""
        for flag in ("deterministic", "differentiable", "per_image_streams", "needs_fit"):
            value = getattr(component, flag)
            assert isinstance(value, bool), f"{flag} must be True or False; got {value!r}"

    def test_unknown_configuration_is_refused(self, component: Any) -> None:
        """A typo is an error, not a silent default."""
        with pytest.raises(ConfigError):
            type(component)({**component.config.model_dump(), "no_such_option": 1})

    def test_configuration_is_described_and_frozen(self, component: Any) -> None:
        """Every field says what it is, and nothing can be changed after creation."""
        undescribed = list(_undescribed(type(component.config), ""))
        assert not undescribed, f"fields without a description: {', '.join(undescribed)}"
        assert type(component.config).model_config.get("frozen"), "a Config must be frozen"
        assert type(component.config).model_config.get("extra") == "forbid", "a Config must forbid unknown keys"

    def test_configuration_survives_json(self, component: Any) -> None:
        """What a saved folder or a run's file holds rebuilds the same configuration."""
        again = type(component)(component.config.model_dump(mode="json")).config
        assert again == component.config, f"{again!r} came back instead of {component.config!r}"

    def test_the_same_seed_gives_the_same_result(self, subject: Any, setting: Setting) -> None:
        """Bit-equal for one seed, whatever state the global generators are in."""
        with keep_global_rng():
            seed_everything(1)
            first = observe(subject, setting)
            seed_everything(2)
            again = observe(subject, setting)
        assert_equal(again, first, "equal seed, other global random state")

    def test_the_global_random_state_is_untouched(self, subject: Any, setting: Setting) -> None:
        """Neither torch, nor random, nor numpy is drawn from; an adapter restores what it seeded."""
        with global_rng_untouched(type(subject).__name__):
            observe(subject, setting)

    def test_inputs_are_not_modified(self, subject: Any, setting: Setting) -> None:
        """Images, labels, ids and strengths come back as they were given."""
        given = {name: getattr(setting, name) for name in ("images", "labels", "ids", "strength")}
        with unchanged(given, type(subject).__name__):
            observe(subject, setting)

    def test_a_saved_part_answers_the_same_in_a_fresh_process(
        self, subject: Any, setting: Setting, reloaded: Observed
    ) -> None:
        """Saved here, loaded there by name, bit-equal answers."""
        assert_equal(reloaded, observe(subject, setting), "saved, then loaded in a fresh process")


class FittedContract(ComponentContract):
    """What a part promises that may learn: detectors and purifiers."""

    def test_fit_is_needed_where_declared(self, unfitted: Any, setting: Setting) -> None:
        """`needs_fit` says whether it refuses to work before `fit`."""
        fresh = new_like(unfitted)
        assert fresh.fitted is not fresh.needs_fit, "needs_fit must say whether a new instance is fitted"
        if fresh.needs_fit:
            with pytest.raises(NotFittedError):
                observe(fresh, setting)
        else:
            observe(fresh, setting)

    def test_fit_repeats(self, component: Any, unfitted: Any, setting: Setting) -> None:
        """Fitting again on equal data gives a part that answers the same, and leaves no trace."""
        data = {"pixels": bits_of(setting.train.pixels), "labels": setting.train.labels}
        with global_rng_untouched("fit"), unchanged(data, "fit"):
            again = new_like(unfitted)
            result = again.fit(setting.train, context=setting.context)
        assert result is again, "fit must return self"
        assert again.fitted, "fit must end with mark_fitted()"
        assert_equal(observe(again, setting), observe(component, setting), "fitted twice on equal data")

    def test_stays_in_eval_mode(self, component: Any) -> None:
        """A defence does not change with its surroundings."""
        component.train()
        training = [name or "(itself)" for name, part in component.named_modules() if part.training]
        assert not training, f"train() put {', '.join(training[:5])} into training mode"


def new_like(component: Any) -> Any:
    """A new, unfitted instance of the same class and configuration."""
    fresh = type(component)(component.config)
    fresh.plugin_name = component.plugin_name
    return fresh


def fitted_copy(unfitted: Any, train: ImageDataset, context: ScoreContext) -> Any:
    """A fitted instance; parts that cannot be fitted are copied, and attacks that can do without."""
    fresh = new_like(unfitted)
    if isinstance(fresh, Attack):
        return fresh.fit(train, view=view_of(Setting.of(train, context))) if fresh.needs_fit else fresh
    if hasattr(fresh, "fit"):
        return fresh.fit(train, context=context)
    return fresh


def _undescribed(config: type[BaseModel], prefix: str) -> list[str]:
    found = []
    for name, field in config.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += _undescribed(kind, f"{prefix}{name}.")
        elif not field.description:
            found.append(prefix + name)
    return found
