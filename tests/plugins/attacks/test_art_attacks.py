"""ART's further attacks: each fools, keeps its promise, and does what ART's own class gets wrong right."""

import threading

import pytest
import torch
from torch import nn

import medfedpure
from medfedpure.core.attack import ThreatView
from medfedpure.core.errors import AuditError, ConfigError, InputError
from medfedpure.core.streams import Streams
from medfedpure.testing import tiny_classifier, tiny_dataset

DATA = tiny_dataset()
BATCH = DATA.batch(torch.arange(12) * 4)
IMAGES, LABELS = BATCH.images, BATCH.labels
BOUNDED = {
    "apgd": {"steps": 20},
    "auto_attack": {"steps": 20, "rounds": 1, "queries": 100},
    "square": {"queries": 200},
}
NEAREST = {
    "carlini_wagner": {"steps": 10},
    "deepfool": {},
    "hop_skip_jump": {"steps": 5, "queries": 30},
}


@pytest.fixture(scope="module")
def model():
    return tiny_classifier()


@pytest.fixture(scope="module")
def three_classes():
    """A linear model of three classes, as unsure as noise makes it."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3, bias=False))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(3, 64, generator=generator))
    images = torch.rand(16, 1, 8, 8, generator=generator)
    return model, images, model(images).argmax(1)


def halves():
    """Masks that differ from image to image: the left half, then the right one, and so on."""
    mask = torch.zeros(len(IMAGES), 1, *IMAGES.shape[2:], dtype=torch.bool)
    mask[::2, ..., :16] = True
    mask[1::2, ..., 16:] = True
    return mask


def in_l2(result):
    return (result.images - IMAGES).flatten(1).norm(dim=1)


def share(result):
    return float(result.success.float().mean())


@pytest.mark.parametrize("name", BOUNDED)
def test_bounded_attacks_fool_within_their_budget(model, name):
    result = medfedpure.create("attack", name, eps=0.1, **BOUNDED[name])(model, IMAGES, LABELS)
    assert share(result) > 0.8
    assert float(result.distance.max()) <= 0.1 * 1.0001


@pytest.mark.parametrize("name", ["apgd", "auto_attack"])
def test_in_l2_too(model, name):
    result = medfedpure.create("attack", name, norm="l2", eps=1.0, **BOUNDED[name])(model, IMAGES, LABELS)
    assert share(result) > 0.8
    assert float(in_l2(result).max()) <= 1.0001


@pytest.mark.parametrize("name", NEAREST)
def test_attacks_without_a_budget_find_something_near(model, name):
    result = medfedpure.create("attack", name, **NEAREST[name])(model, IMAGES, LABELS)
    assert share(result) == 1
    assert float(in_l2(result).median()) < 2.5, "a whole image of this size is about 20 wide"


def test_carlini_wagner_goes_the_shortest_way(model):
    found = {name: in_l2(medfedpure.create("attack", name, **NEAREST[name])(model, IMAGES, LABELS)) for name in NEAREST}
    assert float(found["carlini_wagner"].median()) < float(found["deepfool"].median()), "it searches, the other steps"
    assert float(found["carlini_wagner"].median()) < float(found["hop_skip_jump"].median()), "it sees gradients"


def test_carlini_wagner_in_linf_is_small_in_linf(model):
    near = {
        norm: medfedpure.create("attack", "carlini_wagner", norm=norm, steps=20)(model, IMAGES, LABELS)
        for norm in ("linf", "l2")
    }
    assert share(near["linf"]) == 1
    assert float(near["linf"].distance.median()) < float(near["l2"].distance.median())
    with pytest.raises(InputError, match="does not support targets"):
        medfedpure.create("attack", "carlini_wagner", norm="linf")(model, IMAGES, LABELS, targets=1 - LABELS)


@pytest.mark.parametrize("name", NEAREST)
def test_an_image_that_is_read_wrong_already_stays(model, name):
    """Of two classes, the nearest other reading would be the right one: an attack that repairs."""
    labels = LABELS.clone()
    labels[:6] = 1 - labels[:6]
    result = medfedpure.create("attack", name, **NEAREST[name])(model, IMAGES, labels)
    assert torch.equal(result.images[:6], IMAGES[:6])
    assert bool(result.success.all())


def test_targets(three_classes):
    model, images, labels = three_classes
    targets = (labels + 1) % 3
    for name, options in (("apgd", {"eps": 0.3, "steps": 20}), ("carlini_wagner", {"steps": 10})):
        result = medfedpure.create("attack", name, **options)(model, images, labels, targets=targets)
        assert float((model(result.images).argmax(1) == targets).float().mean()) > 0.8, name


def test_the_logit_ratio_needs_three_classes(model, three_classes):
    attack = medfedpure.create("attack", "apgd", loss="dlr", eps=0.1, steps=20)
    with pytest.raises(InputError, match="the model has 2: pass loss='cross_entropy'"):
        attack(model, IMAGES, LABELS)
    assert share(attack(*three_classes)) > 0.8


def test_more_rounds_fool_no_fewer(model):
    one, three = (
        medfedpure.create("attack", "apgd", eps=0.03, steps=10, rounds=rounds)(model, IMAGES, LABELS).success
        for rounds in (1, 3)
    )
    assert bool((one <= three).all())


@pytest.mark.parametrize(("norm", "square"), [("linf", ["SquareAttack"]), ("l2", [])])
def test_the_mix_holds_the_parts_that_are_defined(model, three_classes, norm, square):
    ours = medfedpure.create("attack", "auto_attack", norm=norm)
    apgd = "AutoProjectedGradientDescent"
    two = ours.make(medfedpure.to_art(model, input_shape=(1, 32, 32), num_classes=2), targeted=False).attacks
    three = ours.make(medfedpure.to_art(three_classes[0], input_shape=(1, 8, 8), num_classes=3), targeted=False).attacks
    assert [type(part).__name__ for part in two] == [apgd, "DeepFool", *square]
    assert [type(part).__name__ for part in three] == [apgd, apgd, "DeepFool", *square]


def test_the_mix_leaves_what_resists(model):
    result = medfedpure.create("attack", "auto_attack", eps=0.001, **BOUNDED["auto_attack"])(model, IMAGES, LABELS)
    assert torch.equal(result.images[~result.success], IMAGES[~result.success])
    assert not bool(result.success.all())


class Counting(nn.Module):
    """Answers as a model does, without a gradient, and counts the images it was shown."""

    def __init__(self, model, *, decisions=False):
        super().__init__()
        self.model, self.decisions, self.shown = model, decisions, 0

    def forward(self, images):
        self.shown += len(images)
        with torch.no_grad():
            logits = self.model(images)
        return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).float() if self.decisions else logits


def test_square_needs_scores_alone_and_keeps_to_its_queries(model):
    hidden = Counting(model)
    result = medfedpure.create("attack", "square", eps=0.1, queries=200)(hidden, IMAGES, LABELS)
    assert share(result) > 0.8
    assert hidden.shown <= len(IMAGES) * (2 * 200 + 5)
    few = medfedpure.create("attack", "square", eps=0.1, queries=2)(model, IMAGES, LABELS)
    assert share(few) < share(result)


def test_square_fits_into_images_that_are_not_square():
    images = torch.rand(4, 1, 12, 40, generator=torch.Generator().manual_seed(0))
    brightness = ThreatView(lambda batch: torch.stack((m := batch.mean((1, 2, 3)) - 0.5, -m), 1))
    attack = medfedpure.create("attack", "square", eps=0.2, queries=30)
    assert share(attack(brightness, images, brightness(images).argmax(1))) > 0


def test_hop_skip_jump_needs_decisions_alone(model):
    attack = medfedpure.create("attack", "hop_skip_jump", **NEAREST["hop_skip_jump"])
    assert share(attack(Counting(model, decisions=True), IMAGES, LABELS)) == 1


def test_hop_skip_jump_repeats_although_art_seeds_nothing(model):
    attack = medfedpure.create("attack", "hop_skip_jump", steps=1, queries=10)
    first, again, other = (
        attack(model, IMAGES[:3], LABELS[:3], streams=Streams.for_batch(seed, 3)).images for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_hop_skip_jump_ends_where_no_step_is_ever_good_enough():
    """A model that answers by turns: the step that ART halves until it succeeds may never do so."""

    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, images):
            self.calls += 1
            fooled = (len(images) > 1 and self.calls > 1) or self.calls in (3, 4)
            return torch.tensor([0.0, 1.0] if fooled else [1.0, 0.0]).expand(len(images), 2)

    attack = medfedpure.create("attack", "hop_skip_jump", steps=2, queries=4)
    assert attack(Moody(), IMAGES[:1], torch.zeros(1, dtype=torch.int64)).images.shape == IMAGES[:1].shape


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fgsm", {"batch_size": 5}),
        ("pgd", {"batch_size": 5, "step": 0.02, "random_starts": 2}),
        ("hop_skip_jump", {"steps": 3, "queries": 20}),
    ],
)
def test_each_image_keeps_to_its_own_mask(model, name, options, norm):
    if name != "hop_skip_jump":
        eps = 0.1 if norm == "linf" else 1.0
        options = {**options, "eps": eps, **({"step": eps / 4} if "step" in options else {})}
    mask = halves()
    result = medfedpure.create("attack", name, norm=norm, **options)(model, IMAGES, LABELS, mask=mask)
    changed = result.images != IMAGES
    assert not bool((changed & ~mask).any())
    assert bool((changed & mask).flatten(1).any(1)[result.success].all())
    assert share(result) > 0


@pytest.mark.parametrize(
    ("attack", "eps", "options"),
    [
        ("MomentumIterativeMethod", 0.1, {"eps_step": 0.02, "max_iter": 5}),
        ("BasicIterativeMethod", 0.1, {"eps_step": 0.02, "max_iter": 5}),
    ],
)
def test_masks_by_name(model, attack, eps, options):
    result = medfedpure.create("attack", "art", attack=attack, eps=eps, options=options)(
        model, IMAGES, LABELS, mask=halves()
    )
    assert not bool(((result.images != IMAGES) & ~halves()).any())
    with pytest.raises(InputError, match="does not support mask"):
        medfedpure.create("attack", "art", attack="AutoProjectedGradientDescent")(model, IMAGES, LABELS, mask=halves())


@pytest.mark.parametrize(
    ("attack", "eps", "why"),
    [
        ("AutoAttack", 0.1, "reads the labels"),
        ("CarliniLInfMethod", None, "whatever is not"),
        ("DeepFool", None, "no such mode"),
    ],
)
def test_what_art_would_aim_wrongly_is_refused_by_name(model, attack, eps, why):
    with pytest.raises(InputError, match=f"cannot be targeted, it .*{why}"):
        medfedpure.create("attack", "art", attack=attack, eps=eps)(model, IMAGES, LABELS, targets=1 - LABELS)


def test_options_that_art_refuses_are_a_configuration_error(model):
    with pytest.raises(ConfigError, match=r"ART refuses these options of AutoProjectedGradientDescent: .*eps"):
        medfedpure.create("attack", "apgd", eps=0.0)(model, IMAGES, LABELS)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("over", "counts"), [(1.0005, True), (1.01, False)])
def test_float_error_is_set_back_and_a_real_overspend_is_not(model, norm, over, counts):
    pgd = medfedpure.create("attack", "pgd", norm=norm, eps=0.1)

    class Overspends(type(pgd)):
        def craft(self, estimator, images, wanted, mask, *, targeted):
            step = torch.full_like(images, 0.1 * over)
            return images + (step if norm == "linf" else step / images[0].numel() ** 0.5)

    attack = Overspends(pgd.config)
    if counts:
        assert float(attack(model, IMAGES, LABELS).distance.max()) <= 0.1 * 1.00001
    else:
        with pytest.raises(AuditError, match=r"spent 0\.101"):
            attack(model, IMAGES, LABELS)


class TestPatch:
    def test_it_fools_and_covers_what_it_says(self, model):
        result = medfedpure.create("attack", "adversarial_patch", scale=0.25, steps=40)(model, IMAGES, LABELS)
        assert share(result) > 0.8
        covered = (result.images != IMAGES).flatten(1).sum(1)
        assert int(covered.max()) <= 8 * 8
        assert medfedpure.create("attack", "adversarial_patch").budget() is None

    def test_targets(self, three_classes):
        model, images, labels = three_classes
        targets = (labels + 1) % 3
        attack = medfedpure.create(
            "attack", "adversarial_patch", scale=0.8, shape="square", steps=40, learning_rate=0.3
        )
        result = attack(model, images, labels, targets=targets)
        assert float(result.success.float().mean()) > 0.6

    @pytest.mark.parametrize("shape", ["circle", "square"])
    def test_the_whole_patch_lies_inside_the_mask(self, model, shape):
        attack = medfedpure.create("attack", "adversarial_patch", shape=shape, steps=5, rotation=180.0)
        result = attack(model, IMAGES, LABELS, mask=halves())
        changed = (result.images != IMAGES).flatten(1).sum(1)
        assert int(changed.min()) >= 32, "most of a patch of 8 x 8 pixels was cut away"

    def test_a_mask_too_narrow_is_refused(self, model):
        mask = halves()
        mask[3] = False
        with pytest.raises(InputError, match="the masks of 1 of 12 images hold no patch of 8 pixels"):
            medfedpure.create("attack", "adversarial_patch")(model, IMAGES, LABELS, mask=mask)

    @pytest.mark.parametrize("masked", [False, True])
    def test_colours_and_sides_that_differ(self, masked):
        images = torch.rand(4, 3, 24, 40, generator=torch.Generator().manual_seed(0))
        brightness = ThreatView(lambda batch: torch.stack((m := batch.mean((1, 2, 3)) - 0.5, -m), 1))
        labels = brightness(images).argmax(1)
        mask = torch.zeros(4, 1, 24, 40, dtype=torch.bool)
        mask[..., 10:] = True
        attack = medfedpure.create("attack", "adversarial_patch", scale=0.4, steps=5)
        result = attack(brightness, images, labels, mask=mask if masked else None)
        assert bool((result.images != images).flatten(1).any(1).all())


def test_an_attack_of_art_gets_through_a_purifier_of_art(model):
    """Both seed the global generators; the purifier does it while the attack holds them."""
    purifier = medfedpure.create("purifier", "art", preprocessor="FeatureSqueezing", options={"bit_depth": 4})
    purifier.fit(DATA)
    chain = medfedpure.DefendedClassifier(model, purifier=purifier, policy="purify_all")
    before, found = torch.get_rng_state(), []

    def attack():
        square = medfedpure.create("attack", "square", eps=0.1, queries=5)
        found.append(square(chain, DATA.images[:4], DATA.labels[:4], streams=Streams.for_batch(0, 4)))

    thread = threading.Thread(target=attack, daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert found, "the two wait for each other"
    assert torch.equal(torch.get_rng_state(), before)
