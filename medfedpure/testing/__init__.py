"""Contract tests for plugin authors: subclass the contract of your kind, and pytest runs it.

    import medfedpure, pytest
    from medfedpure.testing import DetectorContract

    class TestSharpness(DetectorContract):
        @pytest.fixture(scope="class")
        @classmethod
        def unfitted(cls):
            return medfedpure.create("detector", "sharpness")

The plugin must be installed and registered, because one test loads it by name in a fresh process.
What is tested follows from the flags of the class (`deterministic`, `differentiable`,
`per_image_streams`, `needs_fit`, `requires`): a flag is a promise. Inputs are fixtures to override,
all of class scope: `unfitted`, `component` (fitted), `practised` (trained enough to be judged), `train`,
`context`, `setting`, `device`; and of single kinds `shifts` (what a detector must find) and `strong` (an
attack's larger budget). On a machine with CUDA the answers there are compared with those of the CPU;
MEDFEDPURE_TEST_DEVICE names another device. Needs pytest: `pip install 'medfedpure[test]'`.

`CONTRACT_VERSION` counts up whenever a plugin that passed may fail.
"""

from medfedpure.testing.attacks import AttackContract
from medfedpure.testing.classifiers import ClassifierContract
from medfedpure.testing.components import ComponentContract
from medfedpure.testing.datasets import DatasetContract
from medfedpure.testing.detectors import DetectorContract
from medfedpure.testing.images import ImageContract
from medfedpure.testing.personalizations import PersonalizationContract
from medfedpure.testing.purifiers import PurifierContract
from medfedpure.testing.setting import Setting, SmoothingDenoiser, tiny_classifier, tiny_context, tiny_dataset

CONTRACT_VERSION = 2

__all__ = [
    "CONTRACT_VERSION",
    "AttackContract",
    "ClassifierContract",
    "ComponentContract",
    "DatasetContract",
    "DetectorContract",
    "ImageContract",
    "PersonalizationContract",
    "PurifierContract",
    "Setting",
    "SmoothingDenoiser",
    "tiny_classifier",
    "tiny_context",
    "tiny_dataset",
]
