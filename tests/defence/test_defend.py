"""Three lines for a model one already has."""

import warnings

import pytest
import torch

import medfedpure
from medfedpure.core.errors import CalibrationError, ConfigError, InputError, WeakDefenceWarning
from medfedpure.core.progress import Lines, listening, track
from medfedpure.core.registry import create
from medfedpure.defence.budget import with_budget
from medfedpure.defence.defend import from_tensor

QUICK = {"model": {"widths": [8, 8], "unshuffle": 2}, "training": {"steps": 2, "batch_size": 4}}


def a_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 3))


def eight_bit(count):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 1, 16, 16), generator=generator) / 255


def test_a_tensor_is_enough():
    model = a_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.warns(WeakDefenceWarning, match="only 0 of "):
        defended = medfedpure.defend(model, eight_bit(80), purifier_config=QUICK)
    prediction = defended.predict(eight_bit(5), seed=0)
    assert prediction.labels.shape == (5,)
    assert len(defended.calibration) == 24
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_other_parts_by_name():
    detector = {
        "model": {"width": 16, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_depth": 1},
        "training": {"steps": 2, "batch_size": 4},
    }
    defended = medfedpure.defend(
        a_model(),
        eight_bit(80),
        detector="mae",
        detector_config=detector,
        purifier="median",
        policy="abstain",
        check_share=0,
    )
    assert defended.predict(eight_bit(3), seed=0).abstained.shape == (3,)


def test_too_few_images_are_an_error():
    with pytest.raises(
        CalibrationError, match=r"20 independent benign images came.* bring about 64 in all, so that 19 are kept"
    ):
        medfedpure.defend(a_model(), eight_bit(20), purifier_config=QUICK)


def test_images_out_of_range_are_an_error():
    with pytest.raises(InputError, match="before normalization"):
        medfedpure.defend(a_model(), eight_bit(80) * 2 - 1, purifier_config=QUICK)


def test_a_tensor_keeps_its_depth():
    fine = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    kept = from_tensor(fine)
    assert kept.pixels.dtype == torch.uint16
    assert (kept.images - fine).abs().max() <= 0.51 / 65535
    coarse = eight_bit(4)
    kept = from_tensor(coarse)
    assert kept.pixels.dtype == torch.uint8
    assert torch.equal(kept.images, coarse)


# -- budgets ----------------------------------------------------------------------------------------------------------


def test_standard_is_what_the_plugin_says() -> None:
    for given in (None, {}, QUICK):
        assert with_budget("purifier", "ddpm", given, "standard") is given


def test_budgets_scale_what_is_trained_and_leave_the_rest_of_its_training() -> None:
    usual = create("purifier", "ddpm").config
    for budget in ("quick", "thorough"):
        assert with_budget("purifier", "median", {"size": 5}, budget) == {"size": 5}
    thorough = create("purifier", "ddpm", with_budget("purifier", "ddpm", None, "thorough")).config
    assert thorough == usual.model_copy(update={"training": usual.training.model_copy(update={"steps": 8000})})
    quick = create("purifier", "ddpm", with_budget("purifier", "ddpm", None, "quick")).config
    assert quick.training.steps * quick.training.batch_size < usual.training.steps * usual.training.batch_size / 10
    assert max(quick.model.widths) < max(usual.model.of((1, 64, 64)).widths)
    autoencoder = create("detector", "mae").config.training
    shorter = create("detector", "mae", with_budget("detector", "mae", None, "quick")).config.training
    assert (shorter.steps, shorter.batch_size) == (autoencoder.steps // 5, 16)
    assert (shorter.learning_rate, shorter.ema) == (autoencoder.learning_rate, autoencoder.ema)


def test_what_the_caller_says_wins_key_by_key() -> None:
    training = medfedpure.TrainingConfig(steps=3)
    for given in ({"training": {"steps": 3}, "t_max": 120}, {"training": training, "t_max": 120}):
        found = create("purifier", "ddpm", with_budget("purifier", "ddpm", given, "quick")).config
        quick = create("purifier", "ddpm", with_budget("purifier", "ddpm", None, "quick")).config
        assert (found.training.steps, found.t_max) == (3, 120)
        assert found.training == quick.training.model_copy(update={"steps": 3})
        assert found.model == quick.model


def test_no_other_budget_is_known() -> None:
    with pytest.raises(ConfigError, match=r"'fast'; the budgets are quick, standard, thorough"):
        medfedpure.defend(a_model(), eight_bit(80), budget="fast")


# -- progress ---------------------------------------------------------------------------------------------------------


class Heard:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.loops: list[tuple[str, int]] = []
        self.steps: dict[int, int] = {}
        self.over: list[int] = []

    def started(self, description: str, total: int) -> int:
        self.loops.append((description, total))
        return len(self.loops) - 1

    def advanced(self, handle: int, note: str = "") -> None:
        self.steps[handle] = self.steps.get(handle, 0) + 1

    def finished(self, handle: int) -> None:
        self.over.append(handle)


def test_every_phase_is_told_and_shown() -> None:
    lines: list[str] = []
    with listening(heard := Heard()), warnings.catch_warnings():
        warnings.simplefilter("ignore", WeakDefenceWarning)
        medfedpure.defend(a_model(), eight_bit(80), purifier_config=QUICK, say=lines.append)
    told = dict(heard.loops)
    for phase in (
        "fit the purifier 'ddpm'",
        "diffusion model",
        "fit the detector 'compose'",
        "calibration",
        "own check",
    ):
        assert phase in told, f"{phase} reported no step: {told}"
    assert all(heard.steps[handle] == total for handle, (_, total) in enumerate(heard.loops))
    assert sorted(heard.over) == list(range(len(heard.loops)))
    text = "\n".join(lines)
    for words in (
        "80 benign images, each taken for itself: 46 to fit, 24 to calibrate, 10 to check",
        "the purifier 'ddpm' is fitted on 46 images, 2 steps of 4",
        "the detector 'compose' is fitted on 46 images",
        "the threshold is set on one image of each of 24 groups",
        "own check: 10 images",
        "EoT 1",
    ):
        assert words in text, f"{words!r} was not said:\n{text}"


def test_a_forecast_is_said_once_it_is_known() -> None:
    """A first step of 10 s that warms up, then 1 s each: a hundred take 109 s, known after two."""
    clock = iter([0.0, *(10.0 + step for step in range(100)), 109.0])
    lines: list[str] = []
    with listening(Lines(lines.append, every=40.0, clock=lambda: next(clock))):
        for step in track(range(100), "training", 100):
            assert lines[:1] == ([] if step < 2 else ["training: 100 steps, about 109 s"])
    assert lines[1:] == [
        "training: 42 of 100 steps, about 58 s left",
        "training: 82 of 100 steps, about 18 s left",
        "training: took 109 s",
    ]


def test_short_loops_say_nothing() -> None:
    lines: list[str] = []
    with listening(Lines(lines.append, clock=lambda: 0.0)):
        assert sum(track(range(100), "training", 100)) == 4950
    assert lines == []
