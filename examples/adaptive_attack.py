"""The same defence before attackers that know more and more of it: the number that counts is the lowest."""

import medfedpure
from medfedpure import (
    ClassificationTask,
    Streams,
    TrainingConfig,
    bpda_view,
    detector_view,
    exact_view,
    static_view,
    train,
)

data = medfedpure.create("dataset", "phantom", images=400, image_size=32, lesion_contrast=2.0).read()
parts = data.split({"train": 0.4, "calibrate": 0.4, "test": 0.2})
architecture = medfedpure.create("classifier", "small_cnn", widths=(16, 32))
model = architecture.create_model(in_channels=1, num_classes=2, image_size=32)
train(model, ClassificationTask(), parts["train"], TrainingConfig(steps=200, batch_size=16), seed=0)

detector = medfedpure.create("detector", "mahalanobis")  # differentiable, as the exact gradient asks
chain = medfedpure.DefendedClassifier(
    model.requires_grad_(False), detector=detector, purifier=medfedpure.create("purifier", "median")
)
detector.fit(parts["train"], context=chain.context())
chain.calibrate(parts["calibrate"], target_fpr=0.05)

test = parts["test"]
budget = {"eps": "8/255", "step": "2/255", "steps": 20}
pgd = medfedpure.create("attack", "pgd_eot", **budget)
joint = medfedpure.create("attack", "joint_pgd", **budget)
attackers = (
    ("ignores the defence", pgd, static_view(chain)),
    ("identity for the purifier (BPDA)", pgd, bpda_view(chain)),
    ("exact gradient of the chain", pgd, exact_view(chain)),
    ("fools and hides (bare model)", joint, detector_view(chain)),
    ("fools and hides (whole chain)", joint, exact_view(chain)),
)

clean = chain.predict(test.images, seed=0)
worst = clean.labels == test.labels
print(f"{'no attack':<34} right {worst.float().mean():.3f}   flagged {clean.flagged.float().mean():.3f}")
for name, attack, view in attackers:
    attacked = attack(view, test.images, test.labels, streams=Streams(0, test.ids))
    found = chain.predict(attacked.images, seed=0)
    right = found.labels == test.labels
    worst = worst & right
    print(
        f"{name:<34} right {right.float().mean():.3f}   flagged {found.flagged.float().mean():.3f}   "
        f"wrong and hidden {(~right & ~found.flagged).float().mean():.3f}"
    )
print(f"{'worst case over all of them':<34} right {worst.float().mean():.3f}")
print(f"{len(test)} images; linf, eps 8/255, 20 steps of 2/255, EoT 1, one draw of noise to judge by")
