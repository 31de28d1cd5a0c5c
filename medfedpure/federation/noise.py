"""Gaussian noise that nobody can draw again: 256 bits of the operating system through a cryptographic stream.

torch's generators are no cryptographic ones, and that of the CPU takes 32 bits of its seed: noise of theirs can be
searched and subtracted. Here SHAKE-256 of key and counter gives uniform numbers and Box-Muller Gaussian ones. The
grid of floating-point numbers shows through a single draw. A sum of four, halved, has the same distribution and hides
it: Holohan and Braghin, Secure Random Sampling in Differential Privacy, 2021; Opacus' secure mode does the same.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medfedpure.core.errors import FederationError

ENTROPY_BYTES = 32
_DRAWS = 4
_PAIRS = 1 << 16  # of one block: 1 MiB
_LABEL = b"medfedpure private noise 1"
_Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class SecretNoise:
    """A stream of standard Gaussian numbers.

    Args:
        entropy: 32 bytes for a test; by default the operating system's, which are neither shown nor kept
            beyond this object.

    Raises:
        FederationError: another number of bytes.
    """

    def __init__(self, entropy: bytes | None = None) -> None:
        key = secrets.token_bytes(ENTROPY_BYTES) if entropy is None else entropy
        if len(key) != ENTROPY_BYTES:
            raise FederationError(f"noise is drawn from {ENTROPY_BYTES} bytes of entropy; got {len(key)}")
        self._key, self._blocks = bytes(key), 0

    def draw(self, shape: Sequence[int]) -> Tensor:
        """The next numbers in any shape, float64; no two calls share any randomness."""
        size = math.prod(shape)
        total = np.zeros(size)
        for _ in range(_DRAWS):
            total += self._normal(size)
        return torch.from_numpy(total / math.sqrt(_DRAWS)).reshape(tuple(shape))

    def _normal(self, size: int) -> _Floats:
        """Independent numbers `(size,)` by Box-Muller, in float64."""
        result = np.empty(2 * ((size + 1) // 2))
        for start in range(0, len(result), 2 * _PAIRS):
            block = result[start : start + 2 * _PAIRS]
            pairs = len(block) // 2
            words = np.frombuffer(self._bytes(16 * pairs), dtype="<u8").reshape(2, pairs) >> np.uint64(11)
            radius = np.sqrt(-2 * np.log((words[0] + 1.0) * 2.0**-53))  # of uniform numbers in (0, 1]
            angle = words[1] * (2 * math.pi * 2.0**-53)
            block[:pairs], block[pairs:] = radius * np.cos(angle), radius * np.sin(angle)
        return result[:size]

    def _bytes(self, size: int) -> bytes:
        self._blocks += 1
        return hashlib.shake_256(_LABEL + self._key + self._blocks.to_bytes(8, "little")).digest(size)
