"""Any timm model as a classifier (Wightman 2019, PyTorch Image Models)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import timm
from pydantic import Field, field_validator
from torch import Tensor, nn

from medfedpure.core.config import Config
from medfedpure.core.disk.weights import Origin
from medfedpure.core.errors import ConfigError
from medfedpure.models.imagenet import imagenet_weights
from medfedpure.models.timm_classifier import InputSize, TimmArchitecture, TimmClassifier

# fmt: off
OPTIONS = frozenset((
    "act_layer", "attn_drop_rate", "avg_down", "base_width", "block_reduce_first", "cardinality", "channels",
    "class_token", "conv_bias", "conv_mlp", "depth", "depths", "dims", "down_kernel_size", "drop_block_rate",
    "drop_path_rate", "drop_rate", "dynamic_img_pad", "dynamic_img_size", "embed_dim", "fc_norm", "final_norm",
    "fix_init", "fix_stem", "global_pool", "head_hidden_size", "head_init_scale", "head_norm_first", "init_values",
    "kernel_sizes", "layers", "ls_init_value", "mlp_ratio", "no_embed_class", "norm_eps", "norm_layer",
    "num_features", "num_heads", "output_stride", "pad_type", "patch_drop_rate", "patch_size", "pool_include_prefix",
    "pos_drop_rate", "pos_embed", "pre_norm", "proj_bias", "proj_drop_rate", "qk_norm", "qkv_bias", "reg_tokens",
    "replace_stem_pool", "scale_attn_norm", "scale_mlp_norm", "stem_kernel_size", "stem_size", "stem_type",
    "stem_width", "use_grn", "window_size", "zero_init_last",
))
# fmt: on
"""What a configuration, and so a saved folder, may tell timm: shapes and rates, nothing that is read or fetched."""
_LARGEST = 2**16


class TimmConfig(Config):
    """Which model, and options of its own."""

    model: str = Field("resnet18", description="a name known to timm.list_models()")
    options: dict[str, Any] = Field(
        default_factory=dict, description="shapes, rates and layers by name, passed on to timm.create_model"
    )
    set_image_size: bool = Field(False, description="pass img_size, which vision transformers need")
    input_size: InputSize = Field(None, description="pixels to which the network resizes its images; none: their own")
    imagenet_input: bool = Field(
        False, description="grey repeated to three channels, normalized as the model's published weights want it"
    )

    @field_validator("options")
    @classmethod
    def _harmless(cls, value: dict[str, Any]) -> dict[str, Any]:
        unknown = sorted(set(value) - OPTIONS)
        if unknown:
            raise ValueError(
                f"{', '.join(unknown)} cannot be set here, because a saved classifier names its options and must not "
                f"make timm read a file or an address: allowed are {', '.join(sorted(OPTIONS))}"
            )
        for name, given in value.items():
            _check_plain(name, given)
        return value


def _check_plain(name: str, value: Any, depth: int = 0) -> None:
    """Raise ValueError unless it is a number of moderate size, a word such as "gelu", or a short list of such."""
    if isinstance(value, list | tuple) and len(value) <= 64 and depth < 2:
        for inner in value:
            _check_plain(name, inner, depth + 1)
    elif isinstance(value, str):
        if not re.fullmatch(r"[A-Za-z0-9_]{0,32}", value):
            raise ValueError(f"{name} takes a number or a word of timm's, such as 'gelu'; got {value[:60]!r}")
    elif value is not None and not (isinstance(value, bool | int | float) and abs(value) <= _LARGEST):
        raise ValueError(f"{name} takes a number up to {_LARGEST} or a word of timm's; got {str(value)[:60]}")


class Timm(TimmArchitecture):
    """Untrained unless `weights` says otherwise; size and normalization are layers of the network."""

    Config = TimmConfig

    def build(self, *, in_channels: int, num_classes: int, image_size: int) -> nn.Module:
        """`(N, C, H, W)` in [0, 1] to logits `(N, K)`.

        Raises:
            ConfigError: timm does not know the model.
        """
        config = self.config
        if config.model not in timm.list_models():
            near = ", ".join(timm.list_models(f"*{config.model}*")[:5]) or "see timm.list_models()"
            raise ConfigError(f"timm knows no model named {config.model!r}; nearest: {near}")
        size: dict[str, Any] = {"img_size": config.input_size or image_size} if config.set_image_size else {}
        return TimmClassifier(
            config.model,
            in_channels,
            num_classes,
            input_size=config.input_size,
            imagenet_input=config.imagenet_input,
            **size,
            **config.options,
        )

    def imagenet_weights(self) -> tuple[Mapping[str, Tensor], Origin]:
        """From a package that carries the model's, else from timm's hub.

        Raises:
            ConfigError: the configuration has not `imagenet_input`.
        """
        if not self.config.imagenet_input:
            raise ConfigError("ImageNet weights want their own input: set imagenet_input=true in the configuration")
        return imagenet_weights(self.config.model, self.config.options)
