"""The contract of its kind over everything registered; what is tested follows from flags, never from names."""

from __future__ import annotations

import ast
import inspect
import os
from pathlib import Path
from typing import Any

import planted
import pytest
from conftest import SMALL_CONFIGS, Workshop

import medfedpure.testing
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import ScoreContext
from medfedpure.core.registry import KINDS, Plugin, create, registry
from medfedpure.testing import (
    AttackContract,
    ClassifierContract,
    DatasetContract,
    DetectorContract,
    PersonalizationContract,
    PurifierContract,
    Setting,
    tiny_context,
    tiny_dataset,
)
from medfedpure.testing.components import fitted_copy
from medfedpure.testing.observing import Observed, model_of
from medfedpure.testing.quality import many, planted_shifts, strengthened

CONTRACTS: tuple[Any, ...] = (
    ClassifierContract,
    DetectorContract,
    PurifierContract,
    PersonalizationContract,
    AttackContract,
    DatasetContract,
)
ALLOW_MISSING = "MEDFEDPURE_ALLOW_MISSING_EXTRAS"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every contract class runs once for each registered plugin of its kind."""
    if "plugin" in metafunc.fixturenames:
        records = registry().plugins(metafunc.cls.kind)
        metafunc.parametrize("plugin", records, ids=[record.name for record in records], scope="class")


class Registered:
    """Fixtures that take their parts from the workshop."""

    kind: str

    @pytest.fixture(scope="class")
    @classmethod
    def unfitted(cls, plugin: Plugin, workshop: Workshop) -> Any:
        missing = workshop.missing_extra(cls.kind, plugin.name)
        if missing is not None:
            pytest.skip(str(missing))
        return workshop.unfitted(cls.kind, plugin.name)

    @pytest.fixture(scope="class")
    @classmethod
    def component(cls, unfitted: Any, plugin: Plugin, workshop: Workshop) -> Any:
        return workshop.component(cls.kind, plugin.name)

    @pytest.fixture(scope="class")
    @classmethod
    def practised(cls, component: Any, plugin: Plugin, workshop: Workshop) -> Any:
        return workshop.practised(cls.kind, plugin.name)

    @pytest.fixture(scope="class")
    @classmethod
    def train(cls, workshop: Workshop) -> ImageDataset:
        return workshop.train

    @pytest.fixture(scope="class")
    @classmethod
    def context(cls, workshop: Workshop) -> ScoreContext:
        return workshop.context

    @pytest.fixture(scope="class")
    @classmethod
    def setting(cls, workshop: Workshop) -> Setting:
        return workshop.setting

    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls, component: Any, plugin: Plugin, workshop: Workshop) -> Any:
        return workshop.subject(cls.kind, plugin.name)

    @pytest.fixture(scope="class")
    @classmethod
    def reloaded(cls, subject: Any, plugin: Plugin, workshop: Workshop) -> Observed:
        return workshop.reloaded(cls.kind).of(plugin.name)


class TestEveryClassifier(Registered, ClassifierContract):
    pass


class TestEveryDetector(Registered, DetectorContract):
    pass


class TestEveryPurifier(Registered, PurifierContract):
    pass


class TestEveryPersonalization(Registered, PersonalizationContract):
    pass


class TestEveryAttack(Registered, AttackContract):
    pass


class TestEveryDataset(Registered, DatasetContract):
    pass


def test_every_kind_has_its_contract() -> None:
    kinds = [cls.kind for cls in Registered.__subclasses__()]
    assert sorted(kinds) == sorted(KINDS), f"contracts run over {kinds}; the kinds are {KINDS}"


def test_no_plugin_is_left_out(workshop: Workshop) -> None:
    assert not registry().failures, f"distributions that could not be taken in: {registry().failures}"
    for kind in KINDS:
        assert registry().plugins(kind), f"no {kind} is registered"
    missing = [str(workshop.missing_extra(r.kind, r.name)) for r in registry().plugins() if _lacks(workshop, r)]
    if missing and os.environ.get(ALLOW_MISSING):
        pytest.skip("; ".join(missing))
    assert not missing, f"contracts were skipped: {missing}. Install the extras, or set {ALLOW_MISSING}=1"


def test_small_configs_name_registered_plugins() -> None:
    known = {(record.kind, record.name) for record in registry().plugins()}
    assert SMALL_CONFIGS.keys() <= known, f"not registered: {SMALL_CONFIGS.keys() - known}"


def test_contracts_never_look_at_names() -> None:
    folder = Path(medfedpure.testing.__file__).parent
    for path in (Path(__file__), *folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare) and any(_is_name(side) for side in (node.left, *node.comparators)):
                sides = [side for side in (node.left, *node.comparators) if isinstance(side, ast.Constant)]
                named = [side.value for side in sides if isinstance(side.value, str)]
                assert not named, f"{path.name}:{node.lineno} tests by name {named}: use a flag"


def _lacks(workshop: Workshop, record: Plugin) -> bool:
    return workshop.missing_extra(record.kind, record.name) is not None


def _is_name(node: ast.expr) -> bool:
    return "name" in (getattr(node, "attr", ""), getattr(node, "id", ""))


class TestAsAnAuthorWouldDo(DetectorContract):
    """The example in the docstring of medfedpure.testing: everything but `unfitted` is left at its default."""

    @pytest.fixture(scope="class")
    @classmethod
    def unfitted(cls) -> Any:
        return create("detector", "denoising_disagreement")


# -- the contracts themselves: good plugins pass, and each fault is caught by the test that names it -------------

GOOD = (
    planted.GoodDetector,
    planted.GoodPurifier,
    planted.GoodAttack,
    planted.GoodStrategy,
    planted.GoodClassifier,
    planted.GoodDataset,
)
FAULTS = (
    (planted.LooksAtTheBatch, "test_batch_invariance", "alone against the batch"),
    (planted.NoiseByPlace, "test_noise_belongs_to_the_id", "one image under one id"),
    (planted.NoiseByPlace, "test_batch_invariance", "alone against the batch"),
    (planted.ForgetsWhoDraws, "test_noise_drawn_on_the_device", "take all noise from `streams`"),
    (planted.DrawsGlobally, "test_the_global_random_state_is_untouched", "global random state of torch"),
    (planted.DrawsGlobally, "test_the_same_seed_gives_the_same_result", "other global random state"),
    (planted.DrawsFromPython, "test_the_global_random_state_is_untouched", "global random state of random"),
    (planted.WritesIntoImages, "test_inputs_are_not_modified", "wrote into images"),
    (planted.NotDifferentiable, "test_gradients_where_declared", "does not depend on the images"),
    (planted.NotDeterministic, "test_deterministic_where_declared", "with another seed"),
    (planted.AlwaysFloat32, "test_scores", "keep the dtype"),
    (planted.UndeclaredRequirement, "test_requirements", "does not name"),
    (planted.TrainsTheClassifier, "test_the_context_is_only_lent", "wrote into network"),
    (planted.NotFinite, "test_one_row_for_each_image", "not finite"),
    (planted.FitForgotten, "test_fit_repeats", "mark_fitted"),
    (planted.HigherMeansBenign, "test_a_planted_shift_is_detected", "Higher must mean more suspicious"),
    (planted.CancelsDigits, "test_half_precision", "bfloat16"),
    (planted.AddsNoise, "test_planted_noise_is_reduced", "noise of std 0.2 is not reduced"),
    (planted.IsTooTimid, "test_accuracy_is_lowered", "accuracy is not lowered"),
    (planted.SharesWhatItKeeps, "test_the_head_stays_private", "network.head.weight must not travel"),
    (planted.SmugglesTheHead, "test_the_head_stays_private", "private network.head.weight travels as"),
    (planted.NeverLearns, "test_it_learns", "8 steps took the loss"),
    (planted.HasTwins, "test_equal_images_share_a_group", "equal pixel by pixel"),
    (planted.LeavesTheRange, "test_black_and_white_stay_in_range", "must lie in [0, 1]"),
    (planted.MixesImages, "test_batch_invariance", "alone against the batch"),
    (planted.OneStrengthForAll, "test_a_strength_is_of_one_image", "another image's strength"),
    (planted.FloatingCosts, "test_the_cost_is_counted", "nfe must be int64"),
    (planted.WrongWayRound, "test_stronger_changes_more", "strength 0 must be the mildest"),
    (planted.Overspends, "test_result", "budget of 0.03"),
    (planted.DoesNothing, "test_it_attacks", "nothing was gained"),
    (planted.LeavesGradients, "test_the_model_is_only_lent", "left gradients"),
    (planted.IgnoresTheSeedItPromised, "test_deterministic_where_declared", "another seed gives other images"),
    (planted.SharesIntegers, "test_only_floating_tensors_travel", "shares integer tensors"),
    (planted.LastClientWins, "test_aggregation", "updates in another order"),
    (planted.SharesAViewOfTheModel, "test_split_and_merge_are_the_identity", "split wrote into"),
    (planted.LosesTheHead, "test_split_and_merge_are_the_identity", "neither shared nor private"),
    (planted.IgnoresTheAttack, "test_adversarial_training_is_an_option", "adversarial.share changes nothing"),
    (planted.IgnoresTheAttack, "test_group_positives_are_an_option", "group_positives.weight changes nothing"),
    (planted.ForgetsItsCounters, "test_integer_buffers_survive", "integer buffers that are not kept"),
    (planted.SharesNothing, "test_is_shared_is_a_pure_function", "federated is True"),
    (planted.NormalizesOverTheBatch, "test_batch_invariance", "alone against the batch"),
    (planted.HasNoHead, "test_the_head", "head_keys is empty"),
    (planted.WrongFeatures, "test_features", "head(features) against logits"),
    (planted.ReadsOtherImagesEachTime, "test_reading_repeats", "reading twice"),
    (planted.HasOneClassOnly, "test_data", "a class has no image"),
)
NEED_REGISTRATION = frozenset({"test_kind", "test_a_saved_part_answers_the_same_in_a_fresh_process"})


@pytest.mark.parametrize("plugin_class", GOOD, ids=lambda cls: cls.__name__)
def test_a_good_plugin_keeps_its_contract(plugin_class: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    verdicts = _run_contract(plugin_class, tmp_path_factory)
    broken = {name: verdict for name, verdict in verdicts.items() if verdict is not None}
    assert not broken, f"{plugin_class.__name__} is good, and yet: {broken}"
    assert len(verdicts) > 10, f"only {len(verdicts)} tests ran"


@pytest.mark.parametrize(("plugin_class", "test", "words"), FAULTS, ids=lambda value: getattr(value, "__name__", value))
def test_a_fault_is_caught_and_named(
    plugin_class: Any, test: str, words: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    verdicts = _run_contract(plugin_class, tmp_path_factory, only=test)
    verdict = verdicts[test]
    assert verdict is not None, f"{test} lets {plugin_class.__name__} pass"
    assert words in verdict, f"the message does not name the fault by {words!r}: {verdict}"


def _run_contract(plugin_class: Any, factory: pytest.TempPathFactory, only: str = "") -> dict[str, str | None]:
    """What each contract test says of an unregistered plugin: None, or the failure."""
    contract = next(cls for cls in CONTRACTS if cls.kind == plugin_class.kind)
    train, context = tiny_dataset(), tiny_context()
    setting = Setting.of(train, context)
    unfitted = plugin_class()
    component = fitted_copy(unfitted, train, context)
    given = {"unfitted": unfitted, "component": component, "setting": setting, "tmp_path_factory": factory}
    given["subject"] = model_of(component, setting) if plugin_class.kind == "classifier" else component
    given["data"] = component.read() if plugin_class.kind == "dataset" else None
    given["model"] = context.classifier
    given["practised"], given["device"] = component, "cpu"
    given["shifts"] = planted_shifts(many(setting))
    given["strong"] = strengthened(component) if plugin_class.kind == "attack" else None
    verdicts: dict[str, str | None] = {}
    for name in dir(contract):
        if not name.startswith("test_") or name in NEED_REGISTRATION or only not in ("", name):
            continue
        test = getattr(contract(), name)
        arguments = {key: given[key] for key in inspect.signature(test).parameters}
        try:
            test(**arguments)
        except pytest.skip.Exception:
            continue
        except (Exception, pytest.fail.Exception) as error:
            verdicts[name] = f"{type(error).__name__}: {error}"
        else:
            verdicts[name] = None
    return verdicts
