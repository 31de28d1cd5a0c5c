import medfedpure
from medfedpure import ClassificationTask, TrainingConfig, static_view, train

data = medfedpure.create("dataset", "phantom", images=800, image_size=32, lesion_contrast=2.0).read()
parts = data.split({"train": 0.4, "benign": 0.3, "test": 0.3})  # near-duplicates are never separated
architecture = medfedpure.create("classifier", "small_cnn", widths=(16, 32))
model = architecture.create_model(in_channels=1, num_classes=2, image_size=32)
train(model, ClassificationTask(), parts["train"], TrainingConfig(steps=200, batch_size=16), seed=0)

# A defence around any torch classifier, here with a small diffusion model that is trained for half a minute.
defended = medfedpure.defend(model, parts["benign"], budget="quick")
print(defended.calibration.describe())
print(defended.own_check)  # what it did on images of its own that it held out

test = parts["test"]
attack = medfedpure.create("attack", "pgd_eot", eps="8/255", step="2/255", steps=10)
attacked = attack(static_view(defended), test.images, test.labels)
for name, images in (("benign", test.images), ("attacked", attacked.images)):
    found = defended.predict(images, seed=0)
    bare = (found.bare_logits.argmax(1) == test.labels).float().mean()
    right = (found.labels == test.labels).float().mean()
    print(f"{name:<9} bare {bare:.3f}   defended {right:.3f}   flagged {found.flagged.float().mean():.3f}")
print(f"accuracy on {len(test)} images; attack: {attacked.description}; the attacker ignores the defence")
