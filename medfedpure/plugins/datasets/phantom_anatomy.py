"""What the phantom shows: a head, its benign clutter, and lesions.

`draw_head` paints, from outside inwards, scalp, skull with marrow, cerebrospinal fluid (CSF), a
cortical ribbon, white matter, deep grey nuclei and ventricles. Sulci are the zero set of random
waves in polar coordinates, F = sum cos(m angle + k r + phase); |F| / |grad F| is the distance to
it, and every fluid space is lined by a grey ribbon of constant thickness.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from medfedpure.core.streams import Streams
from medfedpure.plugins.datasets.phantom_shapes import (
    Canvas,
    Draws,
    capsule,
    cover,
    dots,
    ellipse,
    mix,
    rotate,
    smooth_union,
    stroke,
    waves,
)

# Signal of air, scalp, skull, marrow, CSF, grey matter, white matter.
_T1 = (0.02, 0.74, 0.08, 0.34, 0.18, 0.47, 0.62)
_T2 = (0.02, 0.52, 0.05, 0.22, 0.78, 0.50, 0.38)
_MOST_LESIONS = 3


@dataclass(frozen=True)
class Head:
    """A painted head.

    Attributes:
        signal: `(N, S, S)`, about 0 ... 0.9.
        brain: `(N, S, S)` signed distance to the brain's surface.
        white: `(N, S, S)` coverage by white matter.
        tissue: `(N, 1, 1)` mean signal of grey and white matter.
        weighting: `(N, 1, 1)`, 0.0 = T1-like, 1.0 = T2-like.
        half_x, half_y: `(N, 1, 1)` half axes of the brain.
    """

    signal: Tensor
    brain: Tensor
    white: Tensor
    tissue: Tensor
    weighting: Tensor
    half_x: Tensor
    half_y: Tensor


def draw_head(streams: Streams, canvas: Canvas) -> Head:
    """Paint the healthy anatomy of each image."""
    draws = Draws(streams, "anatomy", 320)
    soft = canvas.soft
    weighting = draws.chance(0.5)
    air, scalp, skull, marrow, fluid, grey, white = (
        mix(torch.tensor(t1), torch.tensor(t2), weighting) * draws.between(0.93, 1.07)
        for t1, t2 in zip(_T1, _T2, strict=True)
    )
    level = draws.between(0.0, 1.0)  # 0 = through the basal ganglia, 1 = above the ventricles
    shrink = 1.0 - 0.1 * level
    half_x, half_y = draws.between(0.74, 0.82) * shrink, draws.between(0.87, 0.95) * shrink
    x, y = canvas.x, canvas.y
    bend = draws.between(0.010, 0.022)
    x = x + bend * waves(draws, canvas, 5, 2.0, 6.0)
    y = y + bend * waves(draws, canvas, 5, 2.0, 6.0)

    # A head is a little wider behind than in front.
    skin = ellipse(x * (1.0 + draws.between(0.0, 0.09) * y), y, half_x, half_y)
    skin_width, bone_width, gap = draws.between(0.035, 0.06), draws.between(0.04, 0.065), draws.skewed(0.008, 0.035)
    bone, inner = skin + skin_width, skin + skin_width + bone_width
    brain = inner + gap
    signal = mix(air, scalp, cover(skin, soft))
    signal = mix(signal, skull, cover(bone, soft))
    signal = mix(signal, marrow, stroke((bone + 0.5 * bone_width).abs(), 0.25 * bone_width, soft))
    signal = mix(signal, fluid, cover(inner, soft))
    border = skin_width + bone_width + gap
    brain_x, brain_y = half_x - border, half_y - border

    atrophy = draws.skewed(0.7, 1.6)  # wide sulci and wide ventricles come together
    ribbon = draws.between(0.034, 0.05)
    fold_x = x + 0.035 * waves(draws, canvas, 8, 5.0, 14.0)
    fold_y = y + 0.035 * waves(draws, canvas, 8, 5.0, 14.0)
    sulci = _sulci(draws, fold_x / brain_x, fold_y / brain_y, -brain)
    sulcus_width = 0.008 * atrophy
    side = x * (1.0 + draws.between(-0.08, 0.08) * torch.sign(x))
    mirrored, lowered = side.abs(), y - draws.between(-0.05, 0.03)
    reach = (1.0 - level) * draws.between(0.25, 0.45)
    middle = (torch.minimum(reach * brain_y - y, y + reach * brain_y).clamp_min(0.0) ** 2 + x * x + 1e-8).sqrt()
    present = ((0.75 - level) / 0.15).clamp(0.0, 1.0)
    hilum = draws.between(0.64, 0.74) * brain_x
    insula = torch.minimum(
        capsule(fold_x.abs(), fold_y, (0.97 * brain_x, draws.between(0.05, 0.2)), (hilum, 0.08)),
        capsule(fold_x.abs(), fold_y, (hilum, 0.12), (hilum + 0.03, draws.between(-0.14, -0.04))),
    )
    no_fluid, no_cortex = 1.0 - cover(-brain, soft), cover(brain + ribbon, soft)
    for distance, width, strength in (
        (sulci, sulcus_width, torch.ones_like(soft)),
        (middle, 0.007 * atrophy, torch.ones_like(soft)),
        (insula, 0.012 * atrophy, present),
    ):
        no_fluid = no_fluid * (1.0 - strength * stroke(distance, width, soft))
        no_cortex = no_cortex * (1.0 - strength * stroke(distance, width + ribbon, soft))
    matter = mix(grey, white, no_cortex)
    matter = mix(matter, grey, 0.6 * present * cover(_nuclei(draws, mirrored, lowered), soft))
    texture = waves(draws, canvas, 24, 12.0, 45.0)
    matter = matter * (1.0 + draws.between(0.01, 0.03) * texture)
    ventricles = _ventricles(draws, mirrored, x, lowered, level, atrophy)
    no_fluid = no_fluid * cover(-ventricles, soft)
    signal = mix(signal, matter, no_fluid)
    signal = signal + _clutter(draws, canvas, brain_x, brain_y, weighting)
    tissue = 0.4 * grey + 0.6 * white
    return Head(signal, brain, no_cortex * no_fluid, tissue, weighting, brain_x, brain_y)


def _sulci(draws: Draws, u: Tensor, v: Tensor, depth: Tensor) -> Tensor:
    """Distance to the nearest sulcus, `(N, S, S)`; `u`, `v` are coordinates in brain radii."""
    radius = (u * u + v * v + 1e-6).sqrt()
    angle = torch.atan2(v, u)
    value = torch.zeros_like(u)
    around, outward = torch.zeros_like(u), torch.zeros_like(u)
    base = draws.between(9.0, 12.0)
    for _ in range(6):
        # Whole numbers, so that the pattern closes around the head.
        slant = draws.between(-1.05, 1.05)
        turns, climb = (base * slant.cos()).round(), 1.2 * base * slant.sin()
        phase = turns * angle + climb * radius + draws.between(0.0, 2.0 * math.pi)
        sine = torch.sin(phase)
        value = value + torch.cos(phase)
        around, outward = around + turns * sine, outward + climb * sine
    slope = ((around / radius) ** 2 + outward * outward + 9.0).sqrt() / 0.72
    deepest = draws.between(0.09, 0.14)
    for turns_deep in (2.0, 5.0, 9.0):
        deepest = deepest + 0.03 * torch.cos(turns_deep * angle + draws.between(0.0, 2.0 * math.pi))
    below = (depth - deepest).clamp_min(0.0)
    return ((value / slope) ** 2 + below * below).sqrt()


def _ventricles(draws: Draws, mirrored: Tensor, x: Tensor, y: Tensor, level: Tensor, atrophy: Tensor) -> Tensor:
    """Signed distance to the lateral ventricles and the third, `(N, S, S)`."""
    size = atrophy * draws.between(0.85, 1.2) * (1.0 - 0.35 * level)
    near = draws.between(0.045, 0.06)
    horn_x, horn_y = draws.between(0.12, 0.17), draws.between(0.20, 0.28)
    back_x, back_y = draws.between(0.17, 0.24), draws.between(-0.42, -0.28)
    knee_x, knee_y = near + draws.between(0.005, 0.02), draws.between(0.10, 0.14)
    front = smooth_union(
        capsule(mirrored, y, (knee_x, knee_y), (horn_x, horn_y), (0.042 * size, 0.030 * size)),
        capsule(mirrored, y, (near, -0.04), (knee_x, knee_y), (0.024 * size, 0.040 * size)),
        0.01,
    )
    bend_x, bend_y = near + draws.between(0.07, 0.10), draws.between(-0.20, -0.16)
    back = smooth_union(
        capsule(mirrored, y, (near, -0.04), (bend_x, bend_y), (0.024 * size, 0.042 * size)),
        capsule(mirrored, y, (bend_x, bend_y), (back_x, back_y), (0.042 * size, 0.018 * size)),
        0.01,
    )
    # Slices higher up meet only the roof of the ventricles, then nothing.
    lateral = torch.minimum(front, back) + 0.12 * (level - 0.6).clamp_min(0.0)
    third = capsule(x.abs(), y, (0.0, 0.02), (0.0, -0.17), (0.007 * size, 0.010 * size))
    return torch.minimum(lateral, third + 0.2 * (level - 0.45).clamp_min(0.0))


def _nuclei(draws: Draws, mirrored: Tensor, y: Tensor) -> Tensor:
    """Signed distance to caudate, lentiform nucleus and thalamus, `(N, S, S)`."""
    size = draws.between(0.9, 1.15)
    caudate = ellipse(*rotate(mirrored - 0.19, y - 0.20, draws.between(-0.5, -0.3)), 0.045 * size, 0.10 * size)
    lentiform = ellipse(*rotate(mirrored - 0.32, y - 0.03, draws.between(-0.35, -0.15)), 0.065 * size, 0.15 * size)
    thalamus = ellipse(*rotate(mirrored - 0.13, y + 0.10, draws.between(0.2, 0.5)), 0.07 * size, 0.12 * size)
    return torch.minimum(torch.minimum(caudate, lentiform), thalamus)


def _clutter(draws: Draws, canvas: Canvas, half_x: Tensor, half_y: Tensor, weighting: Tensor) -> Tensor:
    """Benign dots of healthy and ill alike: vessels, calcifications, perivascular spaces, choroid plexus."""
    vessels, specks, spaces, plexus = 5, 3, 3, 4
    count = vessels + specks + spaces + plexus
    angle = draws.several(count, 0.0, 2.0 * math.pi)
    reach = torch.cat(
        [draws.several(vessels, 0.9, 1.02), draws.several(specks, 0.1, 0.9), draws.several(spaces, 0.3, 0.6)], dim=1
    )
    x = reach * half_x.flatten(1) * angle[:, : reach.shape[1]].cos()
    y = reach * half_y.flatten(1) * angle[:, : reach.shape[1]].sin()
    side = torch.sign(draws.several(plexus, -1.0, 1.0))
    x = torch.cat([x, side * draws.several(plexus, 0.12, 0.18)], dim=1)
    y = torch.cat([y, draws.several(plexus, -0.32, -0.18)], dim=1)
    radius = draws.several(count, 0.008, 0.015)
    t2 = weighting.flatten(1)
    # Flow is bright on T1 and void on T2; calcium is dark on both; fluid follows CSF.
    height = torch.cat(
        [
            draws.several(vessels, 0.2, 0.7) * (1.0 - 1.8 * t2),
            draws.several(specks, -0.7, 0.5),
            draws.several(spaces, 0.3, 0.6) * (2.0 * t2 - 1.0),
            draws.several(plexus, 0.2, 0.5) * (1.0 - 2.0 * t2),
        ],
        dim=1,
    )
    height = height * (draws.several(count, 0.0, 1.0) < 0.7)
    return dots(canvas, x, y, radius, height)


def draw_lesions(
    streams: Streams, canvas: Canvas, head: Head, present: Tensor, contrast: float, size: float
) -> tuple[Tensor, Tensor]:
    """Add lesions where `present` `(N, 1, 1)` is 1.0; returns signal `(N, S, S)` and mask `(N, S, S)` bool.

    A lesion is an irregular blob, radius(angle) = r (1 + a cos(2 angle + p) + b cos(3 angle + q)),
    r = 0.074 ... 0.14 times `size`, in the white matter or beside it; brighter or darker than its
    surroundings by about `contrast` times 0.2 ... 0.55, sometimes with a rim and a paler core, and
    sometimes in a bed of oedema that spares the cortex. An image holds one to three.
    """
    signal, soft = head.signal, canvas.soft
    mask = torch.zeros_like(signal, dtype=torch.bool)
    for place in range(_MOST_LESIONS):
        draws = Draws(streams, f"lesion {place}", 20)
        here = present * draws.chance(1.0 if place == 0 else 0.35)
        side = 2.0 * draws.chance(0.5) - 1.0
        angle, reach = draws.between(-1.0, 1.0), draws.between(0.42, 0.68)
        x = canvas.x - side * reach * head.half_x * angle.cos()
        y = canvas.y - reach * head.half_y * angle.sin()
        usual_radius = draws.skewed(0.074, 0.14)
        radius = size * usual_radius
        distance, around = (x * x + y * y + 1e-8).sqrt(), torch.atan2(y, x)
        bumps = draws.between(0.0, 0.28) * torch.cos(2.0 * around + draws.between(0.0, 6.28))
        bumps = bumps + draws.between(0.0, 0.16) * torch.cos(3.0 * around + draws.between(0.0, 6.28))
        edge = torch.maximum(distance - radius * (1.0 + bumps), head.brain)
        # Small lesions stand out more: a faint one is found by its extent.
        step = contrast * draws.skewed(0.28, 0.52) * (0.08 / usual_radius).sqrt()
        sign = 2.0 * draws.chance(0.5) - 1.0
        core = here * cover(edge, soft)
        rimmed = draws.chance(0.3)
        rim = rimmed * stroke(edge.abs(), 0.25 * radius, soft) * cover(head.brain, soft)
        inside = core * (1.0 - 0.6 * rimmed) + 0.8 * here * rim
        # Oedema is water: darker on T1, brighter on T2.
        bed = here * draws.chance(0.4) * head.white * cover(edge - 0.6 * radius, soft + 0.25 * radius)
        signal = signal + bed * 0.5 * step * (2.0 * head.weighting - 1.0)
        signal = mix(signal, head.tissue + (signal - head.tissue) * 0.5, core) + sign * step * inside
        # At least the pixel nearest to the centre, however coarse the grid.
        mask |= (here > 0) & (edge <= edge.amin(dim=(1, 2), keepdim=True).clamp_min(0.0))
    return signal, mask
