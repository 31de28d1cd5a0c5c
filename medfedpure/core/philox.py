"""Philox4x32-10 and numbers from it, in torch: equal on every device, for every part of a batch.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (10.1145/2063384.2063405). One round of
counter (c0, c1, c2, c3) and key (k0, k1), hi and lo the halves of a 64-bit product:

    c0, c1, c2, c3 = hi(B c2) ^ c1 ^ k0, lo(B c2), hi(A c0) ^ c3 ^ k1, lo(A c0);    k0 += W0;  k1 += W1

Only integers, and sums, products, quotients and square roots in float32, which IEEE 754 rounds exactly: no
logarithm or cosine of a library, which differ between devices in the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_A, _B = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 2**32 - 1


def block(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Four words for each counter of four and key of two: int64 in 0 ... 2^32 - 1, any shape that broadcasts."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first, second = c0 * _A, c2 * _B
        c0, c1, c2, c3 = (
            (second >> 32 & _LOW) ^ c1 ^ k0,
            second & _LOW,
            (first >> 32 & _LOW) ^ c3 ^ k1,
            first & _LOW,
        )
        k0, k1 = k0 + _W0 & _LOW, k1 + _W1 & _LOW
    return [c0, c1, c2, c3]


def words(images: Tensor, place: int, size: int) -> Tensor:
    """32 random bits for each of `size` values of each image, `(N, size)` int64, where `images` is.

    Args:
        images: `(N, 3)` int64, the words that tell images apart: two of the key, one of the counter.
        place: 64 bits that tell stages and draws apart, two words of the counter.
        size: values of each image; the first ones do not depend on it.
    """
    places = torch.arange(-(-size // 4), device=images.device)[None]
    k0, k1, third = images[:, :1], images[:, 1:2], images[:, 2:]
    stage = torch.full_like(places[:, :1], place & _LOW), torch.full_like(places[:, :1], place >> 32)
    found = block((places, *stage, third), (k0, k1))
    return torch.stack(torch.broadcast_tensors(*found), 2).flatten(1)[:, :size]


def uniform(words: Tensor) -> Tensor:
    """Multiples of 2^-24 in [0, 1), float32, from words of any shape."""
    return (words >> 8).to(torch.float32) * 2.0**-24


def normal(words: Tensor) -> Tensor:
    """Standard normal numbers, float32, from words of any shape: the quantile of (word + 1/2) / 2^32.

    The quantile is PPND7 of Wichura 1988 (algorithm AS 241, 10.2307/2347330), seven digits; up to 6.4 either way.
    """
    near = torch.minimum(words, _LOW - words)
    share = (near.to(torch.float32) + 0.5) * 2.0**-32
    away = 0.5 - share
    r = 0.180625 - away * away
    middle = (
        away
        * _polynomial(r, 5.9109374720e1, 1.5929113202e2, 5.0434271938e1, 3.3871327179)
        / _polynomial(r, 6.7187563600e1, 7.8757757664e1, 1.7895169469e1, 1.0)
    )
    r = (-_log(share)).sqrt() - 1.6
    tail = _polynomial(r, 1.7023821103e-1, 1.3067284816, 2.7568153900, 1.4234372777) / _polynomial(
        r, 1.2021132975e-1, 7.3700164250e-1, 1.0
    )
    size = torch.where(away <= 0.425, middle, tail)
    return torch.where(words > near, size, -size)


def _log(x: Tensor) -> Tensor:
    """The natural logarithm of positive float32, of any shape (S. Moshier's Cephes library, logf)."""
    mantissa, exponent = torch.frexp(x)
    small = mantissa < 0.7071067811865476
    mantissa = torch.where(small, mantissa + mantissa, mantissa) - 1.0
    power = (exponent - small.to(exponent.dtype)).to(torch.float32)
    square = mantissa * mantissa
    series = _polynomial(
        mantissa,
        7.0376836292e-2,
        -1.1514610310e-1,
        1.1676998740e-1,
        -1.2420140846e-1,
        1.4249322787e-1,
        -1.6668057665e-1,
        2.0000714765e-1,
        -2.4999993993e-1,
        3.3333331174e-1,
    )
    rest = series * mantissa * square + power * -2.12194440e-4 - square * 0.5
    return mantissa + rest + power * 0.693359375


def _polynomial(x: Tensor, *coefficients: float) -> Tensor:
    """Horner's rule, the highest power first; product and sum are two operations, so nothing is fused."""
    total = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total
