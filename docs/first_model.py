import medfedpure
from medfedpure import ClassificationTask, TrainingConfig, train

drawn = {"images": 800, "image_size": 32, "lesion_contrast": 2.0}
data = medfedpure.create("dataset", "phantom", drawn).read()  # brain-like slices, drawn from a seed
parts = data.split({"train": 0.4, "benign": 0.4, "test": 0.2})
architecture = medfedpure.create("classifier", "small_cnn", widths=(16, 32))
model = architecture.create_model(in_channels=1, num_classes=2, image_size=32)
train(model, ClassificationTask(), parts["train"], TrainingConfig(steps=200, batch_size=16), seed=0)
benign, images, labels = parts["benign"], parts["test"].images, parts["test"].labels
