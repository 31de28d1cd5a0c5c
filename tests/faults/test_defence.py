"""Faults of the defence: what threads, modes, odd classifiers and odd rates must not do."""

from __future__ import annotations

import copy
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest
import torch
from chains import BENIGN, DATA, chain_of, diffusing
from torch import Tensor, nn

import medfedpure
from medfedpure import Calibration, DefendedClassifier, Detector, MissingExtraError, registry
from medfedpure.core.errors import CalibrationError, InputError, ProbabilitiesWarning
from medfedpure.defence.defend import defend
from medfedpure.testing import tiny_classifier, tiny_dataset

CONFIGS = {
    "mae": {
        "model": {"width": 16, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_depth": 1},
        "training": {"steps": 2, "batch_size": 4},
    }
}


def detectors() -> list[str]:
    found = []
    for record in registry().plugins("detector"):
        try:
            registry().load("detector", record.name)
        except MissingExtraError:
            continue
        found.append(record.name)
    return found


# -- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", detectors())
def test_a03_threads_answer_as_one_after_another(name: str) -> None:
    """A3: two threads that ask one defence get what each would get alone, bit for bit, with every detector."""
    purifier = diffusing().purifier
    detector = medfedpure.create("detector", name, CONFIGS.get(name, {}))
    model = tiny_classifier()
    context = DefendedClassifier(model, purifier=purifier, policy="none").context()
    if not detector.fitted:
        detector.fit(BENIGN, context=context)
    chain = DefendedClassifier(model, detector=detector, purifier=purifier).calibrate(BENIGN, 0.3)
    portions = [tiny_dataset(6, seed=seed).images for seed in range(12)]

    def ask(place: int) -> tuple[Tensor, Tensor, Tensor]:
        found = chain.predict(portions[place], ids=torch.arange(6) + 10 * place, seed=3)
        return found.scores, found.flagged, found.logits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        wanted = [ask(place) for place in range(12)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(ask, [*range(12), *range(12)]))
    finally:
        torch.set_num_threads(before)
    for place, answer in enumerate(found):
        for one, other in zip(answer, wanted[place % 12], strict=True):
            assert torch.equal(one, other), f"the answer to portion {place % 12} changed beside other threads"


def test_a03_features_of_two_threads_are_not_exchanged() -> None:
    """A3: features are caught of one's own pass, where another thread passes the same network in the middle."""
    model = tiny_classifier()
    one, other = tiny_dataset(3, seed=1).images, tiny_dataset(5, seed=2).images
    wanted = model.features(one)
    begun, passed = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        begun.set()
        assert passed.wait(20)

    def pass_in_between() -> None:
        assert begun.wait(20)
        model(other)
        passed.set()

    handle = model.network.register_forward_pre_hook(wait)
    helper = threading.Thread(target=pass_in_between)
    helper.start()
    try:
        found = model.features(one)
    finally:
        handle.remove()
        helper.join()
    assert torch.equal(found, wanted)


# -- modes ------------------------------------------------------------------------------------------------------------


class Normalized(nn.Sequential):
    """The user's own module, with running statistics and dropout."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(2))
        self(torch.rand(4, *DATA.image_shape))
        self.eval()


def state_of(model: nn.Module) -> tuple[dict[str, Tensor], list[bool]]:
    return copy.deepcopy(model.state_dict()), [part.training for part in model.modules()]


@pytest.mark.parametrize("call", ["predict", "forward", "read", "score_benign"])
def test_a04_a_model_in_training_mode_is_read_in_eval_mode(call: str) -> None:
    """A4: `model.train()` after `defend` moves no answer, and a prediction changes no statistics and no mode."""
    model = Normalized()
    median = medfedpure.create("purifier", "median")
    chain = DefendedClassifier(model, detector=medfedpure.create("detector", "feature_squeezing"), purifier=median)
    chain.calibrate(BENIGN, 0.3)
    asked = {
        "predict": lambda: chain.predict(DATA.images, seed=0).logits,
        "forward": lambda: chain(DATA.images),
        "read": lambda: chain.read(DATA.images),
        "score_benign": lambda: chain.score_benign(DATA.images),
    }[call]
    wanted = asked()
    model.train()
    model[1].eval()  # a frozen layer
    tensors, modes = state_of(model)
    assert torch.equal(asked(), wanted), "the answer depends on the mode of the user's model"
    after, modes_after = state_of(model)
    assert modes_after == modes, "a mode was not given back"
    assert all(torch.equal(after[key], tensors[key]) for key in tensors), "running statistics were rewritten"


# -- classifiers that answer nothing ----------------------------------------------------------------------------------


class Broken(nn.Module):
    """NaN for some images."""

    def __init__(self, bad: int) -> None:
        super().__init__()
        self.inner, self.bad = tiny_classifier(), bad

    def forward(self, images: Tensor) -> Tensor:
        logits = self.inner(images)
        rows = torch.arange(len(images))[:, None] < self.bad
        return torch.where(rows, torch.nan, logits)


@pytest.mark.parametrize("policy", ["none", "purify_all"])
def test_a06_nan_is_no_verdict(policy: str) -> None:
    """A6: a classifier that answers NaN is refused with the number of bad rows; never a class."""
    median = medfedpure.create("purifier", "median")
    chain = DefendedClassifier(Broken(3), purifier=median, policy=policy)
    with pytest.raises(InputError, match="NaN or infinity for 3 of 30 images"):
        chain.predict(DATA.images)
    with pytest.raises(InputError, match="NaN or infinity for 3 of 30 images"):
        chain(DATA.images)


def test_a06_nan_after_purification_is_no_verdict() -> None:
    """A6: the same where only the cleaned images break the classifier."""

    class BreaksOnSmooth(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            rough = images.diff(dim=3).abs().flatten(1).mean(1)
            return torch.stack((rough, -rough), 1) / (rough > 0.02).to(rough)[:, None]

    median = medfedpure.create("purifier", "median", size=7)
    chain = DefendedClassifier(BreaksOnSmooth(), purifier=median, policy="purify_all")
    with pytest.raises(InputError, match="NaN or infinity"):
        chain.predict(DATA.images)


def test_a06_an_evaluation_does_not_finish_on_nan() -> None:
    """A6: `evaluate` refuses such a model instead of counting its answers."""
    with pytest.raises(InputError, match="NaN or infinity"):
        medfedpure.evaluate({"bare": DefendedClassifier(Broken(2), policy="none")}, DATA, eps=(0.05,))


def test_a22_probabilities_are_noticed() -> None:
    """A22: a softmax inside the model is said once, and the answer is given all the same."""
    model = nn.Sequential(tiny_classifier(), nn.Softmax(1))
    with pytest.warns(ProbabilitiesWarning, match="logits are wanted"):
        found = DefendedClassifier(model, policy="none").predict(DATA.images)
    assert torch.equal(found.labels, tiny_classifier()(DATA.images).argmax(1))


def test_a22_logits_are_not_taken_for_probabilities() -> None:
    """A22: rows that do not all lie in [0, 1] and sum to 1 raise no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DefendedClassifier(tiny_classifier(), policy="none").predict(DATA.images)


def test_a22_half_precision_answers_are_converted() -> None:
    """A22: float16 logits of float32 images come back as float32."""

    class Half(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return tiny_classifier()(images).half()

    assert DefendedClassifier(Half(), policy="none").predict(DATA.images).logits.dtype == torch.float32


def test_a22_another_dtype_than_the_models_is_said() -> None:
    """A22: float64 images on a float32 model end in a sentence that names both."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(DATA.images[0].numel(), 2))
    with pytest.raises(InputError, match=r"weights are torch\.float32 .* and the images torch\.float64"):
        DefendedClassifier(model, policy="none").predict(DATA.images.double())


# -- thresholds -------------------------------------------------------------------------------------------------------


class Rounds(Detector):
    """One score for all images, give or take the last bit, which depends on the batch."""

    deterministic = True

    def score(self, images: Tensor, *, context: object, streams: object) -> Tensor:
        return torch.full((len(images),), 0.3) * (1 + (len(images) % 3 - 1) * 2e-7)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 6, 7, 8, 64])
def test_a12_no_flag_hinges_on_one_rounding_step(batch_size: int) -> None:
    """A12: benign images that score exactly the threshold are not flagged, whatever the batch."""
    chain = DefendedClassifier(tiny_classifier(), detector=Rounds(), policy="abstain").calibrate(BENIGN, 0.3)
    found = chain.predict(DATA.images, batch_size=batch_size)
    assert not found.flagged.any(), "a rounding step decides"
    assert torch.equal(found.p_values, torch.ones(30, dtype=torch.float64)), "equal scores have p = 1"


def test_a12_what_lies_clearly_above_is_flagged() -> None:
    """A12: the tolerance is rounding's, not a margin: a score a ten-thousandth above the largest is flagged."""
    calibration = Calibration.fit(torch.linspace(0.1, 0.9, 99), 0.05)
    threshold = calibration.threshold()
    asked = torch.tensor([threshold, threshold * (1 + 1e-6), threshold * (1 + 1e-4)], dtype=torch.float64)
    assert calibration.flagged(asked).tolist() == [False, False, True]
    assert torch.equal(calibration.flagged(asked), calibration.p_values(asked) <= 0.05), "p-value and flag disagree"


def test_a12_small_scores_keep_their_order() -> None:
    """A12: scores of 1e-8, such as squared errors, are told apart as well as large ones."""
    calibration = Calibration.fit(torch.linspace(0.1, 0.9, 99) * 1e-8, 0.05)
    assert calibration.flagged(torch.tensor([calibration.threshold() * (1 + 1e-4)], dtype=torch.float64)).all()


def test_a14_a_rate_that_flags_nothing_is_refused() -> None:
    """A14: `predict(target_fpr=...)` refuses what `calibrate` refuses, and says how many images are wanted."""
    chain = chain_of(target_fpr=0.3)
    with pytest.raises(CalibrationError, match="bring at least 999999999"):
        chain.predict(DATA.images, target_fpr=1e-9)
    with pytest.raises(CalibrationError, match=r"must lie in \(0, 1\)"):
        chain.predict(DATA.images, target_fpr=1.5)
    assert chain.predict(DATA.images, target_fpr=0.2).flagged.any()


def test_a14_a_calibration_allowed_to_flag_nothing_still_works() -> None:
    """A14: who asked for it with allow_never_flagging gets it."""
    chain = chain_of(calibrate=False).calibrate(BENIGN.images[:5], 0.05, allow_never_flagging=True)
    assert not chain.predict(DATA.images).flagged.any()


# -- seeds and numbers ------------------------------------------------------------------------------------------------


def test_a18_a_number_of_numpy_is_the_number() -> None:
    """A18: seeds, rates and sizes of numpy give what Python's give."""
    chain = diffusing()
    found = chain.predict(DATA.images, seed=numpy.int64(3), target_fpr=numpy.float64(0.3), batch_size=numpy.int32(8))
    wanted = chain.predict(DATA.images, seed=3, target_fpr=0.3, batch_size=8)
    assert torch.equal(found.logits, wanted.logits)
    scores = torch.linspace(0, 1, 99)
    assert Calibration.fit(scores, numpy.float64(0.05)).threshold() == Calibration.fit(scores, 0.05).threshold()
    made = medfedpure.create("purifier", "median", size=numpy.int64(5))
    assert made.config.size == 5
    assert medfedpure.create("attack", "pgd_eot", eps=numpy.float32(0.5)).config.eps == 0.5
    parts = BENIGN.split({"a": numpy.float64(0.5), "b": 0.5}, seed=numpy.int64(1))
    assert torch.equal(parts["a"].ids, BENIGN.split({"a": 0.5, "b": 0.5}, seed=1)["a"].ids)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a20_forked_workers_draw_noise_of_their_own() -> None:
    """A20: after one `forward` in the parent, three forked children and the parent draw four different noises."""
    chain = diffusing()
    chain(DATA.images[:1])
    drawn = [chain.next_streams(1).seed]
    for _ in range(3):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover
            os.write(writer, str(chain.next_streams(1).seed).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as stream:
            drawn.append(int(stream.read()))
        os.waitpid(child, 0)
    assert len(set(drawn)) == 4, "two processes share their fresh noise"


def test_a20_threads_and_copies_draw_noise_of_their_own() -> None:
    """A20: so do threads of one process, and a copy of a defence."""
    chain = diffusing()
    with ThreadPoolExecutor(8) as pool:
        seeds = list(pool.map(lambda _: chain.next_streams(1).seed, range(400)))
    assert len(set(seeds)) == 400
    assert copy.deepcopy(chain).next_streams(1).seed not in seeds


def test_a20_a_sequence_that_repeats_does_so_in_a_copy() -> None:
    """A20: inside `noise_sequence` noise is repeatable by intent."""
    chain = diffusing()
    with chain.noise_sequence(4):
        first = [chain.next_streams(1).seed for _ in range(3)]
    with chain.noise_sequence(4):
        assert [chain.next_streams(1).seed for _ in range(3)] == first


@pytest.mark.filterwarnings("ignore::medfedpure.core.errors.WeakDefenceWarning")
def test_a20_defending_draws_nothing_global() -> None:
    """A20: `defend` and what it makes leave the global generators alone."""
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    defend(tiny_classifier(), BENIGN, detector="feature_squeezing", purifier="median", target_fpr=0.2)
    assert torch.equal(torch.rand(1), wanted)
