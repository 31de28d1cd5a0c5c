"""Weights that somebody else trained: read from a file without unpickling, and put where they fit, or refused."""

from __future__ import annotations

import hashlib
import io
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from medfedpure.core.config import Record
from medfedpure.core.errors import ArtifactError, ConfigError, UntrainedWarning

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "ema")
_POSITIONS = re.compile(r"(^|\.)(pos_embed|rel_pos_[hw])$")
_SHOWN = 8
_Line = Annotated[str, Field(pattern=r"\A[^\x00-\x1f\x7f-\x9f]*\z")]
"""A saved folder may come from anywhere, and what it says is printed: as one line."""


class Origin(Record):
    """What a classifier's training started from; saved with it, and with every defence around it.

    Attributes:
        source: a package and its version, a hub's address, or a file's name; never a path.
        licence: as its owner states it; "" where nothing is stated.
        restriction: of use, such as "non-commercial research only"; "" where none is known.
        sha256: of the file; of a hub's weights, of their names and bytes.
        loaded: tensors of the network that came from there.
        wanted: tensors that the network has, its head and its own normalization left out.
    """

    source: _Line
    licence: _Line = ""
    restriction: _Line = ""
    sha256: _Line
    loaded: int = Field(ge=0)
    wanted: int = Field(ge=0)

    def describe(self) -> str:
        """One sentence, a restriction of use first."""
        said = f"started from {self.source} ({self.loaded} of {self.wanted} tensors, SHA-256 {self.sha256[:12]}...)"
        licence = f"licence {self.licence}" if self.licence else "no licence stated"
        return f"RESTRICTED: {self.restriction}; {said}, {licence}" if self.restriction else f"{said}, {licence}"


@dataclass(frozen=True)
class Rules:
    """How the tensors of a published file are called here.

    Attributes:
        patterns: regular expressions and what replaces them, in this order, in each name.
        licence, restriction: of the published file.
    """

    patterns: Sequence[tuple[str, str]]
    licence: str = ""
    restriction: str = ""


_NONCOMMERCIAL = "non-commercial use only, as the owners of LVM-Med state; not for care, and not for a product"
RULES: Mapping[str, Rules] = MappingProxyType(
    {
        "lvmmed_resnet": Rules(
            ((r"^(module|backbone|encoder)\.", ""),), "LVM-Med's own, non-commercial", _NONCOMMERCIAL
        ),
        "lvmmed_vit": Rules(
            (
                (r"^(module\.)?(image_encoder\.)?", ""),
                (r"\.mlp\.lin(\d)\.", r".mlp.fc\1."),
            ),
            "LVM-Med's own, non-commercial",
            _NONCOMMERCIAL,
        ),
    }
)
"""LVM-Med (Nguyen et al. 2023, arXiv 2306.11925): a ResNet-50 in torchvision's names, which are timm's; and the image
encoder of SAM's ViT-B, whose `mlp.lin1` is `mlp.fc1` in timm's `samvit_base_patch16`."""


def rules_of(rename: str | Mapping[str, str] | None) -> Rules:
    """Rules by their name, or from patterns and what replaces them.

    Raises:
        ConfigError: no such name, a pattern that is no regular expression, or no mapping of text to text.
    """
    if rename is None:
        return Rules(())
    if isinstance(rename, str):
        if rename not in RULES:
            raise ConfigError(
                f"no rules are named {rename!r}; known are {', '.join(RULES)}, or pass patterns and what replaces them"
            )
        return RULES[rename]
    if not isinstance(rename, Mapping) or not all(isinstance(one, str) for pair in rename.items() for one in pair):
        raise ConfigError(f"rename maps patterns to what replaces them, text to text, or is a name; got {rename!r:.80}")
    for pattern in rename:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"rename: {pattern!r} is no regular expression: {error}") from error
    return Rules(tuple(rename.items()))


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], str]:
    """Tensors by name, and the SHA-256 of the file: safetensors, or torch's own format with `weights_only=True`.

    Raises:
        ArtifactError: no such file, another format, objects beside tensors that only unpickling would read, tensors
            that are sparse, quantized or without values.
        ConfigError: no path.
    """
    if not isinstance(path, str | Path):
        raise ConfigError(f"weights are named by the path of their file; got a {type(path).__name__}: save it first")
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # a path with a null character is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise ArtifactError(f"the weights {path} cannot be read: {reason}") from error
    try:
        if content[8:9] == b"{":
            found: Any = load_safetensors(content)
        else:
            _check_reader(path)
            # Torch's format knows no other reader; weights_only admits tensors and plain containers, and runs nothing.
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)  # noqa: TID251
    except ArtifactError:
        raise
    except SafetensorError as error:
        raise ArtifactError(f"{path} is a damaged safetensors file: {error}") from error
    except Exception as error:  # torch raises what its readers of zip and of pickle raise, and advises to run the code
        raise ArtifactError(
            f"{path} is damaged, or holds what cannot be read without running code: save the state_dict alone, best as "
            ".safetensors"
        ) from error
    return _tensors(found, Path(path)), hashlib.sha256(content).hexdigest()


