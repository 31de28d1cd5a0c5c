"""The built-in plugins, registered through the same door as everybody else's."""

from collections.abc import Iterable

from medfedpure.core.registry import Plugin, hookimpl

_HERE = "medfedpure.plugins"


@hookimpl
def medfedpure_plugins() -> Iterable[Plugin]:
    """Records of every built-in plugin."""
    yield from (
        Plugin(
            "classifier",
            "small_cnn",
            f"{_HERE}.classifiers.small_cnn:SmallCNN",
            "four convolution blocks for small images on a CPU",
        ),
        Plugin(
            "classifier",
            "resnet18",
            f"{_HERE}.classifiers.resnet18:ResNet18",
            "ResNet-18 with a stem for small or large images (He 2016)",
            extra="mae",
        ),
        Plugin("classifier", "timm", f"{_HERE}.classifiers.timm:Timm", "any timm model by name", extra="mae"),
        Plugin(
            "classifier",
            "mixture",
            f"{_HERE}.classifiers.mixture:MixtureClassifier",
            "a mixture of experts of one architecture (Marfoq 2021)",
        ),
        Plugin(
            "detector",
            "mae",
            f"{_HERE}.detectors.mae:MAEDetector",
            "denoising masked autoencoder: reconstruction error or prediction shift",
            extra="mae",
        ),
        Plugin(
            "detector",
            "denoising_disagreement",
            f"{_HERE}.detectors.denoising_disagreement:DenoisingDisagreement",
            "prediction shift across a few evaluations of a diffusion model",
        ),
        Plugin(
            "detector",
            "score_norm",
            f"{_HERE}.detectors.score_norm:ScoreNorm",
            "how much noise a diffusion model sees in the image as it is",
        ),
        Plugin(
            "detector",
            "feature_squeezing",
            f"{_HERE}.detectors.feature_squeezing:FeatureSqueezing",
            "prediction shift under fewer bits and median filters (Xu 2018)",
        ),
        Plugin(
            "detector",
            "mahalanobis",
            f"{_HERE}.detectors.mahalanobis:Mahalanobis",
            "distance of features to those of benign images (Lee 2018)",
        ),
        Plugin(
            "detector",
            "compose",
            f"{_HERE}.detectors.compose:Compose",
            "smooth maximum of several detectors, standardized",
        ),
        Plugin(
            "detector",
            "art",
            f"{_HERE}.detectors.art:ArtDetector",
            "ART's subset scanning over the classifier's features",
            extra="attacks",
        ),
        Plugin(
            "purifier",
            "ddpm",
            f"{_HERE}.purifiers.ddpm:DDPM",
            "diffusion purifier, depth adapted to each image",
            extra="diffusion",
        ),
        Plugin(
            "purifier",
            "diffpure",
            f"{_HERE}.purifiers.diffpure:DiffPure",
            "diffusion at one fixed depth, step by step (Nie 2022), the anchor",
            extra="diffusion",
        ),
        Plugin(
            "purifier",
            "mae_inpaint",
            f"{_HERE}.purifiers.mae_inpaint:MAEInpaint",
            "every patch painted anew by a masked autoencoder (Tsai 2023)",
            extra="mae",
        ),
        Plugin(
            "purifier",
            "art",
            f"{_HERE}.purifiers.art:ArtPurifier",
            "ART's preprocessors: JPEG, spatial smoothing, total variation, feature squeezing",
            extra="attacks",
        ),
        Plugin(
            "purifier",
            "smoothing",
            f"{_HERE}.purifiers.smoothing:Smoothing",
            "one Gaussian copy, to be voted over (Cohen 2019, MedRDF)",
        ),
        Plugin("purifier", "median", f"{_HERE}.purifiers.median:Median", "3x3 median filter, the anchor"),
        Plugin(
            "personalization",
            "fedavg",
            f"{_HERE}.personalization.fedavg:FedAvg",
            "one model for all: everything is shared (McMahan 2017)",
        ),
        Plugin(
            "personalization",
            "fedper",
            f"{_HERE}.personalization.fedper:FedPer",
            "shared body, personal head (Arivazhagan 2019)",
        ),
        Plugin(
            "personalization",
            "fedprox",
            f"{_HERE}.personalization.fedprox:FedProx",
            "FedAvg with a pull to the global model (Li 2020)",
        ),
        Plugin(
            "personalization",
            "fedrep",
            f"{_HERE}.personalization.fedrep:FedRep",
            "personal head, fitted before the shared body (Collins 2021)",
        ),
        Plugin(
            "personalization",
            "fedbn",
            f"{_HERE}.personalization.fedbn:FedBN",
            "BatchNorm layers stay at the client (Li 2021)",
        ),
        Plugin(
            "personalization",
            "ditto",
            f"{_HERE}.personalization.ditto:Ditto",
            "a personal model pulled to the global one (Li 2021)",
        ),
        Plugin(
            "personalization",
            "local",
            f"{_HERE}.personalization.local:Local",
            "nothing is shared, the anchor",
        ),
        Plugin(
            "personalization",
            "mixture",
            f"{_HERE}.personalization.mixture:MixtureOfExperts",
            "shared experts, personal weights or gate (Marfoq 2021)",
        ),
        Plugin(
            "personalization",
            "pfeddef",
            f"{_HERE}.personalization.pfeddef:PFedDef",
            "mixture with adversarial training (Kim 2023)",
        ),
        Plugin("attack", "fgsm", f"{_HERE}.attacks.fgsm:FGSM", "fast gradient sign, one step (ART)", extra="attacks"),
        Plugin("attack", "pgd", f"{_HERE}.attacks.pgd:PGD", "projected gradient descent (ART)", extra="attacks"),
        Plugin(
            "attack",
            "apgd",
            f"{_HERE}.attacks.apgd:APGD",
            "projected gradient descent with its own step (ART; Croce 2020)",
            extra="attacks",
        ),
        Plugin(
            "attack",
            "auto_attack",
            f"{_HERE}.attacks.auto_attack:AutoAttack",
            "ART's own mix of APGD, DeepFool and Square; not the AutoAttack of Croce 2020",
            extra="attacks",
        ),
        Plugin(
            "attack",
            "carlini_wagner",
            f"{_HERE}.attacks.carlini_wagner:CarliniWagner",
            "the smallest change that fools, l2 or linf (ART; Carlini 2017)",
            extra="attacks",
        ),
        Plugin(
            "attack",
            "deepfool",
            f"{_HERE}.attacks.deepfool:DeepFool",
            "steps to the nearest linearized boundary (ART; Moosavi-Dezfooli 2016)",
            extra="attacks",
        ),
        Plugin(
            "attack",
            "square",
            f"{_HERE}.attacks.square:Square",
            "black-box random search by scores (ART; Andriushchenko 2020)",
            extra="attacks",
        ),
        Plugin(
            "attack",
            "hop_skip_jump",
            f"{_HERE}.attacks.hop_skip_jump:HopSkipJump",
            "black-box, by decisions alone (ART; Chen 2020)",
            extra="attacks",
        ),
        Plugin(
            "attack",
            "adversarial_patch",
            f"{_HERE}.attacks.adversarial_patch:AdversarialPatch",
            "one patch for each class, of any content; no L-p attack (ART; Brown 2017)",
            extra="attacks,mae",
        ),
        Plugin(
            "attack",
            "art",
            f"{_HERE}.attacks.art_by_name:ArtByName",
            "any evasion attack of ART by its class name",
            extra="attacks",
        ),
        Plugin(
            "attack",
            "pgd_eot",
            f"{_HERE}.attacks.pgd_eot:PGDEoT",
            "PGD on any view of a chain, averaged over its noise (EoT)",
        ),
        Plugin(
            "attack",
            "orthogonal_pgd",
            f"{_HERE}.attacks.orthogonal_pgd:OrthogonalPGD",
            "detector-aware: fool, then hide, at right angles (Bryniarski 2021)",
        ),
        Plugin(
            "attack",
            "joint_pgd",
            f"{_HERE}.attacks.joint_pgd:JointPGD",
            "detector-aware: prediction and score in one gradient",
        ),
        Plugin(
            "attack",
            "hfc",
            f"{_HERE}.attacks.hfc:HFC",
            "fool, and look normal in every layer of the classifier (Yao 2021)",
        ),
        Plugin(
            "attack",
            "internal",
            f"{_HERE}.attacks.internal:Internal",
            "a client's own model against the other clients (Kim 2023)",
        ),
        Plugin("dataset", "phantom", f"{_HERE}.datasets.phantom:Phantom", "brain-like slices drawn from a seed"),
        Plugin("dataset", "image_folder", f"{_HERE}.datasets.image_folder:ImageFolder", "one folder per class"),
        Plugin("dataset", "medmnist", f"{_HERE}.datasets.medmnist:MedMNIST", "a MedMNIST .npz file on disk"),
    )
