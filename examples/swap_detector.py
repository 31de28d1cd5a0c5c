"""Several detectors on the same attacked images, each chosen by its name alone.

python swap_detector.py [NAME ...]: names of installed detectors, a third party's included.
"""

import sys

import torch

import medfedpure
from medfedpure import ClassificationTask, TrainingConfig, auroc, static_view, train

names = sys.argv[1:] or ["feature_squeezing", "mahalanobis"]

data = medfedpure.create("dataset", "phantom", images=600, image_size=32, lesion_contrast=2.0).read()
parts = data.split({"train": 0.4, "calibrate": 0.3, "test": 0.3})
architecture = medfedpure.create("classifier", "small_cnn", widths=(16, 32))
model = architecture.create_model(in_channels=1, num_classes=2, image_size=32)
train(model, ClassificationTask(), parts["train"], TrainingConfig(steps=150, batch_size=16), seed=0)
test = parts["test"]

for name in names:
    detector = medfedpure.create("detector", name)
    purifier = medfedpure.create("purifier", "median")
    chain = medfedpure.DefendedClassifier(model, detector=detector, purifier=purifier)
    detector.fit(parts["train"], context=chain.context())
    chain.calibrate(parts["calibrate"], target_fpr=0.05)

    attack = medfedpure.create("attack", "pgd_eot", eps="8/255", step="2/255", steps=10)
    attacked = attack(static_view(chain), test.images, test.labels)
    benign, fooled = (chain.predict(x, seed=0) for x in (test.images, attacked.images[attacked.success]))
    with torch.no_grad():
        figure = auroc(benign.scores, fooled.scores)
    print(
        f"{name:<20} AUROC {figure:.3f}   flagged: benign {benign.flagged.float().mean():.3f}, "
        f"attacked {fooled.flagged.float().mean():.3f}"
    )
print(f"{len(test)} benign, {int(attacked.success.sum())} attacked that fool; {attacked.description}; static")