def _check_reader(path: str | Path) -> None:
    """Raise ArtifactError where `weights_only=True` can be escaped (CVE-2025-32434, mended in PyTorch 2.6)."""
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < (2, 6):
        raise ArtifactError(
            f"{path} is in torch's own format, which PyTorch {torch.__version__} cannot read safely: install PyTorch "
            "2.6 or newer, or save the weights as .safetensors"
        )


def _tensors(found: Any, path: Path) -> dict[str, Tensor]:
    """The state_dict itself, or the one that a training wrapped in a dictionary."""
    for name in ("", *_WRAPPERS):
        inner = found if not name else found.get(name) if isinstance(found, Mapping) else None
        if isinstance(inner, Mapping) and inner and all(isinstance(value, Tensor) for value in inner.values()):
            for key, value in inner.items():
                if value.is_meta or value.is_quantized or value.layout != torch.strided:
                    kind = "without values" if value.is_meta else "quantized" if value.is_quantized else "sparse"
                    raise ArtifactError(f"{path}: the tensor {key} is {kind}; save the weights dense, as float32")
            return {str(key): value for key, value in inner.items()}
    raise ArtifactError(
        f"{path} holds a {type(found).__name__}, and a dictionary of tensors is wanted, alone or under one of "
        f"{', '.join(_WRAPPERS)}: save the network's state_dict"
    )


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fill(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    keys: Iterable[str],
    prefix: str,
    rules: Rules,
    min_loaded: float,
    what: str,
) -> tuple[int, int]:
    """Copy tensors into a network where name and shape agree; how many of the floating ones came, and were wanted.

    Positions of a transformer (`pos_embed`, `rel_pos_h`, `rel_pos_w`) of another grid are interpolated.

    Args:
        network: changed only where enough fits.
        tensors: by their own names.
        keys: of the network's state_dict, that may be filled.
        prefix: that the network puts before the names of the part that the weights are of.
        rules: applied to the names first.
        min_loaded: the share of the floating tensors of `keys` that must come, and of the file's in parts that this
            network has that must be wanted, in (0, 1].
        what: the weights, in words.

    Raises:
        ArtifactError: fewer fit, two names become one, or a tensor is not finite; the text lists them.
        ConfigError: a share outside (0, 1].

    Warns:
        UntrainedWarning: enough fits, and some tensors keep what they were drawn with.
    """
    if not isinstance(min_loaded, int | float) or not 0 < min_loaded <= 1:
        raise ConfigError(f"min_loaded is a share of the network's tensors in (0, 1]; got {min_loaded!r}")
    offered = _renamed(tensors, rules, what)
    state = network.state_dict()
    fitting: dict[str, Tensor] = {}
    missing, misfits = [], []
    used = set()
    wanted = {key for key in keys if state[key].is_floating_point()}
    for key in sorted(keys):
        name = key.removeprefix(prefix)
        value = offered.get(name, offered.get(key))
        if value is None:
            missing += [name] if key in wanted else []
            continue
        used |= {name, key}
        if value.shape != state[key].shape and _POSITIONS.search(key):
            value = _on_grid(value, state[key].shape)
        if value.shape != state[key].shape or value.is_floating_point() != state[key].is_floating_point():
            there, here = (f"{tuple(one.shape)} {str(one.dtype).removeprefix('torch.')}" for one in (value, state[key]))
            misfits.append(f"{name} (there {there}, here {here})")
            continue
        value = value.to(state[key].dtype)
        if not bool(value.isfinite().all()) or (key.endswith("running_var") and bool((value < 0).any())):
            raise ArtifactError(f"{what}: the tensor {name} holds values that are not finite, or variances below 0")
        fitting[key] = value
    unused = sorted(offered.keys() - used)
    parts = {key.removeprefix(prefix).split(".")[0] for key in wanted}
    heads = state.keys() - set(keys)
    heads |= {key.removeprefix(prefix) for key in heads}
    deeper = [k for k in unused if k.removeprefix(prefix).split(".")[0] in parts and offered[k].is_floating_point()]
    deeper = [name for name in deeper if name not in heads]
    loaded = len(wanted & fitting.keys())
    lists = (
        f"Of another shape: {_listed(misfits)}. Not there: {_listed(missing)}. There, and not wanted here: "
        f"{_listed(unused)}. Choose the architecture that the weights are of, or say by rename= how its names "
        "become these"
    )
    if loaded < min_loaded * len(wanted):
        raise ArtifactError(
            f"{what}: {loaded} of this network's {len(wanted)} tensors fit, and {min_loaded:.0%} are wanted. {lists}"
        )
    if loaded < min_loaded * (loaded + len(deeper)):
        raise ArtifactError(
            f"{what}: the weights are of a deeper network: of their {loaded + len(deeper)} tensors in parts that this "
            f"network has too, {loaded} are wanted here, and {min_loaded:.0%} should be. {lists}"
        )
    if loaded < len(wanted):
        warnings.warn(
            f"{what}: {len(wanted) - loaded} of this network's {len(wanted)} tensors keep what they were drawn with. "
            f"{lists}; min_loaded=1 refuses such weights",
            UntrainedWarning,
            stacklevel=4,
        )
    network.load_state_dict(fitting, strict=False)
    return loaded, len(wanted)


