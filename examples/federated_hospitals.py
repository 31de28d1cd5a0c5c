"""Three hospitals train one classifier without moving a scan; each keeps its own head and its own threshold."""

import medfedpure
from medfedpure import ClassificationTask, TrainingConfig, static_view
from medfedpure.federation import Site, federate

data = medfedpure.create("dataset", "phantom", images=900, image_size=32, lesion_contrast=2.0).read()
hospitals = {
    name: part.split({"train": 0.5, "calibrate": 0.25, "test": 0.25})
    for name, part in zip(("north", "south", "west"), data.partition(3, by="site"), strict=True)
}
architecture = medfedpure.create("classifier", "small_cnn", widths=(16, 32))
strategy = medfedpure.create("personalization", "fedper")

sent: set[str] = set()  # the names of all tensors that ever travel
result = federate(
    [Site(name, parts["train"]) for name, parts in hospitals.items()],
    make_model=lambda: architecture.create_model(in_channels=1, num_classes=2, image_size=32),
    task=ClassificationTask(),
    strategy=strategy,
    training=TrainingConfig(steps=150, batch_size=16, learning_rate=5e-3),
    rounds=3,
    seed=0,
)
sent |= result.shared.keys()
model = next(iter(result.models.values()))
print(f"{len(sent)} tensors travel; the head stays: {', '.join(sorted(model.head_keys()))}")
assert not sent & model.head_keys(), "a private head has left its hospital"

attack = medfedpure.create("attack", "pgd_eot", eps="8/255", step="2/255", steps=10)
for name, parts in hospitals.items():
    detector = medfedpure.create("detector", "feature_squeezing")
    chain = medfedpure.DefendedClassifier(
        result.models[name], detector=detector, purifier=medfedpure.create("purifier", "median")
    )
    detector.fit(parts["train"], context=chain.context())
    chain.calibrate(parts["calibrate"], target_fpr=0.05)
    test = parts["test"]
    attacked = attack(static_view(chain), test.images, test.labels)
    benign, found = chain.predict(test.images, seed=0), chain.predict(attacked.images, seed=0)
    print(
        f"{name:<6} benign {(benign.labels == test.labels).float().mean():.3f}   attacked: bare "
        f"{(found.bare_logits.argmax(1) == test.labels).float().mean():.3f}, defended "
        f"{(found.labels == test.labels).float().mean():.3f}   flagged {found.flagged.float().mean():.3f}"
    )
print(f"accuracy on {len(test)} images each; {attacked.description}; the attacker ignores the defence")
