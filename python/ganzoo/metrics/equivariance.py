"""How exactly an image follows what it is generated from: Karras et al. (2021), arXiv:2106.12423, section 3 and appendix E.

    EQ-T = 10·log₁₀(I²/E (g(t[z₀]; w) − t[g(z₀; w)])²)

in dB, with I = 2 the range of pixels in [−1, 1], t a translation of up to an eighth of the image, by whole pixels, and the mean over images,
translations, channels, and the pixels that the translated image has. EQ-R is the same of rotations by any angle, and of the pixels that are
within the image in either, without a margin for the filter that rotates the image. Exact equivariance is +∞ dB for EQ-T; for EQ-R the filter,
Lanczos' of six pixels, sets a limit.
"""

import math

import torch

RANGE = 2.0
FARTHEST = 1 / 8
LOBES = 3


def decibels(errors):
    """10·log₁₀(I²/mean square) of errors given as a list of tensors."""
    square = sum(error.double().square().sum().item() for error in errors) / sum(error.numel() for error in errors)
    return 10 * math.log10(RANGE**2 / square) if square else math.inf


@torch.no_grad()
def eq_t(synthesize, images, size, seed=0):
    """EQ-T in dB.

    `synthesize(index, shift, turn)` draws an image (C, size, size) for each number below `images`, from a start that is turned by `turn`
    radians, from x towards y, and then shifted by (x, y) in units of the image; x counts columns, y rows.
    """
    random, farthest, errors = torch.Generator().manual_seed(seed), round(size * FARTHEST), []
    for index in range(images):
        x, y = torch.randint(-farthest, farthest + 1, (2,), generator=random).tolist()
        still, moved = synthesize(index, (0.0, 0.0), 0.0), synthesize(index, (x / size, y / size), 0.0)
        there = [slice(max(by, 0), size + min(by, 0)) for by in (y, x)]
        here = [slice(max(-by, 0), size - max(by, 0)) for by in (y, x)]
        errors.append(moved[(..., *there)] - still[(..., *here)])
    return decibels(errors)


@torch.no_grad()
def eq_r(synthesize, images, size, seed=0):
    """EQ-R in dB; `synthesize` as of `eq_t`."""
    random, errors = torch.Generator().manual_seed(seed), []
    for index in range(images):
        angle = 2 * math.pi * torch.rand((), generator=random).item()
        rotated, valid = rotate(synthesize(index, (0.0, 0.0), 0.0), angle)
        errors.append((synthesize(index, (0.0, 0.0), angle) - rotated)[:, valid])
    return decibels(errors)


def rotate(image, angle):
    """An image (C, size, size) turned about its centre by an angle, from x towards y, and a mask of the pixels whose filter lies within it."""
    size = image.shape[-1]
    at = torch.arange(size, dtype=image.dtype, device=image.device)
    centre = (size - 1) / 2
    y, x = torch.meshgrid(at - centre, at - centre, indexing="ij")
    cosine, sine = math.cos(angle), math.sin(angle)
    from_x, from_y = cosine * x + sine * y + centre, cosine * y - sine * x + centre
    columns, rows = (_lanczos(source[..., None] - at) for source in (from_x, from_y))
    valid = [(LOBES - 1 <= source) & (source <= size - LOBES) for source in (from_x, from_y)]
    return torch.einsum("yxr,yxc,nrc->nyx", rows, columns, image), valid[0] & valid[1]


def _lanczos(distance):
    weights = torch.sinc(distance) * torch.sinc(distance / LOBES) * (distance.abs() < LOBES)
    return weights / weights.sum(-1, keepdim=True)
