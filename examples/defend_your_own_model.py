"""Guard a timm model that reads your own images: a folder with one sub-folder per class.

python defend_your_own_model.py FOLDER [--model resnet18] [--weights FILE.safetensors] [--size 64] [--steps 200]
                                [--detector NAME] [--purifier NAME] [--out DIR]

Without --detector and --purifier it takes two that learn nothing; compose and ddpm are those of `medfedpure.defend`.
"""

import argparse
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import medfedpure
from medfedpure import ClassificationTask, MedFedPureError, TrainingConfig, train

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path)
parser.add_argument("--model", default="resnet18", help="a name of timm.list_models()")
parser.add_argument("--weights", type=Path, help="your trained weights; without them it is trained here")
parser.add_argument("--size", type=int, default=64)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--detector", default="feature_squeezing")
parser.add_argument("--purifier", default="median")
parser.add_argument("--out", type=Path, default=Path("own-model-defence"))


class Normalized(torch.nn.Module):
    """The defence hands over images in [0, 1]: what your model expects beyond that belongs in here."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network((images - 0.5) / 0.5)


def main(options):
    data = medfedpure.create("dataset", "image_folder", root=str(options.folder), image_size=options.size).read()
    parts = data.split({"train": 0.3, "benign": 0.5, "test": 0.2})
    print(f"{len(data)} images of {', '.join(data.class_names)} in {data.num_groups} groups of near-duplicates")

    network = timm.create_model(options.model, num_classes=data.num_classes, in_chans=data.image_shape[0])
    model = Normalized(network)
    if options.weights is not None:
        try:
            network.load_state_dict(load_file(options.weights))
        except (OSError, SafetensorError, RuntimeError) as error:
            parser.error(f"--weights {options.weights} are not those of {options.model}: {error}")
    else:
        train(model, ClassificationTask(), parts["train"], TrainingConfig(steps=options.steps, batch_size=16), seed=0)

    defended = medfedpure.defend(
        model.eval(), parts["benign"], detector=options.detector, purifier=options.purifier, target_fpr=0.1
    )
    print(defended.calibration.describe())

    found = defended.predict(parts["test"].images)
    for label, p_value, flagged in zip(found.labels[:5], found.p_values[:5], found.flagged[:5], strict=True):
        verdict = "flagged, purified" if flagged else "as it came"
        print(f"{data.class_names[label]:<12} p = {p_value:.2f}   {verdict}")

    defended.save(options.out)
    again = medfedpure.DefendedClassifier.load(options.out, classifier=model)
    same = torch.equal(
        again.predict(parts["test"].images, seed=1).labels, defended.predict(parts["test"].images, seed=1).labels
    )
    print(f"saved to {options.out}; loaded again, it answers {'the same' if same else 'otherwise'}")


if __name__ == "__main__":
    given = parser.parse_args()
    if not timm.is_model(given.model):
        parser.error(f"timm has no model {given.model!r}: timm.list_models() names them")
    try:
        main(given)
    except MedFedPureError as error:
        parser.exit(1, f"error: {error}\n")
