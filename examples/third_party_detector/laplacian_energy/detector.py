from pydantic import Field
from torch.nn.functional import conv2d

from medfedpure import Config, Detector


class LaplacianEnergyConfig(Config):
    power: float = Field(1.0, gt=0, description="exponent of the absolute response before averaging")


class LaplacianEnergy(Detector):
    """Mean absolute response of a 3x3 Laplacian: attacks add high frequencies, scans have few."""

    Config = LaplacianEnergyConfig
    deterministic = differentiable = True

    def score(self, images, *, context, streams):
        kernel = images.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]]).expand(images.shape[1], 1, 3, 3)
        response = conv2d(images, kernel, groups=images.shape[1]).abs()
        return response.pow(self.config.power).flatten(1).mean(1)