def _renamed(tensors: Mapping[str, Tensor], rules: Rules, what: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        new = name
        for pattern, replacement in rules.patterns:
            try:
                new = re.sub(pattern, replacement, new)
            except (re.error, IndexError) as error:
                raise ConfigError(f"rename: {replacement!r} cannot replace {pattern!r}: {error}") from error
        if new in found:
            raise ArtifactError(f"{what}: by rename two tensors are called {new!r}; make the patterns narrower")
        found[new] = value
    return found


def _on_grid(value: Tensor, shape: torch.Size) -> Tensor:
    """Positions `(1, H, W, C)`, `(1, P + H W, C)` of a square grid behind P others, or `(L, C)`, on another grid.

    As they are where that is not what differs.
    """
    if value.ndim != len(shape) or value.shape[-1] != shape[-1] or value.ndim not in (2, 3, 4):
        return value
    if value.ndim == 2:
        moved = nn.functional.interpolate(value.T[None].float(), size=shape[0], mode="linear")
        return moved[0].T.contiguous()
    if value.ndim == 3:
        there, here = value.shape[1], shape[1]
        squares = (p for p in range(min(there, here)) if math.isqrt(there - p) ** 2 == there - p)
        first = next((p for p in squares if math.isqrt(here - p) ** 2 == here - p), None)
        if first is None or value.shape[0] != 1:
            return value
        side, new = math.isqrt(there - first), math.isqrt(here - first)
        grid = _on_grid(value[:, first:].unflatten(1, (side, side)), torch.Size((1, new, new, shape[-1])))
        return torch.cat((value[:, :first].float(), grid.flatten(1, 2)), 1)
    moved = nn.functional.interpolate(value.permute(0, 3, 1, 2).float(), size=shape[1:3], mode="bicubic")
    return moved.permute(0, 2, 3, 1).contiguous()


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}" if names else "none"
